"""What every corruption asks of its input."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.errors import InputError

_SLACK = 1e-3


def check_image(image: Tensor) -> Tensor:
    """Return the image in a precision to compute in: float32 for half precision, else as it is.

    Raises:
        InputError: if it is not a batch of float images in [0, 1].
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
        seen = f"{image.dtype}, {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"The image is {seen}: corruptions need float images in [0, 1] of shape (B, C, H, W).")
    if image.numel() > 0:
        low, high = (value.item() for value in image.aminmax())
        if not (low >= -_SLACK and high <= 1 + _SLACK):
            raise InputError(
                f"The images lie in [{low:.3g}, {high:.3g}]: corruptions need them in [0, 1], before normalization."
            )
    return image.float() if image.dtype in (torch.float16, torch.bfloat16) else image


def check_number(value: float, name: str, *, low: float = 0.0, high: float = float("inf")) -> None:
    """Refuse a strength outside its range.

    Raises:
        InputError: naming the strength and the range.
    """
    if not low <= value <= high:
        raise InputError(f"{name}={value} is out of range: give a number from {low:g} to {high:g}.")


def seeds_of(image: Tensor, seeds: Tensor | None) -> Tensor:
    """Return one seed per image; without seeds, from the position in the batch.

    Raises:
        InputError: if there is not one int64 per image.
    """
    if seeds is None:
        return streams.derive(torch.arange(len(image), device=image.device))
    if seeds.dtype != torch.int64 or seeds.shape != (len(image),):
        raise InputError(
            f"seeds is a {seeds.dtype} tensor of shape {tuple(seeds.shape)}: give one int64 per image, shape "
            f"({len(image)},)."
        )
    return seeds.to(image.device)
