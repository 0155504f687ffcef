from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_robust import seeds as streams
from lightning_robust.attacks import bpda, eot, lbfgs, pgd
from lightning_robust.defenses import Defense, Purified
from lightning_robust.errors import InputError, NoEffectWarning


class Noise(Defense):
    """Noise of the seeds; differentiable."""

    is_random = True

    def purify(self, image, seeds):
        return image + 0.2 * (streams.uniform(seeds, tuple(image.shape[1:])).to(image) - 0.5)


class Noisy(nn.Module):
    """A net behind noise of the seeds."""

    def __init__(self, classes=3, size=12, hidden=8):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Flatten(), nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, classes)
            ).double()
        self.batches = []

    def forward(self, image, *, seeds=None):
        self.batches.append(len(image))
        noise = streams.uniform(seeds, tuple(image.shape[1:])).to(image)
        return 5 * self.net(image + 2 * (noise - 0.5))


def leaf_of(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()


def loss_of(logits, target=(0, 1, 2)):
    return nn.functional.cross_entropy(logits, torch.tensor(target)[: len(logits)], reduction="sum")


def draws_of(model, leaf, n, seed=0, base=None):
    """The answers of the draws, one forward pass each."""
    base = streams.of_content(leaf) if base is None else base
    return torch.stack([model(leaf, seeds=streams.derive(base, "eot", seed, draw)) for draw in range(n)])


@settings(max_examples=15)
@given(
    n=st.integers(1, 9), at_once=st.none() | st.integers(1, 10), average=st.sampled_from(["probabilities", "logits"])
)
def test_answer_and_gradient_are_those_of_the_mean_by_hand(n, at_once, average):
    model, leaf = Noisy(), leaf_of()
    answer = eot(model, n, average=average, draws_at_once=at_once)(leaf)
    draws = draws_of(model, leaf, n)
    if average == "logits":
        expected = sum(draws) / n
        (by_hand,) = torch.autograd.grad(loss_of(expected), leaf, retain_graph=True)
    else:
        p = [draw.softmax(1) for draw in draws]
        expected = (sum(p) / n).log()
        # the loss of the mean: each draw's gradient weighs by its own probability of the class
        own = torch.stack([part[torch.arange(3), torch.arange(3)] for part in p])
        grads = [torch.autograd.grad(part.sum(), leaf, retain_graph=True)[0] for part in own]
        by_hand = -sum(grads) / own.sum(0).view(3, 1, 1, 1)
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(torch.autograd.grad(loss_of(answer), leaf)[0], by_hand)


def test_losses_here_are_never_above_the_mean_of_the_losses():
    model, leaf = Noisy(), leaf_of()
    mean_of_losses = torch.stack([loss_of(draw) for draw in draws_of(model, leaf, 20)]).mean()
    for average in ("probabilities", "logits"):
        assert loss_of(eot(model, 20, average=average)(leaf)) < mean_of_losses


def test_mean_probabilities_sum_to_one():
    answer = eot(Noisy(), 7)(leaf_of())
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(("at_once", "batches"), [(None, [15]), (2, [6, 6, 3]), (5, [15]), (9, [15])])
def test_draws_share_forward_passes(at_once, batches):
    model = Noisy()
    eot(model, 5, draws_at_once=at_once)(leaf_of().detach())
    assert model.batches == batches


def test_fewer_draws_at_once_keep_less_for_the_backward_pass():
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    for at_once in (None, 1):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            eot(Noisy(hidden=500), 64, draws_at_once=at_once)(leaf_of())
        kept.append(-1)
    whole, parts = sum(kept[: kept.index(-1)]), sum(kept[kept.index(-1) + 1 : -1])
    assert parts < whole / 10


def test_draws_depend_on_content_or_seeds_not_on_place():
    model = eot(Noisy(), 4)
    leaf = leaf_of(5).detach()
    whole = model(leaf)
    torch.testing.assert_close(torch.cat([model(leaf[3:]), model(leaf[:3])]), whole[[3, 4, 0, 1, 2]])
    seeds = torch.arange(5)
    seeded = model(leaf, seeds=seeds)
    assert not torch.allclose(seeded, whole)
    torch.testing.assert_close(model(leaf[2:4], seeds=seeds[2:4]), seeded[2:4])
    torch.testing.assert_close(seeded, draws_log_mean(draws_of(Noisy(), leaf, 4, base=seeds)))
    assert not torch.allclose(eot(Noisy(), 4, seed=1)(leaf), whole)
    with pytest.raises(InputError, match="one int64 per image"):
        model(leaf, seeds=seeds[:2])


def draws_log_mean(draws):
    return draws.softmax(-1).mean(0).log()


def test_next_point_has_new_draws():
    seen = []

    def model(image, *, seeds):
        seen.extend(seeds.tolist())
        return image.flatten(1)

    leaf = leaf_of().detach()
    eot(model, 4)(leaf)
    eot(model, 4)(leaf + 1e-3)
    assert len(set(seen)) == 24


@pytest.mark.parametrize("attack", [pgd, lbfgs])
def test_attack_takes_it_and_does_not_couple_the_batch(attack):
    model = eot(bpda(Noise(), Noisy().net), 6)
    image = leaf_of(4).detach()
    target = model(image).argmax(1)
    eps = 0.6 if attack is pgd else None
    seeds = torch.arange(4)
    before = torch.random.get_rng_state()
    whole = attack(model, image, target, eps=eps, seeds=seeds, steps=15)
    parts = [attack(model, image[i], target[i], eps=eps, seeds=seeds[i], steps=15) for i in ([0, 3], [1, 2])]
    torch.testing.assert_close(torch.cat(parts), whole[[0, 3, 1, 2]], rtol=0, atol=1e-6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(whole, image)


def test_purified_model_draws_anew():
    model, leaf = Purified(Noisy().net, Noise()), leaf_of()
    answer = eot(model, 5)(leaf)
    torch.testing.assert_close(answer, draws_log_mean(draws_of(model, leaf, 5)))


def test_model_without_seeds_is_called_as_often_and_draws_by_itself():
    net = Noisy().net
    calls = []

    def model(image):
        calls.append(len(image))
        return net(image + torch.randn(1, dtype=image.dtype))

    torch.manual_seed(4)
    leaf = leaf_of()
    answer = eot(model, 3)(leaf)
    assert calls == [3, 3, 3]
    torch.manual_seed(4)
    torch.testing.assert_close(answer, draws_log_mean(torch.stack([model(leaf) for _ in range(3)])))


def test_draws_that_are_all_the_same_are_told():
    model = nn.Sequential(Noise(), Noisy().net)
    with pytest.warns(NoEffectWarning, match="All 4 draws gave the same answer"):
        answer = eot(model, 4)(leaf_of())
    torch.testing.assert_close(answer, model(leaf_of()).log_softmax(1))
    eot(model, 1)(leaf_of())


def test_log_of_the_mean_survives_confident_draws():
    def model(image, *, seeds):
        return torch.where(seeds[:, None] % 2 == 0, 1.0, -1.0) * torch.tensor([500.0, -500.0])

    answer = eot(model, 64)(torch.rand(1, 1, 1, 2))
    assert torch.isfinite(answer).all()
    assert answer.exp().sum().item() == pytest.approx(1)
    assert math.isclose(answer.exp()[0, 0].item() * 64, round(answer.exp()[0, 0].item() * 64), abs_tol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"n": 0}, "n=0"), ({"draws_at_once": 0}, "draws_at_once=0"), ({"average": "losses"}, "average='losses'")],
)
def test_wrong_option_is_named(change, message):
    with pytest.raises(InputError, match=message):
        eot(**({"model": Noisy(), "n": 3} | change))


def test_answer_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"returned dict for 6 images"):
        eot(lambda image, *, seeds: {"logits": image}, 2)(leaf_of())
    with pytest.raises(InputError, match=r"shape \(1, 3\) for 6 images"):
        eot(lambda image, *, seeds: torch.zeros(1, 3), 2)(leaf_of())
