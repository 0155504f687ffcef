from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_robust.attacks import jsma
from lightning_robust.errors import InputError


def net_of(classes, size, seed=0):
    """Two layers that give gray images no class in particular."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, classes)).double().eval()
    with torch.no_grad():
        net[1].weight *= 3
        net[1].bias.copy_(-0.5 * net[1].weight.sum(1))
    return net


def batch_of(net, count, shape=(3, 3, 3), seed=0):
    """Images and the classes that the net gives them."""
    image = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    image[:, :, 0, 0] = 1.0
    with torch.no_grad():
        return image, net(image).argmax(1)


def _reference_jsma(net, image, aim, *, theta, gamma, probabilities):
    """One image, the Jacobian by hand and the map of all pairs; None where the class is not reached."""
    size = image.numel()
    inner, outer = net[1].weight.detach(), net[3].weight.detach()
    x = image.flatten().clone()
    for _ in range(int(gamma * size / 2)):
        hidden = (inner @ x + net[1].bias.detach()).tanh()
        jacobian = outer @ ((1 - hidden**2)[:, None] * inner)
        if probabilities:
            p = (outer @ hidden + net[3].bias.detach()).softmax(0)
            jacobian = p[:, None] * (jacobian - p @ jacobian)
        a = math.copysign(1, theta) * jacobian[aim]
        b = -math.copysign(1, theta) * (jacobian.sum(0) - jacobian[aim])
        free = x < 1 if theta > 0 else x > 0
        sum_a, sum_b = a[:, None] + a, b[:, None] + b
        allowed = (sum_a > 0) & (sum_b > 0) & free & free[:, None] & ~torch.eye(size, dtype=torch.bool)
        if not allowed.any():
            return None
        best = int(torch.where(allowed, sum_a * sum_b, -1.0).argmax())
        for feature in (best // size, best % size):
            x[feature] = (x[feature] + theta).clamp(0, 1)
        if net(x[None]).argmax() == aim:
            return x.view_as(image)
    return None


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 12),
    theta=st.sampled_from([1.0, 0.3, -1.0, -0.4]),
    output=st.sampled_from(["logits", "probabilities"]),
    gamma=st.sampled_from([0.2, 1.0]),
)
def test_path_is_that_of_the_full_jacobian_and_the_map_of_all_pairs(seed, classes, theta, output, gamma):
    net = net_of(classes, 27, seed)
    image, target = batch_of(net, 3, seed=seed)
    aim = (target + 1) % classes
    result = jsma(net, image, target, toward=aim, theta=theta, gamma=gamma, output=output)
    for row in range(3):
        expected = _reference_jsma(
            net, image[row], aim[row], theta=theta, gamma=gamma, probabilities=output == "probabilities"
        )
        torch.testing.assert_close(result[row], image[row] if expected is None else expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("theta", [1.0, -1.0])
def test_probabilities_that_underflow_still_have_a_best_pair(theta):
    gentle = torch.randn(3, 27, generator=torch.Generator().manual_seed(2)) / 5
    image = torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    model, confident = (lambda x, s=scale: (x - 0.5).flatten(1) @ (s * gentle.T) for scale in (1, 500))
    target = model(image).argmax(1)
    aim = (target + 1) % 3
    assert (confident(image).softmax(1).gather(1, aim[:, None]) == 0).any()
    options = {"gamma": 1.0, "theta": theta, "output": "probabilities", "return_record": True}
    record = jsma(confident, image, target, toward=aim, **options)
    assert record.success.all()


def test_slopes_of_the_other_classes_count():
    # the two features of the steepest own class raise the sum of the others still more
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 1.0, 1.0], [5.0, 5.0, -2.0, -2.0]], dtype=torch.float64)

    def model(image):
        return image.flatten(1) @ weight.T - image.new_tensor([0.0, 0.5, 9.0])

    image = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    result = jsma(model, image, torch.tensor([0]), gamma=1.0)
    assert result.flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("output", "passes"), [("logits", 2), ("probabilities", 1)])
def test_a_step_takes_few_backward_passes_for_many_classes(output, passes):
    seen = []
    net = net_of(50, 27)
    net[1].register_full_backward_hook(lambda *_: seen.append(1))
    image, target = batch_of(net, 4)
    # two steps, and no image of these gets anywhere
    aim = net(image).argmin(1)
    record = jsma(net, image, target, toward=aim, gamma=4 / 27, theta=0.01, output=output, return_record=True)
    assert not record.success.any()
    assert len(seen) == 2 * passes


def test_runs_at_the_size_of_imagenet():
    # a map of all pairs would take 91 GB
    def model(image):
        return torch.stack((0.5 - image.mean((1, 2, 3)), image[:, 0, :2, :2].sum((1, 2)) * 0.08), dim=1)

    image = torch.full((1, 3, 224, 224), 0.25)
    result = jsma(model, image, torch.tensor([0]), gamma=1e-4)
    changed = (result != image)[0].nonzero()
    assert len(changed) == 4
    assert changed[:, 0].max() == 0
    assert changed[:, 1:].max() == 1


def test_gamma_and_eps_bound_the_change_and_success_never_falls_as_they_grow():
    net = net_of(4, 48)
    image, target = batch_of(net, 40, (3, 4, 4))
    before = torch.zeros(40, dtype=torch.bool)
    for gamma in (0.0, 0.04, 0.08, 0.13, 0.3, 1.0):
        record = jsma(net, image, target, gamma=gamma, return_record=True)
        assert ((record.image != image).flatten(1).sum(1) <= gamma * 48).all()
        assert (before <= record.success).all()
        before = record.success
    assert before.float().mean() > 0.9
    found = before
    before = torch.zeros(40, dtype=torch.bool)
    for eps in (0.0, 0.5, 1.0, 1.5, 2.0, 7.0):
        record = jsma(net, image, target, gamma=1.0, eps=eps, return_record=True)
        assert (record.distance <= eps).all()
        assert (before <= record.success).all()
        before = record.success
    assert torch.equal(before, found)


def test_failure_returns_the_clean_image_without_success():
    # black is another class here, which is no success
    def model(image):
        total = image.sum((1, 2, 3))
        return torch.stack((total, 0.1 + 0 * total, 0.1 * total - 50), dim=1)

    image = torch.full((2, 1, 3, 3), 0.5)
    for aim in (1, 2):
        record = jsma(
            model, image, torch.tensor([0, 0]), toward=torch.tensor([aim, aim]), gamma=1.0, return_record=True
        )
        assert torch.equal(record.image, image)
        assert record.success.tolist() == [False, False]
        assert record.distance.tolist() == [0, 0]


def test_given_class_is_reached_and_a_rule_takes_any_other():
    net = net_of(5, 27)
    image, target = batch_of(net, 30)
    aim = (target + 2) % 5
    reached = jsma(net, image, target, toward=aim, gamma=1.0, return_record=True)
    answer = net(reached.image).argmax(1)
    assert reached.success.float().mean() > 0.8
    assert torch.equal(answer == aim, reached.success)
    changes = []
    for rule in ("second", "least_likely", "random"):
        record = jsma(net, image, target, toward=rule, gamma=1.0, return_record=True)
        assert record.success.float().mean() > 0.9
        assert torch.equal(net(record.image).argmax(1) != target, record.success)
        changes.append((record.image != image).sum().item())
    assert changes[0] < changes[1]


def test_random_class_comes_from_the_seeds_and_is_never_the_own():
    net = net_of(3, 27)
    image, target = batch_of(net, 20)
    first, again, other = (jsma(net, image, target, toward="random", seeds=torch.arange(20) + s) for s in (0, 0, 50))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_full_features_are_left_alone():
    net = net_of(3, 27)
    image, target = batch_of(net, 10)
    result = jsma(net, image, target, gamma=1.0)
    assert (result >= image).all()
    assert (result[:, :, 0, 0] == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": 0.0}, "theta=0.0"),
        ({"theta": 1.5}, "theta=1.5"),
        ({"gamma": 1.1}, "gamma=1.1"),
        ({"output": "loss"}, "output='loss' is unknown"),
        ({"norm": "linf"}, "norm='linf'"),
        ({"toward": "nearest"}, "toward='nearest' is unknown"),
        ({"toward": torch.tensor([0, 0])}, "own class"),
        ({"toward": torch.tensor([1, 3])}, "3 classes"),
        ({"toward": torch.tensor([1])}, "one int64 class per image"),
        ({"toward": torch.tensor([1.0, 2.0])}, "one int64 class per image"),
    ],
)
def test_wrong_option_is_named(change, message):
    image = torch.rand(2, 3, 3, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        jsma(net_of(3, 27), image, torch.tensor([0, 0]), **change)


def test_one_class_has_no_other():
    with pytest.raises(InputError, match="two classes"):
        jsma(net_of(1, 27), torch.rand(1, 3, 3, 3, dtype=torch.float64), torch.tensor([0]))
