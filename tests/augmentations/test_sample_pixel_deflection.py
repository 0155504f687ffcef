from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_robust import augmentations
from lightning_robust.functional import pixel_deflection

albumentations = pytest.importorskip("albumentations")
PixelDeflection = augmentations.PixelDeflection


@pytest.fixture
def image() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (13, 17, 3)).astype(np.uint8)


@pytest.mark.parametrize("replacement", ["random", "min", "max", "mean"])
@pytest.mark.parametrize("sampling", ["uniform", "gaussian"])
def test_same_bits_as_the_tensor_path(image: np.ndarray[Any, Any], sampling: str, replacement: str) -> None:
    options = {"sampling": sampling, "replacement": replacement}
    transform = PixelDeflection(40, 5, p=1.0, **options)
    compose = albumentations.Compose([transform], seed=3, save_applied_params=True)
    result = compose(image=image, mask=image[..., 0])
    seeds = torch.tensor([result["applied_transforms"][0][1]["seed"]])
    unit = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    expected = pixel_deflection(unit, 40, 5, **options, seeds=seeds)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(result["image"], np.round(expected * 255).astype(np.uint8))
    np.testing.assert_array_equal(result["mask"], image[..., 0])
    assert (result["image"] != image).any()
    floating = transform.apply(image.astype(np.float32) / 255, seed=seeds.item())
    np.testing.assert_array_equal(floating, expected)


def test_the_seed_of_compose_decides(image: np.ndarray[Any, Any]) -> None:
    first, second, other = (
        albumentations.Compose([PixelDeflection(p=1.0)], seed=seed)(image=image)["image"] for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_round_trip_through_a_dict_and_replay(image: np.ndarray[Any, Any]) -> None:
    transform = PixelDeflection(7, 3, sampling="gaussian", replacement="min", p=1.0)
    again = albumentations.from_dict(albumentations.to_dict(transform))
    assert isinstance(again, PixelDeflection)
    assert albumentations.to_dict(again) == albumentations.to_dict(transform)
    first = albumentations.ReplayCompose([PixelDeflection(p=0.9)])(image=image)
    replayed = albumentations.ReplayCompose.replay(first["replay"], image=image)
    np.testing.assert_array_equal(replayed["image"], first["image"])


def test_gray_images_stacks_and_views(image: np.ndarray[Any, Any]) -> None:
    transform = PixelDeflection(50, 4, p=1.0)
    color, gray, flipped = (transform.apply(x, seed=9) for x in (image, image[..., 0], image[::-1]))
    np.testing.assert_array_equal(gray, color[..., 0])
    assert flipped.shape == image.shape
    stack = transform(images=np.stack([image] * 2))["images"]
    np.testing.assert_array_equal(stack[0], stack[1])
    assert (stack[0] != image).any()


@pytest.mark.parametrize("arguments", [{"deflections": -1}, {"window": -1}, {"sampling": "s"}, {"replacement": "r"}])
def test_bad_options_are_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PixelDeflection(**arguments)
