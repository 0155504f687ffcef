"""The finest diagonal band in the arithmetic of PyWavelets, for the estimate of the noise.

The estimate leaves out coefficients that are exactly zero. Which ones are depends on the order of the sums, so they are
formed as PyWavelets forms them: tap by tap, first along the height. A matrix product would leave rounding errors in
place of zeros and move the median.
"""

from __future__ import annotations

from torch import Tensor

from lightning_robust.functional._wavelet_banks import FilterBank
from lightning_robust.functional._wavelet_border import extend


def finest_diagonal(planes: Tensor, bank: FilterBank) -> Tensor:
    """Take (N, H, W) to the diagonal band (N, h, w) of one level with symmetric borders."""
    for dim in (-2, -1):
        planes = _high_pass(planes, bank, dim)
    return planes


def _high_pass(x: Tensor, bank: FilterBank, dim: int) -> Tensor:
    size = (x.shape[dim] + bank.length - 1) // 2
    before = bank.length - 2
    extended = extend(x, before, 2 * size + bank.length - 2 - before - x.shape[dim], "symmetric", dim)
    samples = extended.unfold(dim, bank.length, 2).unbind(-1)[::-1]
    total = samples[0] * bank.dec_hi[0]
    for shifted, weight in zip(samples[1:], bank.dec_hi[1:], strict=True):
        # two roundings, a product and a sum: a fused operation would have one
        total = total + shifted * weight
    return total
