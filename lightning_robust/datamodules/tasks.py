"""The tasks that a loader hands to its workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_robust.datamodules.plan import (
    Draws,
    EpochOrder,
    Ids,
    Order,
    ShardNeeds,
    ShardWindows,
    check_window,
    count_evaluation_batches,
    count_train_batches,
    evaluation_batch,
    train_batch_positions,
)
from lightning_robust.datamodules.ring import BufferRing
from lightning_robust.datamodules.scheme import Scheme
from lightning_robust.datamodules.streams import StreamsOrder, check_streams
from lightning_robust.datamodules.worker import Task


@dataclass(frozen=True)
class LoaderPlan:
    """The batches of one rank.

    Knows nothing of the loader that uses it: a task generator that referred to the loader would keep it, and its
    workers, alive after a pass that was left early.

    Args:
        counts: samples per shard, int64, shape (S,).
        batch_size: samples per rank and batch; the most of them in evaluation.
        rank: number of this process among those that share the data.
        world: number of such processes.
        train: training or evaluation.
        shuffle: whether every training epoch has its own order.
        seed: seed of the order.
        window: shards that are mixed with each other.
        scheme: how samples are drawn, if not each once in an epoch.
        streams: stretches of the order that every global batch takes equal parts of.
        shift: by how many positions the training batches lie after where they lie in a whole epoch; below 0 in one
            that was begun with batches of another size.
    """

    counts: Ids
    batch_size: int
    rank: int
    world: int
    train: bool
    shuffle: bool
    seed: int
    window: int
    scheme: Scheme | None = None
    streams: int = 1
    shift: int = 0

    def __post_init__(self) -> None:
        check_window(self.window)
        check_streams(self.streams, self.global_batch, whole=self.shuffle and self.scheme is None)
        _ = self.batches

    @property
    def samples(self) -> int:
        """Samples of the set."""
        return int(self.counts.sum())

    @property
    def batches(self) -> int:
        """Batches of an epoch, the same on every rank."""
        count = count_train_batches if self.train else count_evaluation_batches
        return count(self.samples, batch_size=self.batch_size, world=self.world)

    @property
    def global_batch(self) -> int:
        """Samples of one batch of all ranks together."""
        return self.batch_size * self.world

    @property
    def length(self) -> int:
        """Positions of the order of a training epoch."""
        if self.scheme is not None:
            return self.batches * self.global_batch
        return self.samples // self.streams * self.streams

    def done(self, consumed: int) -> int:
        """Batches of an epoch that count as done when so many of its samples were delivered.

        As many are left as the other samples fill, whatever the batches were that brought the epoch so far.
        """
        if not self.train:
            return consumed // self.global_batch
        return self.batches - min(self.batches, (self.length - consumed) // self.global_batch)

    def entered(self, consumed: int) -> LoaderPlan:
        """The plan of an epoch of which so many samples were delivered."""
        return replace(self, shift=consumed - self.done(consumed) * self.global_batch) if self.train else self

    def delivered(self, number: int) -> int:
        """Samples of the epoch that were delivered with batch ``number``, on all ranks together."""
        return (number + 1) * self.global_batch + self.shift

    def settings(self) -> dict[str, Any]:
        """What the order of the batches depends on, besides the shards; the same on every rank."""
        return {
            "seed": self.seed,
            "shuffle_window": self.window,
            "shuffle": self.shuffle,
            "global_batch_size": self.global_batch,
            # training is the same for any ranks that fill a batch together
            "ranks": None if self.train else self.world,
            "streams": self.streams,
            "balance": None,
            "mix": None,
        } | ({} if self.scheme is None else self.scheme.settings)

    def tasks(self, epoch: int, first: int, shape: tuple[int, ...], ring: BufferRing | None) -> Iterator[Task]:
        """Tasks of an epoch from batch ``first`` on, each with a free buffer of the ring if there is one."""
        if ring is not None:
            # torch asks for the first task when the workers have let go of those of a pass that was left early
            ring.reclaim()
        order = self._order(epoch)
        for number in range(first, self.batches):
            slot = None if ring is None else ring.take()
            ids, rounds = self._draws(number, epoch, order)
            yield Task(slot, ids.tolist(), rounds.tolist(), shape)

    def needs(self, epoch: int) -> ShardNeeds:
        """The shards that the positions of an epoch need."""
        if self.shuffle:
            return self._order(epoch)
        return ShardWindows(self.counts, np.arange(len(self.counts)), self.window)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Positions, in the order of the epoch, from which batches ``first`` to ``last`` of all ranks come."""
        if self.train:
            return self.delivered(first - 1), self.delivered(last)
        # evaluation batches are of unequal size; the share of rank 0 begins first, that of the last rank ends last
        own = self.samples // self.world
        return first * own // self.batches * self.world, -(-(last + 1) * (own + 1) // self.batches) * self.world

    def _order(self, epoch: int) -> Order:
        if self.scheme is not None:
            return self.scheme.order(seed=self.seed, epoch=epoch, length=self.length, window=self.window)
        order = EpochOrder(self.counts, seed=self.seed, epoch=epoch, window=self.window)
        if self.streams == 1:
            return order
        own = train_batch_positions(0, batch_size=self.batch_size, rank=self.rank, world=self.world)
        return StreamsOrder(order, streams=self.streams, batch=self.global_batch, own=own, shift=self.shift)

    def _draws(self, number: int, epoch: int, order: Order) -> Draws:
        if not self.train:
            ids = evaluation_batch(
                number, samples=self.samples, batch_size=self.batch_size, rank=self.rank, world=self.world
            )
            return Draws(ids, np.full(len(ids), epoch))
        start, stop = train_batch_positions(number, batch_size=self.batch_size, rank=self.rank, world=self.world)
        start, stop = start + self.shift, stop + self.shift
        if self.shuffle:
            return order.draws(start, stop)
        return Draws(np.arange(start, stop, dtype=np.int64), np.full(stop - start, epoch))
