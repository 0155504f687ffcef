from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.defenses import BlockDCT
from lightning_robust.errors import InputError


def images(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, channels, height, width, generator=generator, dtype=torch.float64)
    return 0.2 * image + 0.6 * torch.linspace(0, 1, width, dtype=torch.float64)


def _reference_plane(plane: np.ndarray, block: int, sigma: float) -> np.ndarray:
    height, width = plane.shape
    noise = (sigma * (plane.max() - plane.min())) ** 2
    padded = np.pad(plane, ((0, -height % block), (0, -width % block)), mode="edge")
    corners = [(i, j) for i in range(0, padded.shape[0], block) for j in range(0, padded.shape[1], block)]
    coefficients = np.stack([scipy.fft.dctn(padded[i : i + block, j : j + block], norm="ortho") for i, j in corners])
    signal = (coefficients**2).mean(0) - noise
    with np.errstate(invalid="ignore", divide="ignore"):
        threshold = np.where(signal > 0, noise / np.sqrt(signal), np.inf)
    threshold[0, 0] = 0
    kept = np.sign(coefficients) * np.maximum(np.abs(coefficients) - threshold, 0)
    result = np.empty_like(padded)
    for (i, j), one in zip(corners, kept, strict=True):
        result[i : i + block, j : j + block] = scipy.fft.idctn(one, norm="ortho")
    return result[:height, :width]


@settings(max_examples=20)
@given(
    block=st.integers(2, 9),
    height=st.integers(1, 26),
    width=st.integers(1, 26),
    sigma=st.sampled_from([0.01, 0.04, 0.2]),
)
def test_it_equals_scipy_block_by_block(block, height, width, sigma):
    image = images(1, height, width)
    expected = _reference_plane(image[0, 0].numpy(), block, sigma).clip(0, 1)
    np.testing.assert_allclose(BlockDCT(block=block, sigma=sigma)(image)[0, 0].numpy(), expected, rtol=0, atol=1e-10)


def test_luma_and_chroma_are_shrunk_apart():
    image = images(3, 17, 20)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    luma = (image[0] * weights[:, None, None]).sum(0)
    purified = BlockDCT()(image)[0]
    found = (purified * weights[:, None, None]).sum(0)
    np.testing.assert_allclose(found.numpy(), _reference_plane(luma.numpy(), 8, 0.04), rtol=0, atol=2e-3)
    assert (found - luma).abs().max() > 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_without_noise_nothing_changes(channels):
    image = images(channels, 11, 13)
    torch.testing.assert_close(BlockDCT(sigma=0)(image), image, rtol=0, atol=2e-3 if channels == 3 else 1e-12)


def test_other_channels_are_refused():
    with pytest.raises(InputError, match="5 channels: BlockDCT"):
        BlockDCT()(torch.rand(1, 5, 8, 8))
