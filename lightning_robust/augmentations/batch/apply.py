"""Run an augmentation on a batch, with the target carried along where the augmentation takes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.errors import InputError


def augment_batch(augmentation: nn.Module, image: Tensor, target: Any) -> tuple[Tensor, Any]:
    """Augment a batch.

    Args:
        augmentation: a module with two ``data_keys`` (Kornia's ``AugmentationSequential``) gets image and target and
            returns both; any other gets the image and returns it.
        image: (B, C, H, W) in [0, 1].
        target: masks, boxes, labels, or None. Masks of class numbers, whole numbers (B, H, W), are given to the
            augmentation as floating (B, 1, H, W), which Kornia takes, and come back as they were.

    Returns:
        Image and target; the image floating, (B, C, H, W), of any size. Its range is not checked.

    Raises:
        InputError: if the augmentation asks for a target and the batch has none, asks for more than one, mixes images
            (Kornia's MixUp, CutMix and the like) and does not ask for the target that the batch has, or returns what is
            no batch of as many images.
    """
    keys = getattr(augmentation, "data_keys", None) or ["input"]
    if len(keys) > 2 or (len(keys) == 2 and target is None):
        raise InputError(
            f"{type(augmentation).__name__} has data_keys={[str(k) for k in keys]}, but the batch holds an image and "
            f"{'no target' if target is None else 'one target'}. Give data_keys that fit, such as ['input', 'mask']."
        )
    if len(keys) == 1 and target is not None and (mixing := mixing_part(augmentation)) is not None:
        raise InputError(
            f"{mixing} mixes the images of a batch and would leave their targets unmixed: give it alone, with the "
            f"target ({mixing}(data_keys=['input', 'class']), if it takes those), and a loss for what it returns."
        )
    if len(keys) == 1:
        augmented, carried = augmentation(image), target
    elif _is_class_mask(target):
        augmented, mask = augmentation(image, target.to(torch.float32).unsqueeze(1))
        carried = mask.squeeze(1).round().to(target.dtype)
    else:
        augmented, carried = augmentation(image, target)
    _check_result(augmentation, image, augmented)
    return augmented, carried


def mixing_part(augmentation: nn.Module) -> str | None:
    """Name what puts pixels of one image of a batch into another, as Kornia's MixUp does; None if none is known to."""
    from kornia.augmentation import MixAugmentationBaseV2, RandomJigsaw

    # a jigsaw stays within its image
    mixing = (type(part).__name__ for part in augmentation.modules() if isinstance(part, MixAugmentationBaseV2))
    return next((name for name in mixing if name != RandomJigsaw.__name__), None)


def _is_class_mask(target: Any) -> bool:
    return isinstance(target, Tensor) and target.ndim == 3 and not target.is_floating_point()


def _check_result(augmentation: nn.Module, image: Tensor, augmented: Any) -> None:
    # Not the range: the program would wait for the device, and noise or a bicubic resize may overshoot a little.
    if isinstance(augmented, Tensor):
        if augmented.ndim == 4 and len(augmented) == len(image) and augmented.is_floating_point():
            return
        dtype, shape = str(augmented.dtype).removeprefix("torch."), tuple(augmented.shape)
        found = f"a {dtype} tensor of shape {shape}"
    else:
        found = type(augmented).__name__
    raise InputError(
        f"{type(augmentation).__name__} returned {found} for a batch of shape {tuple(image.shape)}; an augmentation "
        "must return a floating tensor (B, C, H, W) with one image for each it was given. Wrap it in a module that "
        "does, or give an AugmentationSequential with data_keys."
    )
