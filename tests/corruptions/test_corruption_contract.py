"""What holds for every corruption."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.corruptions import band_noise, contrast, gaussian_blur, gaussian_noise
from lightning_robust.errors import InputError

CORRUPTIONS = {
    "gaussian_noise": partial(gaussian_noise, std=0.1),
    "gaussian_blur": partial(gaussian_blur, sigma=0.8),
    "contrast": partial(contrast, factor=0.4),
    "low": partial(band_noise, band="low", rmse=0.05),
    "middle": partial(band_noise, band="middle", rmse=0.05),
    "high": partial(band_noise, band="high", rmse=0.05),
}
every_corruption = pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS)


def images(count, height=9, width=12, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@every_corruption
@settings(max_examples=15, deadline=None)
@given(height=st.integers(8, 17), width=st.integers(8, 17), seed=st.integers(0, 2**31))
def test_stays_in_the_box_at_any_size(corrupt, height, width, seed):
    image = images(2, height, width, seed)
    before = image.clone()
    result = corrupt(image, seeds=torch.tensor([seed, seed + 1]))
    assert result.shape == image.shape
    assert ((result >= 0) & (result <= 1)).all()
    assert not torch.equal(result, image)
    assert torch.equal(image, before)


@every_corruption
def test_does_not_depend_on_the_split(corrupt):
    image, seeds = images(6), torch.arange(50, 56)
    whole = corrupt(image, seeds=seeds)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    parts = [corrupt(image[i], seeds=seeds[i]) for i in order.split([1, 3, 2])]
    torch.testing.assert_close(torch.cat(parts), whole[order], rtol=0, atol=1e-6)


@every_corruption
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_type(corrupt, dtype):
    image = images(2)
    result = corrupt(image.to(dtype))
    assert result.dtype == dtype
    tolerance = 0.02 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(result.float(), corrupt(image), rtol=0, atol=tolerance)


@every_corruption
def test_global_random_state_is_left_alone(corrupt):
    before = torch.random.get_rng_state()
    assert torch.equal(corrupt(images(2)), corrupt(images(2)))
    assert torch.equal(torch.random.get_rng_state(), before)


@every_corruption
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 3, 8, 8), 3.0), r"lie in \[3, 3\]"),
        (torch.full((1, 3, 8, 8), torch.nan), "hold NaN or infinite values"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float images"),
        (torch.zeros(3, 8, 8), r"shape \(B, C, H, W\)"),
    ],
)
def test_wrong_images_are_named(corrupt, image, message):
    with pytest.raises(InputError, match=message):
        corrupt(image)


@pytest.mark.parametrize("name", ["gaussian_noise", "low"])
def test_wrong_seeds_are_named(name):
    with pytest.raises(InputError, match="one int64 per image"):
        CORRUPTIONS[name](images(2), seeds=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("corrupt", "option"),
    [
        (gaussian_noise, "std"),
        (gaussian_blur, "sigma"),
        (contrast, "factor"),
        (partial(band_noise, band="low"), "rmse"),
    ],
)
def test_negative_strength_is_named(corrupt, option):
    with pytest.raises(InputError, match=f"{option}=-1 is out of range"):
        corrupt(images(1), **{option: -1})
