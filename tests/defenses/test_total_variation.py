from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.restoration import denoise_tv_chambolle

from lightning_robust import seeds as streams
from lightning_robust.defenses import TotalVariationChambolle, TotalVariationMinimization
from lightning_robust.errors import InputError


def images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_chambolle_equals_the_golden_array(golden):
    image = torch.from_numpy(golden["rgb_even"]).permute(2, 0, 1)[None]
    expected = torch.from_numpy(golden["tv_chambolle_default"]).permute(2, 0, 1)[None]
    torch.testing.assert_close(TotalVariationChambolle()(image), expected, rtol=0, atol=1e-5)


@settings(max_examples=15)
@given(height=st.integers(2, 12), width=st.integers(2, 12), weight=st.floats(0.02, 0.5), iterations=st.integers(1, 60))
def test_chambolle_equals_scikit_image_and_stops_each_channel_where_it_does(height, width, weight, iterations):
    image = images(2, height, width)
    # channels that converge at different steps
    image[0, 1] *= 0.1
    image[1, 2] = image[1, 2].round()
    found = TotalVariationChambolle(weight=weight, iterations=iterations)(image)
    for one, expected in zip(found, image, strict=True):
        reference = denoise_tv_chambolle(expected.numpy(), weight, max_num_iter=iterations, channel_axis=0)
        np.testing.assert_allclose(one.numpy(), reference.clip(0, 1), rtol=0, atol=1e-12)


def _reference_minimum(image: np.ndarray, kept: np.ndarray, weight: float) -> np.ndarray:
    """Split Bregman (ADMM) with the linear system solved exactly."""
    height, width = image.shape
    index = np.arange(image.size).reshape(height, width)
    down = np.zeros((image.size, image.size))
    right = np.zeros_like(down)
    for here, there in zip(index[:-1].ravel(), index[1:].ravel(), strict=True):
        down[here, [here, there]] = -1, 1
    for here, there in zip(index[:, :-1].ravel(), index[:, 1:].ravel(), strict=True):
        right[here, [here, there]] = -1, 1
    data, penalty = np.diag(2.0 * kept.ravel()), 0.3 * weight / 0.03
    system = np.linalg.inv(data + penalty * (down.T @ down + right.T @ right))
    split, multiplier = np.zeros((2, image.size)), np.zeros((2, image.size))
    for _ in range(4000):
        target = split - multiplier
        solution = system @ (data @ image.ravel() + penalty * (down.T @ target[0] + right.T @ target[1]))
        slope = np.stack([down @ solution, right @ solution]) + multiplier
        length = np.sqrt((slope**2).sum(0)).clip(1e-30)
        split = slope * (1 - weight / penalty / length).clip(0)
        multiplier = slope - split
    return solution.reshape(height, width)


def _objective(solution: np.ndarray, image: np.ndarray, kept: np.ndarray, weight: float) -> float:
    down, right = np.zeros_like(image), np.zeros_like(image)
    down[:-1], right[:, :-1] = np.diff(solution, axis=0), np.diff(solution, axis=1)
    return float((kept * (solution - image) ** 2).sum() + weight * np.hypot(down, right).sum())


@pytest.mark.parametrize("weight", [0.03, 0.2])
@pytest.mark.parametrize(("drop", "drop_rate"), [("value", 0.5), ("pixel", 0.5), ("value", 0.0)])
def test_minimization_reaches_the_minimum_over_the_kept_values(drop, drop_rate, weight):
    image, seeds = images(1, 6, 7), torch.tensor([11])
    channels = 3 if drop == "value" else 1
    kept = (streams.uniform(seeds, (channels, 6, 7), "total_variation") >= drop_rate).expand(1, 3, -1, -1)
    defense = TotalVariationMinimization(drop_rate=drop_rate, weight=weight, drop=drop, iterations=2000)
    found = defense(image, seeds=seeds)[0].numpy()
    for solution, plane, mask in zip(found, image[0].numpy(), kept[0].numpy(), strict=True):
        expected = _reference_minimum(plane, mask, weight)
        lowest = _objective(expected, plane, mask, weight)
        assert _objective(solution, plane, mask, weight) == pytest.approx(lowest, rel=5e-5)
        # a dropped value between two others may take any value between them: only the kept ones are unique
        np.testing.assert_allclose(solution[mask], expected[mask], rtol=0, atol=2e-3)


def test_a_hundred_steps_are_near_the_minimum():
    image, seeds = images(2, 24, 24) * 0.2 + 0.4, torch.tensor([1, 2])
    image[..., 12:] += 0.3
    found, limit = (TotalVariationMinimization(iterations=steps)(image, seeds=seeds) for steps in (100, 4000))
    assert (found - limit).square().mean().sqrt() < 0.02 * (limit - image).square().mean().sqrt()


def test_nothing_of_a_dropped_value_remains():
    image, seeds = images(1, 12, 12), torch.tensor([5])
    dropped = streams.uniform(seeds, (3, 12, 12), "total_variation") < 0.5
    assert 0.4 < dropped.double().mean() < 0.6
    defense = TotalVariationMinimization(iterations=5)
    assert torch.equal(defense(image, seeds=seeds), defense(torch.where(dropped, 1 - image, image), seeds=seeds))


def test_channels_drop_independently_or_together():
    seeds = torch.tensor([5])
    gray = images(1, 16, 16)[:, :1].expand(-1, 3, -1, -1)
    by_value, by_pixel = (TotalVariationMinimization(drop=drop)(gray, seeds=seeds) for drop in ("value", "pixel"))
    assert torch.equal(by_pixel[:, 0], by_pixel[:, 1])
    assert (by_value[:, 0] - by_value[:, 1]).abs().max() > 0.05


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"drop_rate=1\.0 is out of range"):
        TotalVariationMinimization(drop_rate=1.0)
    with pytest.raises(InputError, match="drop='row' is unknown"):
        TotalVariationMinimization(drop="row")
    with pytest.raises(InputError, match="weight=0 is out of range"):
        TotalVariationChambolle(weight=0)
