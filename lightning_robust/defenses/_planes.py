"""Arithmetic that several defenses share."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from lightning_robust.errors import InputError


def mean(values: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Average over the dimensions of one image, kept as size 1.

    The order of a float32 sum depends on the shape of the batch and on the number of threads; in float64 the result
    rounds to the same float32 whatever the order, so an image's result does not depend on its neighbors.
    """
    return values.mean(dim=dim, keepdim=True, dtype=torch.float64).to(values.dtype)


def take(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick rows and columns of each image.

    Args:
        image: shape (B, C, H, W).
        rows: int64 in [0, H), shape (B, H').
        columns: int64 in [0, W), shape (B, W').

    Returns:
        Shape (B, C, H', W').
    """
    count, channels, _, width = image.shape
    by_row = image.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return by_row.gather(
        3,
        columns[:, None, None, :]
        .expand(-1, channels, rows.shape[1], -1)
        .reshape(count, channels, rows.shape[1], columns.shape[1]),
    )


def check_channels(image: Tensor, name: str) -> None:
    """Refuse images that are neither grey nor RGB.

    Raises:
        InputError: naming the channels.
    """
    if image.shape[1] not in (1, 3):
        raise InputError(
            f"The images have {image.shape[1]} channels: {name} works on 1 (grey) or 3 (RGB). Give it the color "
            "channels only."
        )


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a parameter that is no number in [low, high].

    Raises:
        InputError: naming the parameter and its range.
    """
    if not isinstance(value, numbers.Real) or not low <= value <= high:
        wanted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise InputError(f"{name}={value!r} is out of range: give a number {wanted}.")


def check_whole(name: str, value: int, low: int, high: float = math.inf) -> None:
    """Refuse a count or a size that is no whole number in [low, high].

    Raises:
        InputError: naming the parameter and its range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name}={value!r} is no whole number: give an int of at least {low}.")
    check_range(name, value, low, high)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse an option that is unknown.

    Raises:
        InputError: naming the option and its choices.
    """
    if value not in choices:
        raise InputError(f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, choices))}.")
