"""Run an augmentation on a batch, with the target carried along where the augmentation takes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_robust.errors import InputError


def augment_batch(augmentation: nn.Module, image: Tensor, target: Any) -> tuple[Tensor, Any]:
    """Augment a batch.

    Args:
        augmentation: a module with two ``data_keys`` (Kornia's ``AugmentationSequential``) gets image and target and
            returns both; any other gets the image and returns it.
        image: (B, C, H, W) in [0, 1].
        target: masks, boxes, labels, or None.

    Returns:
        Image and target.

    Raises:
        InputError: if the augmentation asks for a target and the batch has none, or asks for more than one.
    """
    keys = getattr(augmentation, "data_keys", None) or ["input"]
    if len(keys) > 2 or (len(keys) == 2 and target is None):
        raise InputError(
            f"{type(augmentation).__name__} has data_keys={[str(k) for k in keys]}, but the batch holds an image and "
            f"{'no target' if target is None else 'one target'}. Give data_keys that fit, such as ['input', 'mask']."
        )
    if len(keys) == 2:
        augmented, carried = augmentation(image, target)
        return augmented, carried
    augmented = augmentation(image)
    return augmented, target
