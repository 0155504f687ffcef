"""What wavelet shrinkage takes away from an image: the transform is linear, so only the removed part is composed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_robust.functional._wavelet_banks import FilterBank
from lightning_robust.functional._wavelet_haar import is_plain
from lightning_robust.functional._wavelet_options import Method, Shrinkage
from lightning_robust.functional.thresholds import (
    bayes_shrink_threshold,
    hard_residual,
    soft_residual,
    sure_shrink_threshold,
    visu_shrink_threshold,
)
from lightning_robust.functional.wavelets import analyze, synthesize


@dataclasses.dataclass(frozen=True)
class Noise:
    """Noise of each plane, in the units of the plane.

    Args:
        sigma: standard deviation, shape (N,).
        unit: the range that scikit-image takes to [0, 1] before it denoises, shape (N,); its rounding unit is that of
            the scaled plane.
    """

    sigma: Tensor
    unit: Tensor


def removed_noise(
    planes: Tensor, noise: Noise, bank: FilterBank, *, method: Method, mode: Shrinkage, levels: int
) -> Tensor:
    """Return planes minus denoised planes, (N, H, W)."""
    pixels = planes.shape[-2] * planes.shape[-1]
    approximation, pyramid = planes, []
    for _ in range(levels):
        bands = analyze(approximation, bank, "symmetric")
        pyramid.append((approximation.shape[-2:], bands))
        approximation = bands[0]
    removed = torch.zeros_like(approximation)
    while pyramid:
        (height, width), bands = pyramid.pop()
        threshold = _threshold(bands[1:], noise, method, pixels)[..., None, None]
        height_of_band, width_of_band = bands.shape[-2:]
        cut = _cut(bands, removed[:, :height_of_band, :width_of_band], threshold, mode)
        removed = synthesize(cut, bank, "symmetric")[:, :height, :width]
    return removed


def _threshold(details: Tensor, noise: Noise, method: Method, pixels: int) -> Tensor:
    """Thresholds (3, N) of details (3, N, h, w)."""
    if method == "BayesShrink":
        floor = torch.finfo(details.dtype).eps * noise.unit.square()
        return bayes_shrink_threshold(details, noise.sigma, floor=floor)
    if method == "VisuShrink":
        return visu_shrink_threshold(pixels, noise.sigma).expand(details.shape[:2])
    return sure_shrink_threshold(details, noise.sigma)


def _cut(bands: Tensor, approximation: Tensor, threshold: Tensor, mode: Shrinkage) -> Tensor:
    """The removed part of the bands (4, N, h, w), on top of the removed part of the approximation."""
    details = bands[1:]
    if mode == "hard":
        return torch.cat((approximation[None], hard_residual(details, threshold)))
    # written out along a row: torch clamps by broadcast bounds one value at a time
    threshold = threshold.expand(*details.shape[:2], 1, details.shape[-1]).contiguous()
    if is_plain(bands) and is_plain(threshold):
        torch.clamp(details, -threshold, threshold, out=details)
        bands[0].copy_(approximation)
        return bands
    return torch.cat((approximation[None], soft_residual(details, threshold)))
