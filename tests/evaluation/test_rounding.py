from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.evaluation.rounding import receive, round_to_8_bits, straight_through_8_bits


def images(seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    published = round_to_8_bits(torch.rand(3, 3, 6, 6, generator=generator))
    return published, spread * (2 * torch.rand(3, 3, 6, 6, generator=generator) - 1)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), levels=st.floats(0, 40))
def test_linf_keeps_the_budget_and_rounds_to_the_nearest_inside(seed, levels):
    published, change = images(seed)
    adversarial = (published + levels / 255 * change).clamp(0, 1)
    received = receive(adversarial, published, eps=levels / 255, norm="linf")
    moved = (received - published) * 255
    torch.testing.assert_close(moved, moved.round(), rtol=0, atol=1e-4)
    assert moved.abs().max() <= levels + 1e-3
    off = (received - adversarial).abs() * 255
    # half a level where the budget allows it, else less than one
    assert off.max() <= 1
    assert (off[(moved.abs() + 1) <= levels] <= 0.5 + 1e-3).all()


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), eps=st.floats(0, 1))
def test_l2_keeps_the_budget(seed, eps):
    published, change = images(seed)
    change = change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    adversarial = (published + eps * change).clamp(0, 1)
    received = receive(adversarial, published, eps=eps, norm="l2")
    levels = received * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert ((received - published).flatten(1).norm(dim=1) <= eps * (1 + 1e-3) + 1e-6).all()


def test_l2_keeps_most_of_a_change_of_many_small_values():
    published = torch.full((1, 3, 32, 32), 128 / 255)
    change = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    adversarial = published + 0.5 * change / change.norm()
    received = receive(adversarial, published, eps=0.5, norm="l2")
    assert 0.9 * 0.5 < (received - published).norm() <= 0.5 * 1.001


def test_straight_through_rounds_with_the_gradient_of_the_identity():
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    rounded = straight_through_8_bits(image)
    torch.testing.assert_close(rounded, round_to_8_bits(image))
    (gradient,) = torch.autograd.grad((rounded * 3).sum(), image)
    assert (gradient == 3).all()
