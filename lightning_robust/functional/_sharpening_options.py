"""Reading the arguments of the sharpening functions: strengths as exact rationals, images as checked batches."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional._sharpening_laplacian import Neighbors

Alpha: TypeAlias = float | Sequence[float] | Tensor

MAX_DENOMINATOR = 1000
_SLACK = 1e-3
# a normalization or a wrong scale shows in any row; to read all of them would cost a quarter of the filter's time
_CHECKED_ROWS = 8


def read_strengths(alpha: Alpha, batch: int, *, neighbors: Neighbors, normalize: bool) -> tuple[Fraction, ...]:
    """Factor of the raw Laplacian as fractions: one for the whole batch, or one per sample.

    Raises:
        InputError: if ``alpha`` is negative, not finite, or of another length than the batch.
    """
    if isinstance(alpha, Tensor):
        alpha = alpha.detach().tolist() if alpha.ndim < 2 else [math.nan] * alpha.numel()
    values = [float(alpha)] if isinstance(alpha, float | numbers.Real) else [float(value) for value in alpha]
    if not isinstance(alpha, float | numbers.Real) and len(values) != batch:
        raise InputError(
            f"alpha holds {len(values)} values for a batch of {batch} images: give one number, or one per image."
        )
    wrong = next((value for value in values if not (math.isfinite(value) and value >= 0)), None)
    if wrong is not None:
        raise InputError(
            f"alpha={wrong} is not a sharpening strength: give a finite number of at least 0 (0 changes nothing), "
            "or a one-dimensional list or tensor of them."
        )
    parts = neighbors if normalize else 1
    strengths = tuple(rational(value) / parts for value in values)
    return strengths[:1] if len(set(strengths)) == 1 else strengths or (Fraction(0),)


def rational(alpha: float) -> Fraction:
    """The nearest fraction with a denominator up to 1,000."""
    return Fraction(alpha).limit_denominator(MAX_DENOMINATOR)


def read_images(image: Tensor) -> Tensor:
    """(B, C, H, W) from (C, H, W) or (B, C, H, W), type checked and, on the CPU, the range of each eighth row.

    Raises:
        InputError: for another shape or type, for NaN, and for values outside [0, 1].
    """
    if image.ndim not in (3, 4) or not (image.is_floating_point() or image.dtype == torch.uint8):
        raise InputError(
            f"image is a {str(image.dtype).removeprefix('torch.')} tensor of shape {tuple(image.shape)}: give a "
            "floating tensor in [0, 1] or a uint8 tensor, of shape (B, C, H, W) or (C, H, W)."
        )
    # elsewhere the answer would have to be waited for
    if image.device.type == "cpu" and image.is_floating_point() and image.numel() and not torch.compiler.is_compiling():
        _check_range(image.detach()[..., ::_CHECKED_ROWS, :])
    return image if image.ndim == 4 else image.unsqueeze(0)


def check_choices(*, neighbors: int, padding: str, levels: int | None) -> None:
    """Refuse options that no image could have.

    Raises:
        InputError: naming the option and its choices.
    """
    if neighbors not in (4, 8):
        raise InputError(f"neighbors={neighbors} is not a Laplacian of this package: choose 4 or 8.")
    if padding not in ("replicate", "reflect", "zeros"):
        raise InputError(f"padding={padding!r} is unknown: choose 'replicate', 'reflect' or 'zeros'.")
    if levels is not None and levels < 2:
        raise InputError(f"levels={levels} leaves no picture: give at least 2, or None for no rounding.")


def check_options(image: Tensor, *, neighbors: int, padding: str, levels: int | None) -> None:
    """Refuse options that have no meaning for this image.

    Raises:
        InputError: naming the option and its choices.
    """
    check_choices(neighbors=neighbors, padding=padding, levels=levels)
    if padding == "reflect" and min(image.shape[-2:]) < 2:
        raise InputError(
            f"padding='reflect' needs at least 2 x 2 pixels and the image has {image.shape[-2]} x {image.shape[-1]}: "
            "choose padding='replicate'."
        )
    if image.dtype == torch.uint8 and levels != 256:
        raise InputError(
            f"levels={levels} does not fit a uint8 image, which has 256: convert it by image.float() / 255, "
            "or leave levels at 256."
        )


def _check_range(image: Tensor) -> None:
    # by NumPy: waking torch's threads for so few values costs more than reading them
    values = image.float().numpy()
    low, high = float(values.min()), float(values.max())
    if low >= -_SLACK and high <= 1 + _SLACK:
        return
    if math.isnan(low):
        raise InputError("image holds NaN: mend the data before it is sharpened.")
    raise InputError(
        f"image lies in [{low:.3g}, {high:.3g}] and should lie in [0, 1]: divide 8-bit values by 255, undo a "
        "normalization by mean and std first, or clamp the overshoot of a resize."
    )
