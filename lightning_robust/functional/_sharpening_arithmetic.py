"""Image plus strength times Laplacian: continuous with its gradient, and rounded without an error."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from lightning_robust.functional._sharpening_laplacian import Neighbors, laplacian, laplacian_kernel
from lightning_robust.functional._sharpening_planes import Padding, filter_planes, from_bytes, suits_opencv, to_bytes
from lightning_robust.images import clip_unit


def factor(strengths: tuple[Fraction, ...], like: Tensor) -> float | Tensor:
    """The strengths as one number, or as (B, 1, 1, 1)."""
    if len(strengths) == 1:
        return float(strengths[0])
    return like.new_tensor([float(strength) for strength in strengths]).view(-1, 1, 1, 1)


def continuous(batch: Tensor, strengths: tuple[Fraction, ...], neighbors: Neighbors, padding: Padding) -> Tensor:
    """Sharpen a floating batch without rounding; differentiable."""
    plain = not (torch.is_grad_enabled() and batch.requires_grad)
    if plain and len(strengths) == 1 and suits_opencv(batch):
        return _filter(batch, strengths, neighbors, padding).clamp_(0, 1)
    return clip_unit(batch + factor(strengths, batch) * laplacian(batch, neighbors=neighbors, padding=padding))


def rounded(
    batch: Tensor, strengths: tuple[Fraction, ...], neighbors: Neighbors, padding: Padding, *, top: int
) -> Tensor:
    """Sharpen on the grid of ``0..top``: by OpenCV on bytes where that is exact, else on integer-valued floats."""
    if top == 255 and batch.dtype != torch.float64 and suits_opencv(batch) and _bytes_are_exact(strengths, neighbors):
        if batch.dtype == torch.uint8:
            return _filter(batch, strengths, neighbors, padding)
        return from_bytes(_filter(to_bytes(batch), strengths, neighbors, padding))
    grid = batch.float() if batch.dtype == torch.uint8 else (batch * top).round().clamp_(0, top)
    values = add_rounded(grid, laplacian(grid, neighbors=neighbors, padding=padding), strengths, neighbors, top)
    if batch.dtype == torch.uint8:
        return values.to(torch.uint8)
    # by a tensor: CUDA takes a division by a number for a multiplication with its reciprocal
    return values.to(batch.dtype) / batch.new_full((), top)


def _filter(batch: Tensor, strengths: tuple[Fraction, ...], neighbors: Neighbors, padding: Padding) -> Tensor:
    # one call per strength: OpenCV takes one kernel, and a sample stays in the cache
    parts = [batch] if len(strengths) == 1 else [batch[i : i + 1] for i in range(len(batch))]
    lift = batch.dtype == torch.uint8
    filtered = [
        filter_planes(
            part,
            _sharpening_kernel(strength, neighbors),
            padding=padding,
            delta=_tie_lift(strength) if lift else 0.0,
        )
        for part, strength in zip(parts, strengths, strict=True)
    ]
    return filtered[0] if len(filtered) == 1 else torch.cat(filtered)


def _tie_lift(strength: Fraction) -> float:
    """Half a step of the exact values, multiples of 1/q: it lifts the ties, which only an even q has."""
    return 0.5 / strength.denominator if strength.denominator % 2 == 0 else 0.0


def _bytes_are_exact(strengths: tuple[Fraction, ...], neighbors: Neighbors) -> bool:
    """Whether OpenCV's float32 sums stay within the half step that then lies between any value and the next tie."""
    for strength in strengths:
        products, partial_sums = 1 + 2 * neighbors * strength, 1 + neighbors * strength
        error = 255 * (2 * products + (neighbors + 2) * partial_sums) * Fraction(1, 2**24)
        if error >= Fraction(1, 2 * strength.denominator):
            return False
    return True


def _sharpening_kernel(strength: Fraction, neighbors: Neighbors) -> Tensor:
    kernel = float(strength) * laplacian_kernel(neighbors)
    kernel[1, 1] += 1
    return kernel


def add_rounded(
    grid: Tensor, detail: Tensor, strengths: tuple[Fraction, ...], neighbors: Neighbors, top: int
) -> Tensor:
    """Clip ``grid + floor(p/q * detail + 1/2)``, all integers, without a rounding error.

    The floor is that of ``(4 p L + 2 q + 1) / 4 q``. The odd numerator stays a full ``1/4q`` away from every integer,
    so that not even a division that is off by some units in the last place can cross one.
    """
    bound = max(4 * s.numerator * neighbors * top + 2 * s.denominator + 1 for s in strengths)
    kind = torch.float32 if bound < 2**22 and grid.dtype == torch.float32 else torch.float64
    wide_detail = detail.to(kind)
    slope = _factor_of([4 * s.numerator for s in strengths], wide_detail)
    offset = _factor_of([2 * s.denominator + 1 for s in strengths], wide_detail)
    divisor = _factor_of([4 * s.denominator for s in strengths], wide_detail)
    change = torch.floor((wide_detail * slope + offset) / divisor)
    return (change + grid).clamp_(0, top).to(grid.dtype)


def _factor_of(values: list[int], like: Tensor) -> float | Tensor:
    return float(values[0]) if len(values) == 1 else like.new_tensor(values).view(-1, 1, 1, 1)
