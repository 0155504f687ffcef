"""The order of an epoch in which every class is drawn equally often."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_robust.datamodules.permutation import permuted
from lightning_robust.datamodules.plan import Draws, Ids
from lightning_robust.seeds import derive

# positions that are computed together
_BLOCK = 2048


class ClassMembers:
    """Samples by class, 8 bytes each.

    Args:
        labels: class of every sample, int64, shape (N,).
        counts: samples per shard, int64, shape (S,).
    """

    def __init__(self, labels: Ids, counts: Ids) -> None:
        _, self.sizes = np.unique(labels, return_counts=True)
        self._first = np.cumsum(self.sizes) - self.sizes
        self._samples = np.argsort(labels, kind="stable")
        self._shard_ends = np.cumsum(counts)

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint notes."""
        return {"balance": "class"}

    def order(self, *, seed: int, epoch: int, length: int, window: int) -> BalancedOrder:
        """The order of one epoch; it has no window."""
        del window
        return BalancedOrder(self, seed=seed, epoch=epoch, length=length)

    def ids(self, classes: Ids, places: Ids) -> Ids:
        """Sample ids by number of the class, in ascending order of the labels, and place within the class."""
        return np.asarray(self._samples[self._first[classes] + places])

    def shards(self, ids: Ids) -> list[int]:
        """Shards that hold these samples."""
        return [int(shard) for shard in np.unique(np.searchsorted(self._shard_ends, ids, side="right"))]


class BalancedOrder:
    """The order of an epoch in which every class is drawn equally often.

    Of C classes, each is drawn once in every C positions, in random order; where C does not divide the epoch, the
    classes take turns from epoch to epoch to be in its last positions. Each class is gone through in random order, and
    begun again in another one when all its samples were drawn, regardless of where an epoch ends. Any position is
    computed on its own.

    Args:
        members: samples by class.
        seed: seed of the run.
        epoch: every epoch has an order of its own.
        length: positions of every epoch.

    Example:
        >>> members = ClassMembers(np.array([0, 0, 0, 0, 0, 1]), counts=np.array([6]))
        >>> BalancedOrder(members, seed=0, epoch=0, length=6).draws(0, 6)
        Draws(ids=array([5, 3, 5, 0, 5, 4]), rounds=array([0, 0, 1, 0, 2, 0]))
    """

    def __init__(self, members: ClassMembers, *, seed: int, epoch: int, length: int) -> None:
        self._members = members
        self._seed, self._epoch, self._length = seed, epoch, length
        self._held: tuple[int, Draws] = (-1, Draws(np.empty(0, np.int64), np.empty(0, np.int64)))

    def draws(self, start: int, stop: int) -> Draws:
        """Samples at the positions ``start`` to ``stop``, and how often each was drawn before in the whole run."""
        first = start // _BLOCK
        blocks = [self._block(number) for number in range(first, -(-stop // _BLOCK))]
        wanted = slice(start - first * _BLOCK, stop - first * _BLOCK)
        return Draws(*(np.concatenate(part)[wanted] for part in zip(*blocks, strict=True)))

    def needed(self, start: int, stop: int) -> list[int]:
        """Shards that the positions ``start`` to ``stop`` need, and as many positions after them."""
        return self._members.shards(self.draws(start, min(2 * stop - start, self._length)).ids)

    def _block(self, number: int) -> Draws:
        if self._held[0] != number:
            self._held = number, self._computed(number)
        return self._held[1]

    def _computed(self, number: int) -> Draws:
        begin = number * _BLOCK
        turns, places = np.divmod(np.arange(begin, min(begin + _BLOCK, self._length)), len(self._members.sizes))
        classes = self._classes(turns, places)
        drawn = self._drawn_before(classes) + turns
        rounds, places = np.divmod(drawn, sizes := self._members.sizes[classes])
        keys = derive(classes, "class round", self._seed, rounds)
        return Draws(self._members.ids(classes, permuted(places, sizes, keys)), rounds)

    def _classes(self, turns: Ids, places: Ids) -> Ids:
        """Classes at the places of a turn, of which each class has one; the last turn may be incomplete."""
        count = len(self._members.sizes)
        last, rest = divmod(self._length, count)
        incomplete = turns == last
        keys = derive(turns, "class order", self._seed, self._epoch)
        drawn = permuted(places, np.where(incomplete, rest, count), keys)
        return (drawn + np.where(incomplete, self._epoch * rest % count, 0)) % count

    def _drawn_before(self, classes: Ids) -> Ids:
        """How often classes were drawn in all epochs before."""
        count = len(self._members.sizes)
        full, rest = divmod(self._length, count)
        return self._epoch * full + (self._epoch * rest - classes + count - 1) // count
