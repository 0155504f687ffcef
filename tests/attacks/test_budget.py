from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.attacks import normalized_l2, scale_to_budget
from lightning_robust.errors import InputError


def pair(seed, shape=(3, 3, 5, 4), reach=0.3):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(shape, generator=generator, dtype=torch.float64)
    return image, (image + reach * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)


def test_readings_by_hand():
    image, adversarial = torch.zeros(1, 3, 2, 4), torch.zeros(1, 3, 2, 4)
    image[0, 0, 0, :] = 0.5
    adversarial[:] = image
    adversarial[0, 1, 1, 0], adversarial[0, 2, 1, 0] = 0.3, 0.4
    size = normalized_l2(image, adversarial)
    assert size.relative.item() == pytest.approx(0.5, rel=1e-6)
    assert size.rmse.item() == pytest.approx(0.5 / math.sqrt(24), rel=1e-6)
    assert size.hw.item() == pytest.approx(0.5 / math.sqrt(8), rel=1e-6)


def test_black_image_has_no_relative_size():
    black = torch.zeros(2, 1, 2, 2)
    changed = torch.stack([black[0], black[1] + 0.1])
    assert normalized_l2(black, changed).relative.tolist() == [0, math.inf]
    assert torch.equal(scale_to_budget(black, changed, 0.1), black)


@pytest.mark.parametrize("measure", ["relative", "rmse", "hw"])
@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), budget=st.floats(0, 0.3))
def test_every_sample_meets_the_budget_along_its_own_change(measure, seed, budget):
    image, adversarial = pair(seed)
    scaled = scale_to_budget(image, adversarial, budget, measure=measure)
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    size = getattr(normalized_l2(image, scaled), measure)
    torch.testing.assert_close(size, torch.full_like(size, budget), rtol=1e-6, atol=1e-9)
    # a value that was not clipped moved by the one factor of its image
    change, moved = adversarial - image, scaled - image
    free = (scaled > 0) & (scaled < 1) & (change.abs() > 1e-3)
    for one, part, kept in zip(moved, change, free, strict=True):
        factors = (one / part)[kept]
        if len(factors):
            assert factors.max() - factors.min() < 1e-6 * factors.max() + 1e-9


def test_budget_may_differ_by_sample_and_stretch_or_shrink():
    image, adversarial = pair(1, reach=0.01)
    before = normalized_l2(image, adversarial).relative
    budget = before * torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    after = normalized_l2(image, scale_to_budget(image, adversarial, budget)).relative
    torch.testing.assert_close(after, budget, rtol=1e-6, atol=0)


def test_change_that_the_box_stops_ends_as_long_as_it_can():
    image = torch.full((2, 1, 2, 2), 0.5)
    adversarial = image.clone()
    adversarial[0, 0, 0, 0] = 0.5 + 1e-3
    scaled = scale_to_budget(image, adversarial, 0.9, measure="rmse")
    assert scaled[0, 0].flatten().tolist() == [1, 0.5, 0.5, 0.5]
    assert torch.equal(scaled[1], image[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0.1), "each image its own"),
        ((torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), -0.1), "budget=-0.1"),
        ((torch.full((1, 1, 2, 2), 3.0), torch.zeros(1, 1, 2, 2), 0.1), "lie in"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        scale_to_budget(*arguments)


def test_unknown_measure_is_named():
    with pytest.raises(InputError, match="measure='l1' is unknown"):
        scale_to_budget(*pair(0), 0.1, measure="l1")
