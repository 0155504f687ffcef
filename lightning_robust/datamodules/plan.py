"""Which sample goes into which batch: pure functions of (shard sizes, seed, epoch, global batch size).

Rank and world size only select slices of the plan, and the number of workers does not enter it at all.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from lightning_robust.errors import InputError
from lightning_robust.seeds import derive

Ids: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"


class Draws(NamedTuple):
    """Samples at some positions of an order.

    Attributes:
        ids: sample ids, int64.
        rounds: int64; no sample comes twice in one round, so that (sample, round) names a draw of the whole run.
    """

    ids: Ids
    rounds: Ids


def count_train_batches(samples: int, *, batch_size: int, world: int = 1) -> int:
    """Number of full training batches, the same on every rank; the incomplete last one is dropped.

    Args:
        samples: samples of the data set.
        batch_size: samples per rank and batch.
        world: number of ranks.

    Raises:
        InputError: if there is not one full batch for every rank.
    """
    batches = samples // (batch_size * world)
    if batches == 0:
        raise InputError(
            f"{samples} training samples do not fill one global batch of {batch_size * world} "
            f"(batch_size={batch_size} on each of {world} ranks): take batch_size at most {samples // world}"
            + ("." if samples >= world else ", which needs fewer ranks or more samples.")
        )
    return batches


def train_batch_positions(batch: int, *, batch_size: int, rank: int = 0, world: int = 1) -> tuple[int, int]:
    """First position and end, in the order of the epoch, of one rank's part of a global batch."""
    start = (batch * world + rank) * batch_size
    return start, start + batch_size


def check_window(window: int) -> None:
    """Refuse a window that holds no shard."""
    if window < 1:
        raise InputError(f"shuffle_window={window} is not a number of shards: give 1 or more.")


class ShardWindows:
    """Runs of ``window`` shards, which an epoch needs one after the other.

    Args:
        counts: samples per shard, int64, shape (S,).
        shards: numbers of the shards in the order of the epoch.
        window: shards in a run.
    """

    def __init__(self, counts: Ids, shards: Ids, window: int) -> None:
        check_window(window)
        self._shards, self._window = shards, window
        ends = np.cumsum(np.asarray(counts, dtype=np.int64)[shards])
        self.ends = np.append(ends[window - 1 : -1 : window], ends[-1:])

    def number_at(self, position: int) -> int:
        """Number of the window that holds a position of the order."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def shards(self, number: int) -> Ids:
        """Shards of a window, int64."""
        return self._shards[number * self._window : (number + 1) * self._window]

    def needed(self, start: int, stop: int) -> list[int]:
        """Shards of all windows that the positions ``start`` to ``stop`` lie in, and of the window after these."""
        last = self.number_at(max(start, stop - 1)) + 1
        return [int(shard) for number in range(self.number_at(start), last + 1) for shard in self.shards(number)]


class ShardNeeds(Protocol):
    """Says which shards the coming positions of an epoch need."""

    def needed(self, start: int, stop: int) -> list[int]:
        """Shards that the positions ``start`` to ``stop`` need, and those to fetch ahead."""
        ...


class Order(ShardNeeds, Protocol):
    """The order of the training samples in one epoch."""

    def draws(self, start: int, stop: int) -> Draws:
        """Samples at the positions ``start`` to ``stop``."""
        ...


class EpochOrder:
    """The order of the training samples in one epoch.

    The shards are permuted, cut into windows of ``window`` shards, and the samples are permuted inside each window.
    Only one window is held in memory.

    Args:
        counts: samples per shard, int64, shape (S,).
        seed: seed of the run.
        epoch: every epoch has an order of its own.
        window: shards that are mixed with each other; as many as there are shards gives a full permutation.
        shards: numbers of the shards that take part, int64, ascending; None for all.

    Example:
        >>> order = EpochOrder(np.array([3, 2, 4]), seed=0, epoch=0, window=2)
        >>> sorted(order.ids(0, 9).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """

    def __init__(self, counts: Ids, *, seed: int, epoch: int, window: int, shards: Ids | None = None) -> None:
        self._counts = np.asarray(counts, dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._path = (seed, epoch)
        self._epoch = epoch
        shards = np.arange(len(self._counts), dtype=np.int64) if shards is None else shards
        keys = derive(shards, "shard order", *self._path)
        self.windows = ShardWindows(self._counts, shards[np.argsort(keys, kind="stable")], window)
        self._held: tuple[int, Ids] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return int(self.windows.ends[-1])

    def ids(self, start: int, stop: int) -> Ids:
        """Sample ids at the positions ``start`` to ``stop`` of the order, int64."""
        parts = [np.empty(0, np.int64)]
        number, ends = self.windows.number_at(start), self.windows.ends
        while start < stop:
            begin = int(ends[number - 1]) if number else 0
            end = min(stop, int(ends[number]))
            parts.append(self._window_ids(number)[start - begin : end - begin])
            start, number = end, number + 1
        return np.concatenate(parts)

    def draws(self, start: int, stop: int) -> Draws:
        """Samples at the positions ``start`` to ``stop``; an epoch is a round."""
        return Draws(self.ids(start, stop), np.full(stop - start, self._epoch))

    def needed(self, start: int, stop: int) -> list[int]:
        """Shards that the positions ``start`` to ``stop`` need, or soon will: see :meth:`ShardWindows.needed`."""
        return self.windows.needed(start, stop)

    def _window_ids(self, number: int) -> Ids:
        if self._held[0] != number:
            shards = self.windows.shards(number)
            counts = self._counts[shards]
            offsets = np.repeat(self._first[shards] - (np.cumsum(counts) - counts), counts)
            ids = offsets + np.arange(len(offsets), dtype=np.int64)
            keys = derive(ids, "sample order", *self._path)
            self._held = number, ids[np.argsort(keys, kind="stable")]
        return self._held[1]


def count_evaluation_batches(samples: int, *, batch_size: int, world: int = 1) -> int:
    """Number of evaluation batches, the same on every rank, such that no batch is empty or above ``batch_size``.

    Args:
        samples: samples of the data set.
        batch_size: the most samples per rank and batch.
        world: number of ranks.

    Raises:
        InputError: if some rank would get an empty batch: fewer samples than ranks, or batches of 1 over a number of
            samples that the ranks do not divide.
    """
    if samples < world:
        raise InputError(
            f"{samples} samples cannot be evaluated once each on {world} ranks, since a rank would get none: "
            f"use at most {samples} ranks."
        )
    if batch_size == 1 and samples % world:
        raise InputError(
            f"{samples} samples cannot be evaluated once each in batches of 1 on {world} ranks, since a rank would "
            "get an empty batch: take eval_batch_size=2 or more, or a number of ranks that divides the samples."
        )
    return math.ceil(math.ceil(samples / world) / batch_size)


def evaluation_batch(batch: int, *, samples: int, batch_size: int, rank: int = 0, world: int = 1) -> Ids:
    """Sample ids of one evaluation batch: every sample is in exactly one batch of one rank, and nothing is padded.

    Rank r has the samples r, r + world, ...; they are split into the common number of batches, whose sizes differ by
    at most one.

    Returns:
        int64 ids, at most ``batch_size`` and at least one.
    """
    batches = count_evaluation_batches(samples, batch_size=batch_size, world=world)
    own = (samples - rank + world - 1) // world
    return rank + world * np.arange(batch * own // batches, (batch + 1) * own // batches, dtype=np.int64)
