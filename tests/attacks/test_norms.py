from __future__ import annotations

import pytest
import torch

from lightning_robust.attacks.norms import L2, Linf

NORMS = [Linf(), L2()]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
def test_direction_is_the_steepest_unit_step(norm):
    gradient = normal(5, 2, 3, 4)
    direction = norm.direction(gradient)
    torch.testing.assert_close(norm.size(direction), torch.ones(5, dtype=torch.float64))
    gain = (gradient * direction).flatten(1).sum(1)
    # no unit step gains more than the dual norm of the gradient
    dual = gradient.abs().flatten(1).sum(1) if isinstance(norm, Linf) else gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close(gain, dual)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_direction_survives_tiny_and_huge_gradients(norm, scale):
    direction = norm.direction((normal(3, 2, 3, 4) * scale).float())
    expected = 0.0 if scale == 0 else 1.0
    torch.testing.assert_close(norm.size(direction), torch.full((3,), expected))


@pytest.mark.parametrize("norm", NORMS)
def test_projection_keeps_what_is_inside_and_lands_on_the_ball(norm):
    change, eps = normal(4, 2, 3, 4), torch.tensor([0.0, 0.1, 1.0, 100.0], dtype=torch.float64).view(-1, 1, 1, 1)
    projected = norm.project(change, eps)
    torch.testing.assert_close(norm.size(projected), torch.minimum(norm.size(change), eps.flatten()))
    assert torch.equal(projected[3], change[3])


def test_linf_start_is_uniform_in_the_box():
    start = Linf().start(torch.arange(500), torch.zeros(500, 2, 3, 4), torch.tensor(0.5))
    assert start.abs().max() <= 0.5
    assert start.mean().abs() < 0.01
    assert start.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.02)


def test_l2_start_is_uniform_in_the_ball():
    start = L2().start(torch.arange(4000), torch.zeros(4000, 1, 1, 3), torch.tensor(2.0))
    radius = L2().size(start) / 2
    assert radius.max() <= 1 + 1e-6
    # volume below r is r^3 in three dimensions
    for quantile in (0.25, 0.5, 0.75):
        assert (radius**3 < quantile).float().mean().item() == pytest.approx(quantile, abs=0.03)
    assert (start.mean(0).abs() < 0.1).all()
