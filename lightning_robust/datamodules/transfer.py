"""From a uint8 batch to float images on the device, augmented there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.augmentations.batch.apply import augment_batch, mixing_part
from lightning_robust.datamodules.targets import Targets
from lightning_robust.errors import InputError
from lightning_robust.seeds import seeded


def unit_float(image: Tensor, device: torch.device) -> Tensor:
    """Move uint8 images and divide them by 255.

    Args:
        image: uint8, (B, C, H, W), any memory format; a quarter of the bytes of floats goes over the bus.
        device: where they are needed.

    Returns:
        float32 in [0, 1], (B, C, H, W), contiguous.
    """
    moved = image.to(device, non_blocking=True)
    return moved.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def augment(transform: nn.Module, image: Tensor, target: Any, *, seed: int) -> tuple[Tensor, Any]:
    """Run a batch augmentation in float32, from its own random numbers.

    Args:
        transform: Kornia augmentation, or any module from images to images.
        image: float32 in [0, 1], (B, C, H, W).
        target: carried along where the augmentation takes it.
        seed: of the global generators while it runs; their states are put back.
    """
    device = image.device
    # Kornia's kernels are float32 and fail on what autocast makes of their inputs
    with torch.autocast(device.type, enabled=False), seeded(seed, device):
        return augment_batch(transform.to(device), image, target)


def augment_targets(
    transform: nn.Module, image: Tensor, target: Any, targets: Targets | None, *, seed: int
) -> tuple[Tensor, Any]:
    """Run a batch augmentation as :func:`augment` does, with the mask carried along if it takes one.

    Args:
        transform: as :func:`check_batch_transform` allows it.
        image: float32 in [0, 1], (B, C, H, W).
        target: of the batch, as the loader made it.
        targets: what is in it; None for class numbers alone.
        seed: of the global generators while it runs.
    """
    if targets is None:
        return augment(transform, image, target, seed=seed)
    values = targets.named(target)
    carried = next(iter(targets.of_kind("mask")), None) if len(_data_keys(transform)) == 2 else None
    image, mask = augment(transform, image, None if carried is None else values[carried], seed=seed)
    return image, targets.unnamed(values if carried is None else values | {carried: mask})


def check_batch_transform(transform: nn.Module | None, targets: Targets | None) -> None:
    """Refuse a batch augmentation that would move pixels, or mix images, and leave targets as they are.

    Kornia's own way of moving boxes is not used: ``RandomHorizontalFlip`` of 0.9 puts them one pixel beside what is in
    them.

    Raises:
        InputError: saying which, and what to give in its place.
    """
    if transform is None or targets is None:
        return
    masks, boxes, keys = targets.of_kind("mask"), targets.of_kind("boxes"), _data_keys(transform)
    if len(keys) > 1 and (keys[1:] != ["mask"] or len(masks) != 1):
        raise InputError(
            f"batch_transform has data_keys={keys}, and the targets are {[target.kind for target in targets.all]}: on "
            "the device one mask can be carried along (data_keys=['input', 'mask']). Augment boxes, and several "
            "masks, in sample_transform."
        )
    left = boxes if len(keys) > 1 else masks + boxes
    moving = next((type(part).__name__ for part in transform.modules() if _moves_pixels(part)), None)
    if left and moving is not None:
        raise InputError(
            f"batch_transform moves pixels ({moving}) and would leave the target {left[0]!r} where it is: give an "
            "AugmentationSequential with data_keys=['input', 'mask'], which carries one mask along, or augment in "
            "sample_transform."
        )
    left = [target.name for target in targets.all if len(keys) == 1 or target.kind != "mask"]
    mixing = mixing_part(transform)
    if left and mixing is not None:
        raise InputError(
            f"batch_transform mixes images ({mixing}) and would leave the target {left[0]!r} unmixed: leave it out, or "
            "mix images and targets in the training step."
        )


def _data_keys(transform: nn.Module) -> list[str]:
    keys = getattr(transform, "data_keys", None) or ["input"]
    return [str(getattr(key, "name", key)).lower() for key in keys]


def _moves_pixels(part: nn.Module) -> bool:
    from kornia.augmentation import AugmentationBase2D, IntensityAugmentationBase2D, MixAugmentationBaseV2

    moves = isinstance(part, AugmentationBase2D) and not isinstance(part, IntensityAugmentationBase2D)
    return moves or isinstance(part, MixAugmentationBaseV2)
