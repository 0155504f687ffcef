"""The best pair of features for JSMA, exactly, without a map of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

# pair scores alive at a time, over the whole batch
_BLOCK = 1 << 22


def best_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Find, per row, the pair p < q that maximizes (a_p + a_q) (b_p + b_q) where both sums are positive.

    The score grows with a and with b. A point with two others that are at least as high in both is not needed: one of
    the two is not its partner and can stand in for it. So a best pair lies in the first two Pareto layers of the
    points (a, b), which a sort and two running maxima find; only their few points are compared pair by pair, block by
    block, so that memory stays bounded even where all points lie on one layer.

    Args:
        first: the a of every feature, shape (B, d); minus infinity takes a feature out.
        second: the b, likewise.

    Returns:
        Positions of the pair, int64 of shape (B, 2), and whether there is a pair with both sums positive, bool of
        shape (B,). The positions of a row without one are meaningless.
    """
    a, b, index, present = _two_layers(_scaled(first), _scaled(second))
    count = a.shape[1]
    best = torch.full_like(a[:, 0], -torch.inf) if count else first.new_full((len(first),), -torch.inf)
    pair = index.new_zeros(len(first), 2)
    later = torch.arange(count, device=a.device)
    size = max(1, _BLOCK // max(1, a.numel()))
    for begin in range(0, count, size):
        part = slice(begin, begin + size)
        sum_a, sum_b = a[:, part, None] + a[:, None], b[:, part, None] + b[:, None]
        allowed = (sum_a > 0) & (sum_b > 0) & (later[part, None] < later)
        allowed &= present[:, part, None] & present[:, None]
        score, place = torch.where(allowed, sum_a * sum_b, -torch.inf).flatten(1).max(dim=1)
        found = torch.stack(
            (index.gather(1, begin + place[:, None] // count)[:, 0], index.gather(1, place[:, None] % count)[:, 0]), 1
        )
        better = score > best
        best, pair = torch.where(better, score, best), torch.where(better[:, None], found, pair)
    return pair.sort(dim=1).values, torch.isfinite(best)


def _scaled(values: Tensor) -> Tensor:
    """Divide each row by its largest size, so that no product underflows; the best pair stays the best."""
    sizes = values.abs().masked_fill(values.isinf(), 0).amax(dim=1, keepdim=True)
    return values / torch.where(sizes > 0, sizes, 1)


def _two_layers(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a, b and position of each row's points on the first two Pareto layers, padded to the longest row."""
    a, order = a.sort(dim=1, descending=True, stable=True)
    b = b.gather(1, order)
    top = _raises_maximum(b)
    kept = top | _raises_maximum(b.masked_fill(top, -torch.inf))
    place = kept.cumsum(dim=1) - 1
    row, column = kept.nonzero(as_tuple=True)
    width = int(kept.sum(dim=1).max())
    shape = (len(a), width)
    where = (row, place[row, column])
    present = torch.zeros(shape, dtype=torch.bool, device=a.device).index_put(where, torch.ones_like(row).bool())
    layers = [
        torch.zeros(shape, dtype=values.dtype, device=a.device).index_put(where, values[row, column])
        for values in (a, b, order)
    ]
    return layers[0], layers[1], layers[2], present


def _raises_maximum(values: Tensor) -> Tensor:
    before = values.cummax(dim=1).values.roll(1, dims=1)
    before[:, 0] = -torch.inf
    return values > before
