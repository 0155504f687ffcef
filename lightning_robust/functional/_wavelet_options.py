"""Reading the arguments of wavelet denoising."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional._wavelet_banks import FilterBank, filter_bank

Sigma: TypeAlias = float | Sequence[float] | Tensor | None
Method: TypeAlias = Literal["BayesShrink", "VisuShrink", "SUREShrink"]
Shrinkage: TypeAlias = Literal["soft", "hard"]
SigmaScale: TypeAlias = Literal["channel", "rgb"]

_METHODS = ("BayesShrink", "VisuShrink", "SUREShrink")
_SLACK = 1e-3
# a normalization or a wrong scale shows in any row
_CHECKED_ROWS = 8


def check_denoising(
    *, sigma: Sigma, wavelet: str, method: str, mode: str, sigma_scale: str, levels: int | None
) -> FilterBank:
    """Return the filter bank, if no option is one that no image could have.

    Raises:
        InputError: naming the option and its choices.
    """
    choices = {
        "method": (method, _METHODS),
        "mode": (mode, ("soft", "hard")),
        "sigma_scale": (sigma_scale, ("channel", "rgb")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, allowed))}.")
    if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int) or levels < 1):
        raise InputError(f"levels={levels!r} denoises nothing: give at least 1, or None for the default.")
    if sigma is not None and not _is_noise_level(sigma):
        raise InputError(
            f"sigma={sigma!r} is no standard deviation of noise: give a finite number of at least 0, one for each "
            "channel, or None to estimate it."
        )
    bank: FilterBank = filter_bank(wavelet)
    return bank


def read_sigma(sigma: float | Sequence[float] | Tensor, image: Tensor) -> Tensor:
    """Standard deviations that broadcast to (B, C).

    Raises:
        InputError: if the shape does not fit the image.
    """
    values = torch.as_tensor(sigma, dtype=image.dtype, device=image.device)
    batch, channels = image.shape[:2]
    rows = values.view(1, -1) if values.ndim < 2 else values
    if values.ndim > 2 or rows.shape[0] not in (1, batch) or rows.shape[1] not in (1, channels):
        raise InputError(
            f"sigma has shape {tuple(values.shape)} for images of shape {tuple(image.shape)}: give one number, one per "
            f"channel ({channels},), one per image ({batch}, 1), or ({batch}, {channels})."
        )
    return rows


def read_images(image: Tensor, ycbcr: bool | None) -> tuple[Tensor, bool]:
    """Return (B, C, H, W) in float32 or float64 and whether to work in YCbCr.

    Raises:
        InputError: for another shape or type, NaN, values outside [0, 1], or YCbCr without three channels.
    """
    if not isinstance(image, Tensor):
        raise InputError(f"image is a {type(image).__name__}: give a floating tensor in [0, 1] of shape (B, C, H, W).")
    if image.ndim not in (3, 4) or not image.is_floating_point() or min(image.shape[-3:]) < 1:
        advice = " Divide 8-bit values by 255." if image.dtype == torch.uint8 else ""
        raise InputError(
            f"image is a {str(image.dtype).removeprefix('torch.')} tensor of shape {tuple(image.shape)}: give a "
            f"floating tensor in [0, 1] of shape (B, C, H, W) or (C, H, W).{advice}"
        )
    # elsewhere the answer would have to be waited for
    if image.device.type == "cpu" and image.numel() and not torch.compiler.is_compiling():
        _check_range(image.detach()[..., ::_CHECKED_ROWS, :])
    batch = image if image.ndim == 4 else image.unsqueeze(0)
    channels = batch.shape[1]
    if ycbcr and channels != 3:
        raise InputError(f"ycbcr=True needs 3 channels and the image has {channels}: leave ycbcr out.")
    batch = batch if batch.dtype in (torch.float32, torch.float64) else batch.float()
    return batch, channels == 3 if ycbcr is None else ycbcr


def _is_noise_level(sigma: float | Sequence[float] | Tensor) -> bool:
    if isinstance(sigma, Tensor):
        if sigma.dtype == torch.bool or sigma.is_complex():
            return False
        # elsewhere the answer would have to be waited for
        if sigma.device.type != "cpu" or torch.compiler.is_compiling():
            return True
        level = sigma.detach()
        return bool(((level >= 0) & level.isfinite()).all())
    values = list(sigma) if isinstance(sigma, Sequence) else [sigma]
    return bool(values) and all(
        isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        for value in values
    )


def _check_range(image: Tensor) -> None:
    low, high = (value.item() for value in image.aminmax())
    if low >= -_SLACK and high <= 1 + _SLACK:
        return
    if math.isnan(low):
        raise InputError("image holds NaN: mend the data before it is denoised.")
    raise InputError(
        f"image lies in [{low:.3g}, {high:.3g}] and should lie in [0, 1]: divide 8-bit values by 255, undo a "
        "normalization by mean and std first, or clamp the overshoot of a resize."
    )
