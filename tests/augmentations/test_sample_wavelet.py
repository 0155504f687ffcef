from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_robust import augmentations
from lightning_robust.functional import wavelet_denoise

albumentations = pytest.importorskip("albumentations")
WaveletDenoising = augmentations.WaveletDenoising


@pytest.fixture
def image() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (13, 17, 3)).astype(np.uint8)


def _by_tensor(image: np.ndarray[Any, Any], sigma: float, **options: Any) -> np.ndarray[Any, Any]:
    tensor = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)
    return wavelet_denoise(tensor, sigma, **options).clamp(0, 1).permute(1, 2, 0).numpy()


def test_the_numbers_of_the_tensor_path(image: np.ndarray[Any, Any]) -> None:
    options = {"wavelet": "db2", "method": "VisuShrink", "sigma_scale": "rgb"}
    transform = WaveletDenoising((0.0, 0.1), p=1.0, **options)
    compose = albumentations.Compose([transform], seed=3, save_applied_params=True)
    result = compose(image=image, mask=image[..., 0])
    sigma = result["applied_transforms"][0][1]["sigma"]
    wanted = _by_tensor(image, sigma, **options)
    np.testing.assert_array_equal(result["image"], np.round(wanted * 255))
    np.testing.assert_array_equal(result["mask"], image[..., 0])
    floating = WaveletDenoising(sigma, p=1.0, **options)(image=image.astype(np.float32) / 255)["image"]
    assert floating.dtype == np.float32
    np.testing.assert_allclose(floating, wanted, atol=1e-6)


def test_the_seed_of_compose_decides(image: np.ndarray[Any, Any]) -> None:
    first, second, other = (
        albumentations.Compose([WaveletDenoising(p=1.0)], seed=seed)(image=image)["image"] for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_round_trip_and_replay(image: np.ndarray[Any, Any]) -> None:
    transform = WaveletDenoising((0.1, 0.1), wavelet="db2", mode="hard", levels=2, p=1.0)
    again = albumentations.from_dict(albumentations.to_dict(transform))
    assert albumentations.to_dict(again) == albumentations.to_dict(transform)
    np.testing.assert_array_equal(again(image=image)["image"], transform(image=image)["image"])
    first = albumentations.ReplayCompose([WaveletDenoising(p=0.9)])(image=image)
    replayed = albumentations.ReplayCompose.replay(first["replay"], image=image)
    np.testing.assert_array_equal(replayed["image"], first["image"])


def test_gray_images_and_stacks(image: np.ndarray[Any, Any]) -> None:
    transform = WaveletDenoising(0.04, p=1.0)
    gray = transform(image=image[..., 0])["image"]
    np.testing.assert_array_equal(gray, np.round(_by_tensor(image[..., :1], 0.04) * 255)[..., 0])
    stacked = transform(images=np.stack([image] * 2))["images"]
    np.testing.assert_array_equal(stacked[1], transform(image=image)["image"])


@pytest.mark.parametrize(
    "arguments", [{"sigma": (0.3, 0.1)}, {"sigma": (-0.1, 0.1)}, {"wavelet": "db0"}, {"method": "x"}, {"levels": 0}]
)
def test_bad_options_are_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        WaveletDenoising(**arguments)
