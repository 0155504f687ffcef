from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.filters import gaussian_blur2d

from lightning_robust.defenses import (
    BitDepth,
    Identity,
    MatchedBlur,
    MatchedNoise,
    MedianFilter,
    RandomResizePad,
    TotalVariationMinimization,
)
from lightning_robust.errors import InputError


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 20, 22, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rmse(purified: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return (purified - image).square().mean((1, 2, 3)).sqrt()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_identity_returns_the_bits(dtype):
    image = images().to(dtype)
    assert torch.equal(Identity()(image), image)


@settings(max_examples=15)
@given(wanted=st.floats(0.0, 0.3), contrast=st.floats(0.1, 1.0))
def test_noise_has_the_wanted_size_after_clipping(wanted, contrast):
    image = images() * contrast
    image[0] = image[0].round()
    found = rmse(MatchedNoise(wanted)(image), image)
    torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=1e-6, atol=1e-8)


@settings(max_examples=10)
@given(wanted=st.floats(0.0, 0.05))
def test_blur_has_the_wanted_size_and_is_a_gaussian(wanted):
    image = images()
    blurred = MatchedBlur(wanted)(image)
    torch.testing.assert_close(rmse(blurred, image), torch.full((3,), wanted).double(), rtol=1e-4, atol=1e-6)


def test_blur_of_the_size_of_a_known_gaussian_is_that_gaussian():
    image = images()
    sigma = torch.tensor([0.5, 1.0, 2.0]).double().view(3, 1).expand(-1, 2)
    wanted = gaussian_blur2d(image, 49, sigma, border_type="replicate")
    for one, target in zip(image, wanted, strict=True):
        size = rmse(target[None], one[None]).item()
        torch.testing.assert_close(MatchedBlur(size)(one[None])[0], target, rtol=0, atol=1e-5)


@pytest.mark.parametrize("control", [MatchedNoise, MatchedBlur])
@pytest.mark.parametrize("reference", [MedianFilter(), BitDepth(bits=3), TotalVariationMinimization(iterations=20)])
def test_a_control_changes_each_image_as_much_as_the_other_defense(control, reference):
    image, seeds = images(), torch.tensor([2, 3, 4])
    image[1] = 0.5 + 0.2 * image[1]
    wanted = rmse(reference(image, seeds=seeds), image)
    assert wanted.max() > 1.2 * wanted.min() or isinstance(reference, BitDepth)
    found = rmse(control(reference)(image, seeds=seeds), image)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_noise_is_white_and_of_zero_mean():
    image = torch.full((4, 3, 64, 64), 0.5)
    noise = MatchedNoise(0.05)(image) - image
    assert noise.mean((1, 2, 3)).abs().max() < 0.002
    neighbors = (noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean()
    assert neighbors.abs() < 0.01
    kurtosis = noise.pow(4).mean() / noise.square().mean().square()
    assert kurtosis == pytest.approx(3, abs=0.1)


def test_an_image_that_no_blur_changes_enough_is_blurred_to_the_limit():
    image = images(1)
    most = gaussian_blur2d(image, 25, (4.0, 4.0), border_type="replicate")
    torch.testing.assert_close(MatchedBlur(0.9, max_sigma=4.0)(image), most, rtol=0, atol=1e-6)
    flat = torch.full((1, 3, 9, 9), 0.25)
    torch.testing.assert_close(MatchedBlur(0.1)(flat), flat)


def test_a_blur_is_random_where_what_it_matches_is():
    assert not MatchedBlur(MedianFilter()).is_random
    assert MatchedBlur(TotalVariationMinimization()).is_random


@pytest.mark.parametrize("control", [MatchedNoise, MatchedBlur])
def test_what_cannot_be_matched_is_refused(control):
    with pytest.raises(InputError, match=r"RandomResizePad takes images of \(20, 22\) to \(22, 24\): a control can"):
        control(RandomResizePad())(images())
    with pytest.raises(InputError, match=r"rmse=1\.5 is out of range"):
        control(1.5)
    with pytest.raises(InputError, match="rmse='small' is out of range: give a number"):
        control("small")
