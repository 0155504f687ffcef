"""Laplacian sharpening of images before they are published, its measure and its inverse.

After "Efficient Preemptive Robustification with Image Sharpening" (Liang and Pun, arXiv 2603.25244). The paper's
kernel, border and rounding were not available to us; the defaults are our reading of its name and of its strength 0.15.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional._sharpening_arithmetic import add_rounded, continuous, factor, rounded
from lightning_robust.functional._sharpening_laplacian import Neighbors, laplacian
from lightning_robust.functional._sharpening_options import (
    Alpha,
    check_options,
    rational,
    read_images,
    read_strengths,
)
from lightning_robust.functional._sharpening_planes import Padding
from lightning_robust.images import clip_unit

_SEARCH_STEPS = 24
_SEARCH_TOLERANCE_DB = 0.01


def laplacian_sharpen(
    image: Tensor,
    alpha: Alpha = 0.15,
    *,
    neighbors: Neighbors = 4,
    normalize: bool = False,
    padding: Padding = "replicate",
    levels: int | None = 256,
) -> Tensor:
    """Add ``alpha`` times the Laplacian (center minus neighbors) to an image, clip it, and round it to 8 bits.

    With ``levels`` the image is first put on the grid of values that a file can hold; the detail ``alpha * L`` is then
    rounded half up in exact arithmetic. uint8 and float images of the same picture, on every device, give the same
    values bit for bit.

    The gradient is that of the unrounded map: rounding passes it straight through, clipped values stop it, values that
    reach 0 or 1 exactly do not. ``alpha`` gets none.

    Args:
        image: (B, C, H, W) or (C, H, W); floating in [0, 1], or uint8. Half precision is computed in float32. On the
            CPU every eighth row is checked for its range and for NaN; on other devices, where that would wait for the
            device, none. What no check meets is clipped.
        alpha: strength, one for all or one per sample, taken as the nearest fraction with a denominator up to 1,000.
        neighbors: 4 or 8 of them make the Laplacian.
        normalize: divide the Laplacian by ``neighbors``.
        padding: what lies beyond the border. ``replicate`` keeps the image mean and makes the operator symmetric.
        levels: number of values per channel of the result, or None for no rounding. uint8 images take 256 only.

    Returns:
        The sharpened image, of the shape and type of ``image``.

    Raises:
        InputError: for a wrong shape, type, range or option.

    Example:
        >>> image = torch.full((1, 5, 5), 40, dtype=torch.uint8)
        >>> image[0, 2, 2] = 140
        >>> laplacian_sharpen(image)[0, 2].tolist()
        [40, 25, 200, 25, 40]
    """
    check_options(image, neighbors=neighbors, padding=padding, levels=levels)
    batch = read_images(image)
    strengths = read_strengths(alpha, len(batch), neighbors=neighbors, normalize=normalize)
    exact = batch if batch.dtype in (torch.uint8, torch.float64) else batch.float()
    if levels is None:
        sharp = continuous(exact, strengths, neighbors, padding)
    else:
        sharp = rounded(exact.detach(), strengths, neighbors, padding, top=levels - 1)
        if torch.is_grad_enabled() and image.requires_grad:
            smooth = continuous(exact, strengths, neighbors, padding)
            sharp = sharp + (smooth - smooth.detach())
    sharp = sharp.to(image.dtype)
    return sharp if image.ndim == 4 else sharp.squeeze(0)


def texture_intensity(image: Tensor) -> Tensor:
    """Mean absolute 4-neighbor Laplacian on the 0 to 255 scale, per sample.

    Liang and Pun name texture intensity as what goes with robustness; this measure of it is ours.

    Args:
        image: (B, C, H, W) or (C, H, W); floating in [0, 1], or uint8.

    Returns:
        (B,), or a scalar for one image; float32 (float64 for float64 images).

    Raises:
        InputError: for a wrong shape, type or range.
    """
    batch = _as_unit(read_images(image))
    detail = 255 * laplacian(batch, neighbors=4, padding="replicate").abs().mean((1, 2, 3))
    return detail if image.ndim == 4 else detail[0]


def alpha_for_psnr(
    image: Tensor,
    psnr: float,
    *,
    neighbors: Neighbors = 4,
    normalize: bool = False,
    padding: Padding = "replicate",
    levels: int | None = 256,
    max_alpha: float = 1.0,
) -> Tensor:
    """Find the strength at which each sharpened image differs from its original by a wanted PSNR.

    ``laplacian_sharpen(image, alpha_for_psnr(image, 32.0))`` changes every image by the same amount, where one strength
    for all changes textured images more than smooth ones. The PSNR falls as the strength grows, clipping and rounding
    included, so a bracketed search finds it, to 0.05 dB unless ``max_alpha`` binds (a constant image can never change)
    or so few pixels change that one rounding step is more. The search is ours.

    Args:
        image: (B, C, H, W) or (C, H, W); floating in [0, 1], or uint8.
        psnr: wanted peak signal-to-noise ratio in dB, positive.
        neighbors: as for :func:`laplacian_sharpen`, like the next three.
        normalize: see there.
        padding: see there.
        levels: see there.
        max_alpha: largest strength to return.

    Returns:
        Strengths (B,), or a scalar for one image; float64 on the CPU, fractions with denominators up to 1,000.

    Raises:
        InputError: for a wrong image or option.
    """
    if not (math.isfinite(psnr) and psnr > 0):
        raise InputError(f"psnr={psnr} is not a distance in dB: give a positive number, for example 32.")
    if not (math.isfinite(max_alpha) and max_alpha > 0):
        raise InputError(f"max_alpha={max_alpha} is not a limit: give a positive number.")
    check_options(image, neighbors=neighbors, padding=padding, levels=levels)
    with torch.no_grad():
        batch = _as_unit(read_images(image))
        grid = batch if levels is None else (batch * (levels - 1)).round().clamp_(0, levels - 1)
        detail = laplacian(grid, neighbors=neighbors, padding=padding)

        def reached(alpha: Tensor) -> Tensor:
            strengths = read_strengths(alpha, len(batch), neighbors=neighbors, normalize=normalize)
            if levels is None:
                sharp = (batch + detail * factor(strengths, batch)).clamp_(0, 1)
            else:
                sharp = add_rounded(grid, detail, strengths, neighbors, levels - 1) / (levels - 1)
            return -10 * torch.log10((sharp - batch).square().mean((1, 2, 3)).double().cpu())

        scale = 1 if levels is None else levels - 1
        spread = detail.square().mean((1, 2, 3)).sqrt().double().cpu() / (scale * (neighbors if normalize else 1))
        alpha = _search(reached, (10 ** (-psnr / 20) / spread).clamp(max=max_alpha), psnr, max_alpha)
    return alpha if image.ndim == 4 else alpha[0]


def undo_sharpening(image: Tensor, alpha: Alpha, *, neighbors: Neighbors = 4, normalize: bool = False) -> Tensor:
    """Invert :func:`laplacian_sharpen` with ``replicate`` padding, as an informed attacker can.

    The operator is diagonal in the two-dimensional DCT-II with gains of at least 1, so the inverse always exists; only
    clipping and rounding lose anything. Computed in float64 by an FFT of the mirrored image; differentiable, with the
    gradient stopped where the result is clipped.

    Args:
        image: a sharpened image, (B, C, H, W) or (C, H, W); floating in [0, 1], or uint8.
        alpha: the strength it was sharpened with, one for all or one per sample.
        neighbors: as it was sharpened with.
        normalize: as it was sharpened with.

    Returns:
        The estimate of the original, clipped to [0, 1]; a uint8 image gives uint8, rounded.

    Raises:
        InputError: for a wrong shape, type, range or option.
    """
    check_options(image, neighbors=neighbors, padding="replicate", levels=256)
    batch = read_images(image)
    strengths = read_strengths(alpha, len(batch), neighbors=neighbors, normalize=normalize)
    unit = batch.double() / 255 if batch.dtype == torch.uint8 else batch.double()
    height, width = unit.shape[-2:]
    rows = torch.cat((unit, unit.flip(-2)), -2)
    mirrored = torch.cat((rows, rows.flip(-1)), -1)
    gain = 1 + factor(strengths, mirrored) * _laplacian_gain(height, width, neighbors).to(unit.device)
    inverse = torch.fft.irfft2(torch.fft.rfft2(mirrored) / gain, s=(2 * height, 2 * width))
    original = clip_unit(inverse[..., :height, :width])
    if image.dtype == torch.uint8:
        original = (original * 255).round()
    original = original.to(image.dtype)
    return original if image.ndim == 4 else original.squeeze(0)


def _search(reached: Callable[[Tensor], Tensor], start: Tensor, psnr: float, max_alpha: float) -> Tensor:
    """Strength per sample at which the falling function ``reached`` comes nearest to ``psnr``."""
    alpha = best = start
    best_gap = torch.full_like(start, math.inf)
    low, high = torch.zeros_like(start), torch.full_like(start, math.inf)
    for _ in range(_SEARCH_STEPS):
        alpha = torch.tensor([float(rational(value)) for value in alpha.tolist()], dtype=torch.float64)
        gap = reached(alpha) - psnr
        better = gap.abs() < best_gap
        best, best_gap = torch.where(better, alpha, best), torch.where(better, gap.abs(), best_gap)
        low, high = torch.where(gap > 0, alpha, low), torch.where(gap > 0, high, alpha)
        if bool(((best_gap < _SEARCH_TOLERANCE_DB) | (low >= max_alpha)).all()):
            break
        step = (alpha * 10 ** (gap / 20)).clamp(max=max_alpha)
        middle = ((low + high) / 2).clamp(max=max_alpha)
        alpha = torch.where((step > low) & (step < high), step, middle)
    return best


def _as_unit(batch: Tensor) -> Tensor:
    if batch.dtype == torch.uint8:
        return batch.float() / 255
    return batch if batch.dtype == torch.float64 else batch.float()


def _laplacian_gain(height: int, width: int, neighbors: Neighbors) -> Tensor:
    """Eigenvalues of the Laplacian on the mirrored grid, for ``rfft2``: (2H, W + 1), float64."""
    along_height = 2 * torch.cos(math.pi * torch.arange(2 * height, dtype=torch.float64) / height)[:, None]
    along_width = 2 * torch.cos(math.pi * torch.arange(width + 1, dtype=torch.float64) / width)
    if neighbors == 4:
        return 4 - along_height - along_width
    return 9 - (1 + along_height) * (1 + along_width)
