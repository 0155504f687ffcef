"""Every attack through every promise of the contract: a new attack is one line in ATTACKS."""

from __future__ import annotations

import copy
import inspect
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_robust.attacks import AttackRecord, carlini_wagner, deepfool, fgsm, igsm, jsma, lbfgs, pgd
from lightning_robust.errors import InputError

# these raise a loss inside the ball
ASCENTS = {
    "fgsm": fgsm,
    "fgsm_l2": partial(fgsm, norm="l2"),
    "fgsm_rs": partial(fgsm, random_start=True),
    "pgd": partial(pgd, steps=4),
    "pgd_margin": partial(pgd, steps=4, loss="margin"),
    "pgd_l2": partial(pgd, steps=4, norm="l2"),
    "pgd_restarts": partial(pgd, steps=3, restarts=3),
    "pgd_early_stop": partial(pgd, steps=4, early_stop=True),
    "pgd_clean_start": partial(pgd, steps=4, random_start=False),
    "igsm": partial(igsm, steps=4),
}
# these look for a small change that fools the model; where it exceeds the budget the clean image comes back
MINIMA = {
    "deepfool": partial(deepfool, steps=10),
    "carlini_wagner": partial(carlini_wagner, steps=20, searches=3, learning_rate=0.05, constant=1.0),
    "lbfgs": partial(lbfgs, steps=20, searches=3, constant=1.0),
    "lbfgs_toward": partial(lbfgs, steps=20, searches=3, constant=1.0, toward="random"),
    "jsma": partial(jsma, gamma=1.0),
    "jsma_probabilities": partial(jsma, gamma=1.0, theta=-1.0, output="probabilities"),
}
ATTACKS = ASCENTS | MINIMA
# with the steps that it takes to come near the smallest change
THOROUGH = {
    "deepfool": partial(deepfool, steps=10),
    "carlini_wagner": partial(carlini_wagner, steps=200, searches=4, learning_rate=0.01, constant=1.0),
    "lbfgs": partial(lbfgs, steps=60, searches=3, constant=1.0),
}
every_ascent = pytest.mark.parametrize("attack", ASCENTS.values(), ids=ASCENTS)
every_minimum = pytest.mark.parametrize("attack", MINIMA.values(), ids=MINIMA)
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


