from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightning_robust.defenses import JPEG
from lightning_robust.errors import InputError


def pixels_of(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4 + 2, width // 4 + 2, channels))
    fine = np.kron(coarse, np.ones((4, 4, 1)))[1 : height + 1, 2 : width + 2]
    return fine.astype(np.uint8)


def unit_of(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _reference_jpeg(pixels: np.ndarray, quality: int, subsampling: str) -> torch.Tensor:
    buffer = io.BytesIO()
    options = {} if pixels.shape[2] == 1 else {"subsampling": subsampling}
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        buffer, "JPEG", quality=quality, **options
    )
    decoded = np.array(Image.open(buffer))
    return unit_of(decoded.reshape(pixels.shape))


@settings(max_examples=20)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    quality=st.integers(1, 100),
    seed=st.integers(0, 99),
)
def test_it_equals_pillow_with_color_at_half_resolution(height, width, channels, quality, seed):
    pixels = pixels_of(height, width, channels, seed)
    compressed = JPEG(quality=quality)(unit_of(pixels))
    assert torch.equal(compressed, _reference_jpeg(pixels, quality, "4:2:0"))


def test_color_at_full_resolution_is_another_result():
    pixels = pixels_of(30, 30, 3)
    assert not torch.equal(JPEG()(unit_of(pixels)), _reference_jpeg(pixels, 75, "4:4:4"))


def test_images_are_rounded_to_bytes_first():
    pixels = pixels_of(16, 16, 3)
    between = unit_of(pixels) + 0.4 / 255 * torch.tensor([1.0, -1.0]).repeat(8)
    assert torch.equal(JPEG()(between.clamp(0, 1)), JPEG()(unit_of(pixels)))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_kornia_backward_is_near_the_codec_and_has_a_gradient_of_its_own(channels):
    image = unit_of(pixels_of(32, 32, channels)).requires_grad_()
    defense = JPEG(backward="kornia")
    stand_in = defense.surrogate(image, torch.zeros(1, dtype=torch.int64))
    codec = defense(image)
    assert (stand_in - codec).abs().mean() < 0.5 * (image - codec).abs().mean()
    (gradient,) = torch.autograd.grad(defense.straight_through(image).square().sum(), image)
    assert not torch.allclose(gradient, 2 * codec, atol=1e-2)


def test_other_channels_are_refused():
    with pytest.raises(InputError, match="4 channels: JPEG works on 1"):
        JPEG()(torch.rand(1, 4, 8, 8))


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_out_of_range_is_refused(quality):
    with pytest.raises(InputError, match=f"quality={quality} is out of range: give a number from 1 to 100"):
        JPEG(quality=quality)


def test_an_unknown_backward_is_refused():
    with pytest.raises(InputError, match="choose one of 'identity', 'kornia'"):
        JPEG(backward="torch")
