"""Two-dimensional discrete wavelet transforms of any PyWavelets filter bank, on the device and differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional._wavelet_banks import FilterBank, filter_bank
from lightning_robust.functional._wavelet_border import BORDER_MODES, BorderMode
from lightning_robust.functional._wavelet_filters import analyze_filters, synthesize_filters
from lightning_robust.functional._wavelet_haar import analyze_haar, synthesize_haar


def wavedec2(
    image: Tensor, wavelet: str = "db1", level: int | None = None, mode: BorderMode = "symmetric"
) -> list[Tensor]:
    """Decompose maps into wavelet bands, coarsest first; the numbers of ``pywt.wavedec2``.

    ``torch.unbind(details, -3)`` is PyWavelets' tuple (H, V, D). Levels beyond :func:`max_level` are computed as
    PyWavelets does, where every coefficient sees the border.

    Args:
        image: maps of shape (..., H, W) in a floating dtype. Half precision is computed in float32.
        wavelet: name of a discrete wavelet of PyWavelets. ``"db1"`` and ``"haar"`` have a fast path.
        level: number of levels, or None for :func:`max_level`. Level 0 returns the image alone.
        mode: what lies beyond the border, as PyWavelets names it; ``"periodization"`` gives the fewest coefficients.

    Returns:
        ``[approximation (..., h, w), details (..., 3, h, w), ..., details of the finest level]``, in the dtype of
        ``image``.

    Raises:
        InputError: if the image is no floating-point map or an option is unknown.

    Example:
        >>> approximation, details = wavedec2(torch.ones(1, 3, 5, 8), "db2", level=1)
        >>> details.shape
        torch.Size([1, 3, 3, 4, 5])
    """
    bank = check_transform(wavelet, mode)
    if not isinstance(image, Tensor):
        raise InputError(f"image is a {type(image).__name__}: give a floating tensor of shape (..., H, W).")
    if image.ndim < 2 or not image.is_floating_point() or min(image.shape[-2:]) < 1:
        dtype = str(image.dtype).removeprefix("torch.")
        raise InputError(
            f"image is a {dtype} tensor of shape {tuple(image.shape)}: give floating maps of shape (..., H, W)."
        )
    height, width = image.shape[-2:]
    level = max_level((height, width), wavelet) if level is None else level
    if isinstance(level, bool) or not isinstance(level, Integral) or level < 0:
        raise InputError(f"level={level!r} is no number of levels: give 0 or more, or None for all that fit.")
    work = image if image.dtype in (torch.float32, torch.float64) else image.float()
    leading = image.shape[:-2]
    with torch.autocast(image.device.type, enabled=False):
        approximation = work.reshape(-1, height, width)
        coefficients: list[Tensor] = []
        for _ in range(level):
            bands = analyze(approximation, bank, mode)
            approximation = bands[0]
            coefficients.insert(0, bands[1:].movedim(0, 1).reshape(*leading, 3, *bands.shape[-2:]).to(image.dtype))
        return [approximation.reshape(*leading, *approximation.shape[-2:]).to(image.dtype), *coefficients]


def waverec2(coefficients: Sequence[Tensor], wavelet: str = "db1", mode: BorderMode = "symmetric") -> Tensor:
    """Compose maps from the bands of :func:`wavedec2`; the numbers of ``pywt.waverec2``.

    A map of odd size comes back one sample longer, as in PyWavelets: crop it to ``[..., :H, :W]``.

    Args:
        coefficients: as :func:`wavedec2` returns them, of one dtype.
        wavelet: the name that they were made with.
        mode: the border that they were made with.

    Returns:
        Maps of shape (..., H, W), in the dtype of the coefficients.

    Raises:
        InputError: if the coefficients do not fit each other or an option is unknown.
    """
    bank = check_transform(wavelet, mode)
    if not coefficients or not all(isinstance(band, Tensor) and band.is_floating_point() for band in coefficients):
        raise InputError("coefficients is not what wavedec2 returns: give a list of floating tensors, coarsest first.")
    first = coefficients[0]
    leading, dtype = first.shape[:-2], first.dtype
    approximation = first.reshape(-1, *first.shape[-2:])
    approximation = approximation if dtype in (torch.float32, torch.float64) else approximation.float()
    with torch.autocast(first.device.type, enabled=False):
        for details in coefficients[1:]:
            height, width = details.shape[-2:]
            longer = approximation.shape[-2] - height, approximation.shape[-1] - width
            if details.shape[:-2] != (*leading, 3) or not set(longer) <= {0, 1}:
                raise InputError(
                    f"coefficients holds details of shape {tuple(details.shape)} beside an approximation of shape "
                    f"{(*leading, *approximation.shape[-2:])}: give (..., 3, h, w) with the same leading sizes and "
                    "the h and w of the approximation, as wavedec2 returns them."
                )
            planes = details.reshape(-1, 3, height, width).movedim(1, 0).to(approximation.dtype)
            bands = torch.cat((approximation[None, :, :height, :width], planes))
            approximation = synthesize(bands, bank, mode)
    return approximation.reshape(*leading, *approximation.shape[-2:]).to(dtype)


def max_level(size: int | tuple[int, int], wavelet: str = "db1") -> int:
    """Largest number of levels with a coefficient that no border touches, by the rule of PyWavelets.

    Args:
        size: of an axis, or (height, width), in pixels.
        wavelet: name of a discrete wavelet of PyWavelets.

    Returns:
        floor(log2(shortest axis / (filter length - 1))), at least 0.
    """
    shortest = size if isinstance(size, int) else min(size)
    bank: FilterBank = filter_bank(wavelet)
    return max((shortest // (bank.length - 1)).bit_length() - 1, 0)


def check_transform(wavelet: str, mode: str) -> FilterBank:
    """Return the filter bank of a known wavelet.

    Raises:
        InputError: if wavelet or mode is unknown.
    """
    if mode not in BORDER_MODES:
        raise InputError(f"mode={mode!r} is no border of this package: choose one of {', '.join(BORDER_MODES)}.")
    bank: FilterBank = filter_bank(wavelet)
    return bank


def analyze(planes: Tensor, bank: FilterBank, mode: str) -> Tensor:
    """Take (N, H, W), float32 or float64, to the bands (4, N, h, w) of one level."""
    return analyze_haar(planes, mode) if bank.is_haar else analyze_filters(planes, bank, mode)


def synthesize(bands: Tensor, bank: FilterBank, mode: str) -> Tensor:
    """Take the bands (4, N, h, w) of one level back to (N, H, W)."""
    return synthesize_haar(bands) if bank.is_haar else synthesize_filters(bands, bank, mode)
