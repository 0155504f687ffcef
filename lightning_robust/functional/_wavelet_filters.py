"""One level of a two-dimensional wavelet transform, for any filter bank: small products over overlapping stretches.

A filter of stride 2 is a banded matrix. Cut into stretches of equal length, all of its bands are one small matrix, so
the cost per pixel does not grow with the image, and borders of any kind are only samples that are added first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.functional._wavelet_banks import BLOCK, FilterBank, constant_matrix, product
from lightning_robust.functional._wavelet_border import extend


def analyze_filters(planes: Tensor, bank: FilterBank, mode: str) -> Tensor:
    """Take (N, H, W) to bands (4, N, h, w) in the order A, H, V, D of PyWavelets."""
    height, width = planes.shape[-2:]
    matrix = constant_matrix("analysis", bank.name, planes.dtype, planes.device)
    stretch = matrix.shape[0]
    columns = _extended(planes, bank, mode, -1).unfold(-1, stretch, 2 * BLOCK)
    # (N, H, blocks, 2, BLOCK): low and high of one block after another
    along_width = torch.unflatten(product(columns, matrix), -1, (2, BLOCK)).transpose(-2, -3)
    both = along_width.flatten(-3)
    rows = _extended(both, bank, mode, -2).unfold(-2, stretch, 2 * BLOCK)
    along_height = product(matrix.T, rows.transpose(-1, -2))
    bands = torch.unflatten(torch.unflatten(along_height, -2, (2, BLOCK)), -1, (2, both.shape[-1] // 2))
    bands = bands.permute(4, 2, 0, 1, 3, 5).flatten(3, 4).flatten(0, 1)
    # first index: along the width; PyWavelets' H is low along the width
    return bands[..., : _band_size(height, bank, mode), : _band_size(width, bank, mode)]


def synthesize_filters(bands: Tensor, bank: FilterBank, mode: str) -> Tensor:
    """Take bands (4, N, h, w) back to (N, H, W); a signal of odd size comes back one sample longer."""
    matrix = constant_matrix("synthesis", bank.name, bands.dtype, bands.device)
    low_then_high = torch.unflatten(bands, 0, (2, 2))
    # along the height, for both halves of the width at once
    halves = _join(low_then_high[:, 0], low_then_high[:, 1], matrix, bank, mode, -2)
    return _join(halves[0], halves[1], matrix, bank, mode, -1)


def _extended(x: Tensor, bank: FilterBank, mode: str, dim: int) -> Tensor:
    blocks = -(-_band_size(x.shape[dim], bank, mode) // BLOCK)
    before = bank.length // 2 - 1 if mode == "periodization" else bank.length - 2
    return extend(x, before, 2 * BLOCK * blocks + bank.length - 2 - before - x.shape[dim], mode, dim)


def _band_size(size: int, bank: FilterBank, mode: str) -> int:
    return (size + 1) // 2 if mode == "periodization" else (size + bank.length - 1) // 2


def _join(low: Tensor, high: Tensor, matrix: Tensor, bank: FilterBank, mode: str, dim: int) -> Tensor:
    half, count = bank.length // 2, low.shape[dim]
    skipped = 0
    size = 2 * count - bank.length + 2
    before = 0
    if mode == "periodization":
        before, skipped = (half // 2, 1) if half % 2 == 0 else ((half - 1) // 2, 0)
        size = 2 * count
    blocks = -(-(size + skipped) // (2 * BLOCK))
    after = BLOCK * blocks + half - 1 - before - count
    border = "periodic" if mode == "periodization" else "zero"
    stretches = [extend(band, before, after, border, dim).unfold(dim, BLOCK + half - 1, BLOCK) for band in (low, high)]
    both = torch.cat(stretches, -1)
    if dim == -1:
        samples = product(both, matrix).flatten(-2)
    else:
        samples = product(matrix.T, both.transpose(-1, -2)).flatten(-3, -2)
    return samples.narrow(dim, skipped, size)
