"""The order of an epoch, read in several places side by side: each machine needs a part of the shards alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np

from lightning_robust.datamodules.plan import Draws, EpochOrder
from lightning_robust.errors import InputError


def check_streams(streams: int, global_batch: int, *, whole: bool) -> None:
    """Refuse a number of streams that no global batch can be drawn from.

    Args:
        streams: their number.
        global_batch: samples of one batch of all ranks together.
        whole: whether this is training that takes each sample once in an epoch, in an order of its own.

    Raises:
        InputError: naming the number, and what does not go with it.
    """
    if streams < 1:
        raise InputError(f"streams={streams} reads nothing: give 1 or more.")
    if streams > 1 and not whole:
        raise InputError(
            f"streams={streams} is for shuffled training that takes each sample once in an epoch: leave balance and "
            "mix out and shuffle on, or leave streams out."
        )
    if global_batch % streams:
        raise InputError(
            f"streams={streams} cannot each give as much to a global batch of {global_batch} samples: give a number "
            "that divides batch_size x number of ranks, such as the number of machines."
        )


class StreamsOrder:
    """The order of an epoch of which every global batch takes equal parts from several stretches.

    The order of :class:`EpochOrder` is cut into as many stretches of equal length as there are streams. The parts of a
    batch lie in the order of the streams, so that ranks with consecutive numbers share one.

    Args:
        order: of the samples.
        streams: number of stretches; what is left over after the last is not drawn from.
        batch: samples of a global batch, a multiple of ``streams``.
        own: the places in a global batch, from and to, that this process reads.
        shift: position at which batch 0 begins.

    Example:
        >>> order = EpochOrder(np.array([3, 3]), seed=0, epoch=0, window=1)
        >>> order.ids(0, 6), StreamsOrder(order, streams=2, batch=2, own=(0, 2)).draws(0, 2).ids
        (array([4, 3, 5, 1, 2, 0]), array([4, 1]))
    """

    def __init__(self, order: EpochOrder, *, streams: int, batch: int, own: tuple[int, int], shift: int = 0) -> None:
        # each stream holds a window of its own
        self._orders = [copy.copy(order) for _ in range(streams)]
        self._stretch, self._part = len(order) // streams, batch // streams
        self._batch, self._own, self._shift = batch, own, shift

    def draws(self, start: int, stop: int) -> Draws:
        """Samples at the positions ``start`` to ``stop``, which lie in one global batch."""
        batch, place = divmod(start - self._shift, self._batch)
        spans = self._spans(batch, batch, place, place + stop - start)
        parts = [order.draws(first, last) for order, first, last in spans]
        return Draws(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def needed(self, start: int, stop: int) -> list[int]:
        """Shards that this process needs of the global batches from ``start`` to ``stop``, or soon will."""
        begin, end = ((position - self._shift) // self._batch for position in (start, stop - 1))
        found: dict[int, None] = {}
        for order, first, last in self._spans(begin, end, *self._own):
            found |= dict.fromkeys(order.needed(first, last))
        return list(found)

    def _spans(self, first: int, last: int, begin: int, end: int) -> Iterator[tuple[EpochOrder, int, int]]:
        """Orders, with positions from and to, of the places ``begin`` to ``end`` of batches ``first`` to ``last``."""
        for stream in range(begin // self._part, -(-end // self._part)):
            zero = stream * self._stretch + self._shift // len(self._orders)
            low, high = max(begin - stream * self._part, 0), min(end - stream * self._part, self._part)
            yield self._orders[stream], zero + first * self._part + low, zero + last * self._part + high