class Net(nn.Module):
    """Convolution, BatchNorm, in-place activation and dropout: what attacks can disturb."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten()
        )
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, image):
        return self.head(self.body(image))


def net_of(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net()
        net(torch.rand(16, 3, 6, 6))
    return net.double()


def batch_of(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    image[:, :, 0], image[:, :, 1] = 0.0, 1.0
    return image.to(dtype), torch.randint(3, (count,), generator=generator)


def size_of(attack, change):
    change = change.flatten(1)
    return change.abs().amax(1) if norm_of(attack) == "linf" else change.norm(dim=1)


def norm_of(attack):
    return inspect.signature(attack).parameters["norm"].default


def predictions(net, image):
    with torch.no_grad():
        return net(image).argmax(1)


@every_attack
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    budgets=st.lists(st.sampled_from([0.0, 0.01, 8 / 255, 0.5, 3.0]), min_size=3, max_size=3),
)
def test_result_is_finite_in_the_box_and_within_each_budget(attack, seed, budgets):
    image, target = batch_of(3, seed)
    eps = torch.tensor(budgets, dtype=torch.float64)
    result = attack(net_of().eval(), image, target, eps=eps)
    assert result.shape == image.shape
    assert torch.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1
    assert (size_of(attack, result - image) <= eps * (1 + 1e-9)).all()
    assert torch.equal(result[eps == 0], image[eps == 0])


@every_attack
def test_result_is_detached_and_of_its_own_memory(attack):
    image, target = batch_of(2)
    image.requires_grad_()
    before = image.detach().clone()
    result = attack(net_of(), image, target, eps=0.1)
    assert not result.requires_grad
    assert result.data_ptr() != image.data_ptr()
    assert torch.equal(image.detach(), before)
    assert image.grad is None


@every_attack
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_model_is_left_as_it_was(attack, mode):
    net = net_of()
    net.train()
    net.body[1].eval()
    net.head.bias.requires_grad_(False)
    state = copy.deepcopy(net.state_dict())
    modes = [part.training for part in net.modules()]
    wishes = [parameter.requires_grad for parameter in net.parameters()]
    attack(net, *batch_of(4), eps=0.1, mode=mode)
    assert [part.training for part in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == wishes
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net.body[1].track_running_stats


@every_attack
def test_running_statistics_stay_in_train_mode_unless_told(attack):
    for keep in (True, False):
        net = net_of().train()
        before = net.body[1].running_mean.clone()
        attack(net, *batch_of(4), eps=0.1, mode="train", keep_statistics=keep)
        assert torch.equal(net.body[1].running_mean, before) is keep
        assert bool(net.body[1].num_batches_tracked == 1) is keep


@every_attack
def test_model_is_restored_when_it_raises(attack):
    net = net_of().train()

    def fail(*_):
        raise RuntimeError("no")

    net.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        attack(net, *batch_of(2), eps=0.1, mode="train")
    assert net.training
    assert net.body[1].track_running_stats
    assert all(parameter.requires_grad for parameter in net.parameters())


@every_attack
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_global_random_state_is_left_alone(attack, mode):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    attack(net_of().train(), *batch_of(4), eps=0.1, mode=mode)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_attack
def test_result_does_not_depend_on_the_split(attack):
    net, (image, target) = net_of(), batch_of(7)
    seeds = torch.arange(100, 107)
    whole = attack(net, image, target, eps=0.1, seeds=seeds)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    parts = [attack(net, image[i], target[i], eps=0.1, seeds=seeds[i]) for i in order.split([1, 2, 4])]
    torch.testing.assert_close(torch.cat(parts), whole[order], rtol=0, atol=1e-9)


@every_attack
def test_seeds_default_to_the_position(attack):
    net, (image, target) = net_of(), batch_of(4)
    assert torch.equal(attack(net, image, target, eps=0.1), attack(net, image, target, eps=0.1))


@every_attack
@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_works_where_gradients_are_off(attack, context):
    net = net_of().eval()
    image, target = batch_of(3)
    expected = attack(net, image, target, eps=0.1)
    with context():
        image, target, eps, seeds = image.clone(), target.clone(), torch.full((3,), 0.1).clone(), None
        result = attack(net, image, target, eps=eps.double(), seeds=seeds)
        again = net(result)
    torch.testing.assert_close(result, expected)
    assert not result.is_inference()
    assert again.is_inference() == (context is torch.inference_mode)


@every_attack
def test_autocast_is_off_inside(attack):
    seen = []
    net = net_of().float().eval()
    net.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    image, target = batch_of(2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = attack(net, image, target, eps=0.1)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.float32}
    assert result.dtype == torch.float32


@every_attack
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_stay_within_the_budget(attack, dtype):
    net = net_of().float().eval()
    image, _ = batch_of(4, dtype=dtype)
    target, eps = predictions(net, image.float()), torch.tensor([0.0, 0.01, 3.0, 0.3])
    result = attack(net, image, target, eps=eps)
    assert result.dtype == dtype
    assert ((result >= 0) & (result <= 1)).all()
    assert (size_of(attack, result.float() - image.float()) <= eps * (1 + 1e-5)).all()
    assert torch.equal(result[0], image[0])
    assert not torch.equal(result[2], image[2])


@every_attack
def test_model_in_bfloat16_is_attacked_in_its_own_precision(attack):
    net = net_of().to(torch.bfloat16).eval()
    image, _ = batch_of(2, dtype=torch.bfloat16)
    eps = 1.0 if norm_of(attack) == "linf" else 3.0
    result = attack(net, image, predictions(net, image), eps=eps)
    assert (size_of(attack, result.float() - image.float()) > 0).all()
    assert torch.equal(attack(net.forward, image, predictions(net, image), eps=eps), result)


@every_attack
def test_not_a_number_leaves_the_clean_image_or_the_start(attack):
    def broken(image):
        return image.flatten(1)[:, :3] * torch.nan

    image, target = batch_of(3)
    result = attack(broken, image, target, eps=0.1)
    assert torch.isfinite(result).all()
    assert (size_of(attack, result - image) <= 0.1 + 1e-9).all()


@every_attack
def test_record_is_judged_on_the_returned_image(attack):
    net, (image, target) = net_of().eval(), batch_of(6)
    record = attack(net, image, target, eps=0.2, return_record=True)
    assert isinstance(record, AttackRecord)
    assert torch.equal(record.image, attack(net, image, target, eps=0.2))
    with torch.no_grad():
        assert torch.equal(record.success, net(record.image).argmax(1) != target)
    torch.testing.assert_close(record.distance, size_of(attack, record.image - image))
    assert not record.loss.requires_grad


@every_attack
def test_function_and_bound_method_are_models_too(attack):
    net, (image, target) = net_of().eval(), batch_of(2)
    expected = attack(net, image, target, eps=0.1)
    assert torch.equal(attack(lambda x: net(x), image, target, eps=0.1), expected)
    net.train()
    assert torch.equal(attack(net.forward, image, target, eps=0.1), expected)
    assert net.training


@every_ascent
def test_loss_of_the_user_serves_multi_label_targets(attack):
    net, (image, _) = net_of().eval(), batch_of(3)
    target = torch.eye(3, dtype=torch.float64)

    def loss_fn(logits, target):
        return nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)

    record = attack(net, image, target, eps=0.1, loss_fn=loss_fn, return_record=True)
    assert record.success is None
    with torch.no_grad():
        assert (record.loss > loss_fn(net(image), target)).all()


@every_attack
def test_shift_of_the_logits_changes_nothing(attack):
    net, (image, target) = net_of().eval(), batch_of(4)
    results = [attack(lambda x, c=c: net(x) + c, image, target, eps=0.1) for c in (0.0, -30.0, 30.0)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-7)


@every_attack
def test_bound_of_one_fools_a_model_everywhere(attack):
    image, target = batch_of(8)
    weight = torch.randn(3, image[0].numel(), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weight -= weight.mean(1, keepdim=True)
    record = attack(
        lambda x: (x - 0.5).flatten(1) @ weight.T,
        image,
        target,
        eps=1.0 if norm_of(attack) == "linf" else 20.0,
        return_record=True,
    )
    assert record.success.all()


@every_attack
def test_class_indices_may_have_any_integer_type(attack):
    net, (image, target) = net_of().eval(), batch_of(3)
    expected = attack(net, image, target, eps=0.1)
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(attack(net, image, target.to(dtype), eps=0.1), expected)


@every_attack
def test_empty_batch_comes_back_empty(attack):
    image, target = batch_of(2)
    assert attack(net_of(), image[:0], target[:0], eps=0.1).shape == (0, 3, 6, 6)


@every_attack
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.full((2, 3, 6, 6), 2.0)}, r"lie in \[2, 2\].*Put the normalization inside"),
        ({"image": torch.full((2, 3, 6, 6), torch.nan)}, "hold NaN or infinite values"),
        ({"image": torch.zeros(2, 3, 6, 6, dtype=torch.uint8)}, "float images"),
        ({"image": torch.zeros(3, 6, 6)}, r"shape \(B, C, H, W\)"),
        ({"target": torch.tensor([0])}, "one row per image"),
        ({"target": torch.tensor([0, 3])}, r"class 3.*3 classes"),
        ({"target": torch.tensor([-1, 0])}, r"class -1.*3 classes"),
        ({"target": torch.tensor([False, True])}, "targets are booleans.*give class indices"),
        ({"eps": -0.1}, "eps=-0.1 is not a budget"),
        ({"eps": torch.rand(3)}, r"eps has shape \(3,\) for 2 images"),
        ({"seeds": torch.tensor([0, 1], dtype=torch.int32)}, "one int64 per image"),
        ({"norm": "l1"}, "norm='l1'"),
        ({"mode": "test"}, "mode='test' is unknown"),
        ({"model": lambda image: {"logits": image}}, "returned dict for 2 images"),
        ({"model": lambda image: image.detach().flatten(1)[:, :3]}, "differentiable operations"),
    ],
)
def test_wrong_input_is_named(attack, change, message):
    image, target = batch_of(2)
    arguments = {"model": net_of(), "image": image, "target": target, "eps": 0.1} | change
    model, image, target = (arguments.pop(name) for name in ("model", "image", "target"))
    with pytest.raises(InputError, match=message):
        attack(model, image, target, **arguments)


@every_ascent
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge' is unknown"),
        ({"loss_fn": lambda logits, target: logits.sum()}, "one value per sample"),
    ],
)
def test_wrong_loss_is_named(attack, change, message):
    with pytest.raises(InputError, match=message):
        attack(net_of(), *batch_of(2), eps=0.1, **change)


@every_attack
def test_first_layer_may_change_its_input_in_place(attack):
    net, (image, target) = net_of().eval(), batch_of(3)
    expected = attack(lambda x: net((x - 0.4) / 0.3), image, target, eps=0.5)
    assert torch.equal(attack(lambda x: net(x.sub_(0.4).div_(0.3)), image, target, eps=0.5), expected)


@every_attack
def test_misclassified_image_counts_as_success(attack):
    net, (image, _) = net_of().eval(), batch_of(4)
    target = (predictions(net, image) + 1) % 3
    assert attack(net, image, target, eps=0.1, return_record=True).success.all()


@every_minimum
def test_misclassified_image_comes_back_as_it_is(attack):
    net, (image, _) = net_of().eval(), batch_of(4)
    target = predictions(net, image)
    target[1] = (target[1] + 1) % 3
    record = attack(net, image, target, return_record=True)
    assert record.success.all()
    assert torch.equal(record.image[1], image[1])
    assert (record.distance > 0).tolist() == [True, False, True, True]


@every_minimum
def test_failure_returns_the_clean_image(attack):
    # the first class wins whatever the image, also a black one
    def stubborn(image):
        return torch.stack([image.sum((1, 2, 3)) * 1e-3 + 50, image.sum((1, 2, 3))], dim=1).clamp(max=60)

    image = batch_of(3)[0] * 0.1
    record = attack(stubborn, image, torch.zeros(3, dtype=torch.long), eps=2.0, return_record=True)
    assert not record.success.any()
    assert torch.equal(record.image, image)
    assert (record.distance == 0).all()


@every_minimum
def test_budget_only_decides_what_is_kept(attack):
    net, (image, _) = net_of().eval(), batch_of(8)
    target = predictions(net, image)
    free = attack(net, image, target, return_record=True)
    assert free.success.all()
    successes = []
    for eps in [0.0, *free.distance.sort().values.tolist()]:
        record = attack(net, image, target, eps=eps, return_record=True)
        within = free.distance <= eps
        assert torch.equal(record.success, within)
        assert torch.equal(record.image, torch.where(within.view(-1, 1, 1, 1), free.image, image))
        successes.append(int(record.success.sum()))
    assert successes == sorted(successes)
    assert (successes[0], successes[-1]) == (0, 8)


@pytest.mark.parametrize("attack", THOROUGH.values(), ids=THOROUGH)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)).filter(lambda s: s[0] * s[1] * s[2] > 7),
    classes=st.integers(2, 12),
)
def test_linear_model_is_fooled_by_almost_the_smallest_change(attack, seed, count, shape, classes):
    generator = torch.Generator().manual_seed(seed)
    image = 0.4 + 0.2 * torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, image[0].numel(), generator=generator, dtype=torch.float64)
    # the bias puts the nearest boundary of the first image 0.1 away, inside the box
    target = torch.full((count,), 0)
    gaps = image[:1].flatten(1) @ (weight[0] - weight).T
    lengths = (weight[0] - weight).norm(dim=1)
    bias = gaps[0] - lengths * 0.1 * (1 + torch.rand(classes, generator=generator, dtype=torch.float64))

    def model(x):
        return x.flatten(1) @ weight.T + bias

    clean = model(image)
    distances = (clean[:, :1] - clean)[:, 1:] / lengths[1:]
    optimum = distances.amin(1).clamp(min=0)
    record = attack(model, image, target, return_record=True)
    near = optimum < 0.2
    assert near[0]
    assert record.success[near].all()
    assert (record.distance[near] <= 1.25 * optimum[near] + 2e-4).all()
    assert (record.distance[near] >= optimum[near] * (1 - 1e-9)).all()


@every_minimum
@pytest.mark.parametrize("target", [torch.eye(3, dtype=torch.float64)[:2], torch.rand(2, dtype=torch.float64)])
def test_targets_without_a_class_are_refused(attack, target):
    with pytest.raises(InputError, match="needs class indices"):
        attack(net_of(), batch_of(2)[0], target)
