from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.defenses import Coarse, Grain
from torch import Tensor, nn

from lightning_robust import seeds as streams
from lightning_robust.defenses import Defense, PixelDeflection, Purified, Sequence, majority
from lightning_robust.errors import InputError, NoEffectWarning
from lightning_robust.nn import RobustActivationMap


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def net(classes: int = 7) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, classes)).double()


def linear_in_double(model: nn.Module) -> nn.Module:
    return nn.Sequential(ToDouble(), model)


class ToDouble(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.double()


def _reference_majority(logits: Tensor) -> list[set[int]]:
    """Ballots counted one by one: the classes with most votes, and of these those of the highest mean probability."""
    mean = logits.double().softmax(dim=-1).mean(dim=0)
    winners = []
    for sample in range(logits.shape[1]):
        count = Counter(logits[:, sample].argmax(dim=-1).tolist())
        most = [label for label, votes in count.items() if votes == max(count.values())]
        best = max(mean[sample, label].item() for label in most)
        winners.append({label for label in most if mean[sample, label] > best - 1e-12})
    return winners


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 6), st.floats(0.01, 200))
def test_the_majority_wins_and_ties_go_to_the_higher_mean_probability(
    seed: int, runs: int, classes: int, scale: float
) -> None:
    logits = scale * torch.randn(runs, 4, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    voted = majority(logits)
    for winner, allowed in zip(voted.argmax(dim=1).tolist(), _reference_majority(logits), strict=True):
        assert winner in allowed
    torch.testing.assert_close(voted.exp().sum(dim=1), torch.ones(4, dtype=torch.float64))
    count = nn.functional.one_hot(logits.argmax(dim=-1), classes).sum(dim=0)
    torch.testing.assert_close(voted.exp(), (count + logits.softmax(dim=-1).mean(dim=0)) / (runs + 1))


def test_a_tie_is_broken_by_the_mean_probability_against_the_order_of_classes() -> None:
    logits = torch.tensor([[[3.0, 0.0, 0.0]], [[0.0, 4.0, 0.0]], [[3.0, 2.9, 0.0]], [[0.0, 4.0, 0.0]]])
    assert majority(logits).argmax().item() == 1
    assert majority(logits[..., [1, 0, 2]]).argmax().item() == 0


def test_few_sure_runs_do_not_outvote_many_unsure_ones() -> None:
    logits = torch.tensor([[[0.1, 0.0]]] * 6 + [[[0.0, 50.0]]] * 4)
    assert logits.softmax(dim=-1).mean(dim=0).argmax().item() == 1
    assert majority(logits).argmax().item() == 0


def test_extreme_logits_stay_finite_and_half_precision_is_counted_in_float32() -> None:
    logits = torch.tensor([[[0.0, -400.0]], [[0.0, -300.0]]], requires_grad=True)
    voted = majority(logits)
    assert torch.isfinite(voted).all()
    voted.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert majority(torch.zeros(2, 1, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_gradient_is_that_of_the_mean_probability() -> None:
    logits = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (found,) = torch.autograd.grad(majority(logits).exp().mul(6)[:, 1].sum(), logits)
    (wanted,) = torch.autograd.grad(logits.softmax(dim=-1).mean(dim=0)[:, 1].sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_one_vote_returns_the_models_own_logits() -> None:
    model, image, seeds = linear_in_double(net()), images(), torch.arange(5)
    assert torch.equal(Purified(model, Grain())(image, seeds=seeds), model(Grain()(image, seeds=seeds)))
    maps = nn.Conv2d(3, 2, 1)
    assert Purified(maps, Grain())(image).shape == (5, 2, 6, 6)


@pytest.mark.parametrize("votes_at_once", [None, 1, 4, 10, 50])
def test_votes_are_runs_with_streams_of_their_own(votes_at_once: int | None) -> None:
    model, image, seeds = linear_in_double(net()), images(), torch.arange(5)
    runs = [model(Grain()(image, seeds=streams.derive(seeds, "vote", run))) for run in range(10)]
    purified = Purified(model, Grain(), 10, votes_at_once=votes_at_once)
    torch.testing.assert_close(purified(image, seeds=seeds), majority(torch.stack(runs)))
    probability = torch.stack(runs).softmax(dim=-1).mean(dim=0)
    torch.testing.assert_close(purified.mean_log_probability(image, seeds=seeds).exp(), probability)


def test_runs_share_forward_passes_as_told() -> None:
    sizes: list[int] = []

    def model(image: Tensor) -> Tensor:
        sizes.append(len(image))
        return image.mean(dim=(2, 3))

    for votes_at_once, wanted in ((None, [15]), (2, [10, 5]), (1, [5, 5, 5])):
        sizes.clear()
        Purified(model, Grain(), 3, votes_at_once=votes_at_once)(images())
        assert sizes == wanted


def test_draws_come_from_pixels_and_seed() -> None:
    model, image = linear_in_double(net()), images()
    for votes in (1, 3):
        purified = Purified(model, Grain(), votes)
        whole = purified(image)
        torch.testing.assert_close(whole, torch.cat([purified(one[None]) for one in image]))
        assert torch.equal(whole, purified(image))
        assert not torch.allclose(whole, Purified(model, Grain(), votes, seed=1)(image))


def test_gradients_reach_the_image_and_the_model() -> None:
    model, image = net().float(), images().requires_grad_()
    Purified(model, Grain(), 4)(image)[:, 0].sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_votes_that_are_all_the_same_are_warned_of() -> None:
    with pytest.warns(NoEffectWarning, match="Coarse draws nothing at random"):
        Purified(net(), Coarse(), 10)
    with pytest.warns(NoEffectWarning):
        Purified(net(), Sequence([Coarse()]), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Purified(net(), Coarse())
        Purified(net(), Sequence([Coarse(), Grain()]), 2)


class MapOfNet(nn.Module):
    """What a defense asks of an activation map."""

    def __init__(self) -> None:
        super().__init__()
        self.nets: list[object] = []

    @property
    def is_bound(self) -> bool:
        return bool(self.nets)

    def bind(self, model: object) -> None:
        self.nets.append(model)


class Guided(Defense):
    def __init__(self) -> None:
        super().__init__()
        self.map = MapOfNet()

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        return image


def test_nets_and_stages_that_the_user_gave_are_shared_and_not_copied() -> None:
    given = net()
    defense = Sequence([Guided(), PixelDeflection(5, 2, RobustActivationMap(given)), Grain()])
    purified = Purified(net(), defense).defense
    assert purified is not defense
    assert purified.stages[0] is not defense.stages[0]  # type: ignore[union-attr, index]
    for one, other in zip(purified.stages[1:], defense.stages[1:], strict=True):  # type: ignore[union-attr, index]
        assert one is other


def test_an_unbound_activation_map_takes_the_model_and_a_bound_one_keeps_its_own() -> None:
    defense, first, second = Sequence([Guided(), Guided()]), net(), net()
    defense.stages[1].map.bind(first)  # type: ignore[union-attr, operator]
    for model in (first, second):
        purified = Purified(model, defense)
        free, taken = (stage.map.nets for stage in purified.defense.stages)  # type: ignore[union-attr]
        assert free == [model]
        assert len(taken) == 1
    assert not defense.stages[0].map.is_bound  # type: ignore[union-attr]
    plain = Grain()
    assert Purified(first, plain).defense is plain


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Purified(net(), nn.Identity()), "defense is a Identity"),  # type: ignore[arg-type]
        (lambda: Purified(net(), Grain(), 0), "votes=0"),
        (lambda: Purified(net(), Grain(), 2, votes_at_once=0), "votes_at_once=0"),
        (lambda: Purified(net(), Grain(), 2)(images()[0]), r"\(3, 6, 6\)"),
        (lambda: Purified(net(), Grain(), 2)(images() * 9), "Purify before the normalization"),
        (lambda: Purified(net(), Grain(), 2)(images(), seeds=torch.arange(3)), "one int64 per image"),
        (lambda: Purified(nn.Conv2d(3, 2, 1), Grain(), 2)(images()), "one row of class logits per image"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]
