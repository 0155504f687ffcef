from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_robust.attacks import bpda, pgd
from lightning_robust.defenses import Defense, PixelDeflection
from lightning_robust.errors import InputError
from lightning_robust.models import SmallCNN
from lightning_robust.nn import RobustActivationMap


class Coarse(Defense):
    """Noise of the seeds, rounded: no gradient of its own; the stand-in doubles it."""

    is_random = True

    def purify(self, image, seeds):
        return ((image + (seeds % 7).view(-1, 1, 1, 1) / 20) * 4).round() / 4

    def surrogate(self, image, seeds):
        return 2 * image


def leaf_of(count=3, seed=0, size=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64).requires_grad_()


def slope_of(value, leaf, weight):
    return torch.autograd.grad((value * weight).sum(), leaf)[0]


def test_defense_gives_its_own_value_and_the_gradient_of_its_surrogate():
    defense, leaf, weight = Coarse(), leaf_of(), leaf_of(seed=1).detach()
    value = bpda(defense)(leaf)
    assert torch.equal(value, defense(leaf))
    torch.testing.assert_close(slope_of(value, leaf, weight), 2 * weight)


def test_seeds_reach_the_defense():
    defense, leaf = Coarse(), leaf_of()
    seeds = torch.arange(3)
    assert torch.equal(bpda(defense)(leaf, seeds=seeds), defense(leaf, seeds=seeds))
    assert not torch.equal(bpda(defense)(leaf, seeds=seeds), defense(leaf, seeds=seeds + 3))
    with_model = bpda(defense, nn.Flatten())(leaf, seeds=seeds)
    assert torch.equal(with_model, defense(leaf, seeds=seeds).flatten(1))


def test_an_activation_map_without_a_net_is_taken_from_the_attacked_one():
    net, image = SmallCNN(3).eval(), leaf_of(2, size=16).detach().float()
    defense = PixelDeflection(20, 3, RobustActivationMap())
    value = bpda(defense, net)(image, seeds=torch.arange(2))
    assert torch.equal(value, net(PixelDeflection(20, 3, RobustActivationMap(net))(image, seeds=torch.arange(2))))
    assert not defense.activation_map.is_bound
    with pytest.raises(InputError, match="has no net"):
        bpda(defense)(image)


def test_any_callable_gets_the_identity_and_may_leave_torch():
    def by_numpy(image):
        return torch.from_numpy(image.numpy().round(1))

    leaf, weight = leaf_of(), leaf_of(seed=1).detach()
    value = bpda(by_numpy)(leaf)
    assert torch.equal(value, by_numpy(leaf.detach()))
    torch.testing.assert_close(slope_of(value, leaf, weight), weight, rtol=0, atol=0)


def test_surrogate_gives_the_gradient_also_against_the_defenses_own():
    leaf, weight = leaf_of(), leaf_of(seed=1).detach()
    expected = slope_of(leaf**3, leaf, weight)
    for defense in (torch.round, Coarse()):
        value = bpda(defense, surrogate=lambda image: image**3)(leaf)
        assert torch.equal(value, defense(leaf))
        torch.testing.assert_close(slope_of(value, leaf, weight), expected)


def test_surrogate_of_another_size():
    def shrink(image):
        return F.avg_pool2d(image, 2).round()

    leaf = leaf_of()
    with pytest.raises(InputError, match=r"\(3, 3, 2, 2\).*stand-in into \(3, 3, 4, 4\)"):
        bpda(shrink)(leaf)
    value = bpda(shrink, surrogate=lambda image: F.avg_pool2d(image, 2))(leaf)
    assert torch.equal(value, shrink(leaf))
    assert torch.equal(slope_of(value, leaf, 1), torch.full_like(leaf, 0.25))


def test_type_of_the_image_is_kept():
    leaf = leaf_of().float().detach()
    assert bpda(lambda image: image.double())(leaf).dtype == torch.float32


def test_modules_inside_follow_mode_and_are_frozen_by_an_attack():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    attacked = bpda(Coarse(), net)
    assert not attacked.eval().model.training
    image = leaf_of().detach()
    target = net(Coarse()(image)).argmax(1)
    record = pgd(attacked, image, target, eps=0.3, return_record=True)
    blind = pgd(nn.Sequential(Coarse(), net), image, target, eps=0.3, random_start=False, return_record=True)
    assert record.loss.sum() > blind.loss.sum()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
