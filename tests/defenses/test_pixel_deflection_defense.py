"""Pixel deflection as a defense."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_robust.defenses import PixelDeflection, Purified, Sequence
from lightning_robust.errors import InputError
from lightning_robust.functional import pixel_deflection
from lightning_robust.models import SmallCNN
from lightning_robust.nn import RobustActivationMap

IMAGE = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
SEEDS = torch.tensor([1, 2, 3])


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallCNN(3).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"protocol": "released"},
        {"sampling": "gaussian", "replacement": "mean"},
    ],
)
def test_equals_the_function(net, options):
    assert torch.equal(
        PixelDeflection(80, 4, **options)(IMAGE, seeds=SEEDS), pixel_deflection(IMAGE, 80, 4, **options, seeds=SEEDS)
    )
    make_map = RobustActivationMap(net)
    expected = pixel_deflection(IMAGE, 80, 4, make_map(IMAGE), **options, seeds=SEEDS)
    assert torch.equal(PixelDeflection(80, 4, make_map, **options)(IMAGE, seeds=SEEDS), expected)
    assert not torch.equal(expected, pixel_deflection(IMAGE, 80, 4, **options, seeds=SEEDS))


def test_any_callable_makes_maps():
    ones = PixelDeflection(activation_map=lambda image: torch.ones(len(image), *image.shape[2:]))
    assert torch.equal(ones(IMAGE), IMAGE)
    with pytest.raises(InputError, match="activation_map is a Tensor: give what makes maps"):
        PixelDeflection(activation_map=torch.ones(3, 20, 24))
    with pytest.raises(InputError, match=r"activation_map has the shape \(3, 1, 20, 24\)"):
        PixelDeflection(activation_map=lambda image: image[:, :1])(IMAGE)


def test_declares_what_it_is():
    defense = PixelDeflection()
    assert defense.is_random
    assert defense.is_differentiable
    assert not torch.equal(defense(IMAGE, seeds=SEEDS), defense(IMAGE, seeds=SEEDS + 1))


@pytest.mark.parametrize("mapped", [False, True])
def test_gradient_is_that_of_a_gather(net, mapped):
    defense = PixelDeflection(60, 3, RobustActivationMap(net) if mapped else None)
    leaf = IMAGE.clone().requires_grad_()
    direction = torch.randn(IMAGE.shape, generator=torch.Generator().manual_seed(1))
    purified = defense(leaf, seeds=SEEDS)
    (gradient,) = torch.autograd.grad((purified * direction).sum(), leaf)
    # linear in the image where the map is held fixed: its product with the image is the value itself
    torch.testing.assert_close((gradient * IMAGE).sum(), (purified * direction).sum())
    assert not torch.equal(gradient, direction)
    straight = defense.straight_through(leaf, seeds=SEEDS)
    assert torch.equal(straight, purified)
    assert torch.equal(torch.autograd.grad((straight * direction).sum(), leaf)[0], direction)


def test_the_net_of_the_map_is_not_part_of_the_defense(net):
    waiting = RobustActivationMap()
    defense = Sequence([PixelDeflection(50, 3, waiting), PixelDeflection(20, 3)])
    with pytest.raises(InputError, match="has no net"):
        defense(IMAGE)
    waiting.bind(net)
    purified = defense(IMAGE, seeds=SEEDS)
    assert waiting in set(defense.modules())
    assert not list(defense.parameters())
    assert not defense.state_dict()
    assert torch.equal(copy.deepcopy(defense)(IMAGE, seeds=SEEDS), purified)


def test_ten_votes_cost_one_pass_of_the_map_and_deflect_as_before(net):
    seen = []
    twin = copy.deepcopy(net)
    twin.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    defense = PixelDeflection(50, 3, RobustActivationMap(twin))
    guarded = Purified(net, defense, votes=10)
    guarded(IMAGE, seeds=SEEDS)
    assert seen == [3]
    copies, seeds = IMAGE.repeat(10, 1, 1, 1), torch.arange(30)
    maps = RobustActivationMap(net)(IMAGE).repeat(10, 1, 1)
    assert torch.equal(defense(copies, seeds=seeds), pixel_deflection(copies, 50, 3, maps, seeds=seeds))


def test_works_in_inference_mode_and_half_precision(net):
    defense = PixelDeflection(50, 3, RobustActivationMap(net))
    with torch.inference_mode():
        assert torch.equal(defense(IMAGE, seeds=SEEDS), defense(IMAGE.clone(), seeds=SEEDS))
    half = IMAGE.to(torch.bfloat16)
    assert defense(half, seeds=SEEDS).dtype == torch.bfloat16


@pytest.mark.parametrize("arguments", [{"deflections": -1}, {"window": 1.5}, {"protocol": "p"}, {"sampling": "s"}])
def test_wrong_options_are_refused_at_once(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        PixelDeflection(**arguments)
