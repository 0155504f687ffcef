"""What a sequence of deflections comes to: which draw writes last, and which value of the first image it carries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_robust.functional._deflection_draws import Draws


@dataclass(frozen=True)
class Writes:
    """The end of a sequence of deflections, shape (B, N).

    Draws that share a target all carry the outcome of the last of them, so that it does not matter which one a device
    writes last.

    Attributes:
        target: flat index that is written to.
        source: flat index, in the original image, of the value that ends there.
        alone: True for one draw of each target.
        replaced: whether any draw of the target was accepted; None where all were.
    """

    target: Tensor
    source: Tensor
    alone: Tensor
    replaced: Tensor | None


def resolve(draws: Draws, places: int, *, chained: bool) -> Writes:
    """Find the outcome of deflections made one after another.

    Args:
        draws: in order.
        places: number of flat indices.
        chained: whether a draw reads what earlier draws wrote (the released code), or the original image (the paper).

    Returns:
        One entry per draw.
    """
    batch, count = draws.target.shape
    order = torch.arange(count, device=draws.target.device).expand(batch, count)
    source = draws.source.gather(1, _roots(draws)) if chained else draws.source
    rank = order
    if draws.accepted is not None:
        rank = torch.where(draws.accepted, order + count, order)
        source = torch.where(draws.accepted, source, draws.target)
    # only what is drawn is written and read: filling all places would cost more than everything else
    last = torch.empty(batch, places, dtype=torch.int64, device=rank.device)
    last.scatter_(1, draws.target, -1).scatter_reduce_(1, draws.target, rank, "amax")
    winner = last.gather(1, draws.target)
    alone = winner == rank
    if draws.accepted is None:
        return Writes(draws.target, source.gather(1, winner), alone, None)
    replaced = winner >= count
    return Writes(draws.target, source.gather(1, winner - count * replaced), alone, replaced)


def write(flat: Tensor, values: Tensor, writes: Writes) -> Tensor:
    """Put values in their places.

    Args:
        flat: shape (B, C, P).
        values: shape (B, C, N), equal where targets are.
        writes: of :func:`resolve`.

    Returns:
        A new tensor like ``flat``, with its exact gradient.
    """
    if values.requires_grad:
        # scatter sends the whole gradient of a target to each draw that wrote there: only one may pass it on
        values = torch.where(writes.alone[:, None], values, values.detach())
    return flat.scatter(2, over_channels(writes.target, flat), values)


def over_channels(index: Tensor, flat: Tensor) -> Tensor:
    """Use one (B, N) index for all channels of a (B, C, P) tensor."""
    return index[:, None].expand(-1, flat.shape[1], -1)


def _roots(draws: Draws) -> Tensor:
    """For each draw, the one that took from the original image what this draw finds at its source."""
    count = draws.target.shape[1]
    order = torch.arange(count, device=draws.target.device)
    shift = count.bit_length()
    written = draws.target if draws.accepted is None else torch.where(draws.accepted, draws.target, -1)
    keys = ((written << shift) | order).sort(dim=1).values
    # the key before is that of the latest earlier draw to this target, if there is one
    place = torch.searchsorted(keys, (draws.source << shift) | order) - 1
    found = keys.gather(1, place.clamp(min=0))
    was_written = (place >= 0) & (found >> shift == draws.source)
    parent = torch.where(was_written, found & ((1 << shift) - 1), order)
    for _ in range(count.bit_length()):
        parent = parent.gather(1, parent)
    return parent
