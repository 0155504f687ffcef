from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from lightning_robust import augmentations
from lightning_robust.functional import laplacian_sharpen

albumentations = pytest.importorskip("albumentations")
LaplacianSharpening = augmentations.LaplacianSharpening


@pytest.fixture
def image() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (13, 17, 3)).astype(np.uint8)


def _by_tensor(image: np.ndarray[Any, Any], alpha: float, **options: Any) -> np.ndarray[Any, Any]:
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return laplacian_sharpen(tensor, alpha, **options).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("neighbors", [4, 8])
@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
def test_same_bits_as_the_tensor_path(image: np.ndarray[Any, Any], neighbors: int, padding: str) -> None:
    options = {"neighbors": neighbors, "padding": padding}
    transform = LaplacianSharpening((0.0, 0.3), p=1.0, **options)
    compose = albumentations.Compose([transform], seed=3, save_applied_params=True)
    result = compose(image=image, mask=image[..., 0])
    alpha = result["applied_transforms"][0][1]["alpha"]
    np.testing.assert_array_equal(result["image"], _by_tensor(image, alpha, **options))
    np.testing.assert_array_equal(result["mask"], image[..., 0])
    floating = LaplacianSharpening(alpha, p=1.0, **options)(image=image.astype(np.float32) / 255)["image"]
    assert floating.dtype == np.float32
    np.testing.assert_array_equal(np.round(floating * 255), result["image"])


def test_equals_albumentations_sharpen_inside(image: np.ndarray[Any, Any]) -> None:
    unit = image.astype(np.float32) / 255
    ours = LaplacianSharpening(0.25, neighbors=8, levels=None, p=1.0)(image=unit)["image"]
    theirs = albumentations.Sharpen(alpha=(0.25, 0.25), lightness=(1.0, 1.0), p=1.0)(image=unit)["image"]
    np.testing.assert_allclose(ours[1:-1, 1:-1], theirs[1:-1, 1:-1], atol=2e-6)


def test_the_seed_of_compose_decides(image: np.ndarray[Any, Any]) -> None:
    first, second, other = (
        albumentations.Compose([LaplacianSharpening(p=1.0)], seed=seed)(image=image)["image"] for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_round_trip_through_a_dict(image: np.ndarray[Any, Any]) -> None:
    transform = LaplacianSharpening((0.1, 0.1), neighbors=8, normalize=True, padding="reflect", p=1.0)
    again = albumentations.from_dict(albumentations.to_dict(transform))
    assert isinstance(again, LaplacianSharpening)
    assert albumentations.to_dict(again) == albumentations.to_dict(transform)
    np.testing.assert_array_equal(again(image=image)["image"], transform(image=image)["image"])


def test_replay_gives_the_same_bits(image: np.ndarray[Any, Any]) -> None:
    first = albumentations.ReplayCompose([LaplacianSharpening(p=0.9)])(image=image)
    again = albumentations.ReplayCompose.replay(first["replay"], image=image)
    np.testing.assert_array_equal(again["image"], first["image"])


def test_gray_images_stacks_and_views(image: np.ndarray[Any, Any]) -> None:
    transform = LaplacianSharpening(0.15, p=1.0)
    expected = _by_tensor(image, 0.15)
    np.testing.assert_array_equal(transform(image=image[..., 0])["image"], expected[..., 0])
    np.testing.assert_array_equal(transform(images=np.stack([image] * 2))["images"][1], expected)
    np.testing.assert_array_equal(transform(image=image[::-1])["image"], expected[::-1])


@pytest.mark.parametrize(
    "arguments", [{"alpha": (0.3, 0.1)}, {"alpha": (-0.1, 0.1)}, {"neighbors": 5}, {"padding": "same"}, {"levels": 1}]
)
def test_bad_options_are_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        LaplacianSharpening(**arguments)


def test_the_package_imports_neither_library() -> None:
    code = (
        "import sys, lightning_robust.augmentations as a; assert 'RandomLaplacianSharpening' in dir(a);"
        "assert not {'torch', 'kornia', 'albumentations'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Sharpest"):
        augmentations.Sharpest  # noqa: B018
