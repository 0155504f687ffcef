"""The random draws of pixel deflection: where to write, where to read, and whether the activation map allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_robust import seeds as streams

Sampling: TypeAlias = Literal["uniform", "gaussian"]

_STREAM = "pixel_deflection"
_BITS = 31
# counters of a draw's second number: out of the way of the first ones
_FAR = 1 << 40
# The released loop never ends on a map that is 1 everywhere; ours gives up after this many draws for each hit wanted.
_PATIENCE = 16


@dataclass(frozen=True)
class Draws:
    """Deflections in the order in which they are drawn, shape (B, N).

    Attributes:
        target: flat index of what is replaced: of a pixel (``paper``), or of a value of one channel (``released``).
        source: flat index of what replaces it.
        accepted: whether the deflection happens; None where all do.
    """

    target: Tensor
    source: Tensor
    accepted: Tensor | None


def paper_draws(
    image: Tensor, deflections: int, window: int, activation_map: Tensor | None, sampling: Sampling, seeds: Tensor
) -> Draws:
    """Draw exactly ``deflections`` pixels per image; those that the map refuses are lost (section 8, step d)."""
    return _draw(image, deflections, window, activation_map, sampling, seeds, first=0)


def released_draws(image: Tensor, deflections: int, window: int, activation_map: Tensor | None, seeds: Tensor) -> Draws:
    """Draw single values, channel by channel, until enough are accepted, as the released code does.

    Its loop looks at its counter once for each group of one draw per channel, so the last group is always finished;
    and the first row and column are never a source. The number of draws that are computed here changes no draw: it
    only has to be large enough for every image of the batch.
    """
    channels, plane = image.shape[1], image.shape[2] * image.shape[3]
    groups = -(-deflections // channels)
    limit = _PATIENCE * groups
    if activation_map is not None:
        acceptance = (1 - activation_map.flatten(1).float().mean(1)).min().clamp(min=1 / _PATIENCE).item()
        groups = min(limit, int((deflections + 6 * deflections**0.5) / acceptance / channels) + 1)
    while True:
        drawn = _draw(image, groups * channels, window, activation_map, "uniform", seeds, first=1)
        offset = torch.arange(groups * channels, device=image.device) % channels * plane
        target, source, accepted = drawn.target + offset, drawn.source + offset, drawn.accepted
        if accepted is None:
            return Draws(target, source, None)
        if groups == limit or bool((accepted.sum(1) >= deflections).all()):
            return Draws(target, source, accepted & _group_is_run(accepted, channels, deflections))
        groups = min(limit, 2 * groups)


def _group_is_run(accepted: Tensor, channels: int, deflections: int) -> Tensor:
    hits = accepted.view(len(accepted), -1, channels).sum(2)
    before = hits.cumsum(1) - hits
    return (before < deflections).repeat_interleave(channels, dim=1)


def _draw(
    image: Tensor,
    count: int,
    window: int,
    activation_map: Tensor | None,
    sampling: Sampling,
    seeds: Tensor,
    *,
    first: int,
) -> Draws:
    height, width = image.shape[2:]
    # integers, since products of floats may be rounded differently on another device
    order = torch.arange(count, device=seeds.device)
    keys = streams.derive(seeds, _STREAM)[:, None]
    to, by = (streams.derive(keys, order + part * _FAR) for part in (0, 1))
    row, column = _below(_high(to), height), _below(_low(to), width)
    vertical, horizontal = _high(by), _low(by)
    target = row * width + column
    neighbor = _gaussian_neighbor if sampling == "gaussian" else _uniform_neighbor
    source = neighbor(vertical, row, height, window, first).mul_(width)
    source += neighbor(horizontal, column, width, window, first)
    if activation_map is None:
        return Draws(target, source, None)
    chance = streams.uniform(seeds, (count,), _STREAM, "acceptance")
    return Draws(target, source, chance >= activation_map.flatten(1).gather(1, target))


def _high(bits: Tensor) -> Tensor:
    return (bits >> 32).bitwise_and_(0x7FFFFFFF)


def _low(bits: Tensor) -> Tensor:
    return bits & 0x7FFFFFFF


def _below(bits: Tensor, high: int | Tensor) -> Tensor:
    """Map 31 random bits to [0, high), in place."""
    return bits.mul_(high).bitwise_right_shift_(_BITS)


def _uniform_neighbor(bits: Tensor, center: Tensor, size: int, window: int, first: int) -> Tensor:
    low, high = _interval(center, size, window, first)
    return _below(bits, high.sub_(low).add_(1)).add_(low)


def _gaussian_neighbor(bits: Tensor, center: Tensor, size: int, window: int, first: int) -> Tensor:
    """Round a normal of standard deviation window / 2 that is truncated to the interval, by its inverse distribution.

    Rounding turns the normal into a distribution on 2 * reach + 1 offsets: a table, the same on every device.
    """
    low, high = _interval(center, size, window, first)
    reach = min(window, size - 1)
    edges = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5
    below = torch.special.ndtr(edges / max(window / 2, 1e-9)).to(bits.device)
    start, end = below[low - center + reach], below[high - center + reach + 1]
    wanted = start + (end - start) * (bits.to(torch.float64) * 2.0**-_BITS)
    offset = torch.searchsorted(below, wanted, right=True) - 1 - reach
    return torch.minimum(torch.maximum(center + offset, low), high)


def _interval(center: Tensor, size: int, window: int, first: int) -> tuple[Tensor, Tensor]:
    first = min(first, size - 1)
    # the released rule with window 0 would search the first row for ever
    return (center - window).clamp_(min=first), (center + window).clamp_(min=first, max=size - 1)
