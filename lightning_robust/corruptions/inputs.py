"""What every corruption asks of its input."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.images import check_unit_batch


def check_image(image: Tensor) -> Tensor:
    """Return the image in a precision to compute in: float32 for half precision, else as it is.

    Raises:
        InputError: if it is not a batch of float images in [0, 1].
    """
    check_unit_batch(image, "corruptions", "Corrupt before the normalization.")
    return image.float() if image.dtype in (torch.float16, torch.bfloat16) else image


def check_number(value: float, name: str, *, low: float = 0.0, high: float = float("inf")) -> None:
    """Refuse a strength outside its range.

    Raises:
        InputError: naming the strength and the range.
    """
    if not low <= value <= high:
        raise InputError(f"{name}={value} is out of range: give a number from {low:g} to {high:g}.")
