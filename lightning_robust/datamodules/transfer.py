"""From a uint8 batch to float images on the device, augmented there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.augmentations.batch.apply import augment_batch
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
