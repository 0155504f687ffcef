"""The order of an epoch that draws from several sources by weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from lightning_robust.datamodules.plan import Draws, EpochOrder, Ids
from lightning_robust.errors import InputError

# draws after which the sources come in the same turns again; weights are rounded to shares of it
_PERIOD = 10_000


class Sources:
    """Shards by source, and the turns of the sources.

    Args:
        weights: by pattern: of the draws, relative to each other. A pattern names shards or folders from the right, as
            ``Path.match`` does: ``cars``, ``cars/*.tar``, ``*/train-{000..009}.tar``.
        paths: of the shards.
        counts: samples per shard, int64, shape (S,).

    Raises:
        InputError: if a weight is not positive or too small, or a shard is not of exactly one source.
    """

    def __init__(self, weights: Mapping[str, float], paths: Sequence[str], counts: Ids) -> None:
        # sorted: in which order they were written must not matter
        self._weights = {pattern: float(weights[pattern]) for pattern in sorted(weights)}
        shares = _shares(self._weights)
        source_of = _source_of(list(self._weights), paths)
        self.counts = counts
        self.shards = [np.flatnonzero(source_of == source) for source in range(len(shares))]
        self.sizes = [int(counts[shards].sum()) for shards in self.shards]
        turns = np.concatenate([(2 * np.arange(share) + 1) / share for share in shares])
        self.turns = np.repeat(np.arange(len(shares)), shares)[np.argsort(turns, kind="stable")]
        self._places = [np.flatnonzero(self.turns == source) for source in range(len(shares))]

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint notes."""
        return {"mix": self._weights}

    def order(self, *, seed: int, epoch: int, length: int, window: int) -> MixedOrder:
        """The order of one epoch."""
        return MixedOrder(self, seed=seed, epoch=epoch, length=length, window=window)

    def drawn_before(self, source: int, draw: int) -> int:
        """How often a source comes among the first draws of a run."""
        periods, place = divmod(draw, _PERIOD)
        return periods * len(self._places[source]) + int(np.searchsorted(self._places[source], place))


class MixedOrder:
    """The order of an epoch that draws from several sources by weight.

    The sources take turns, evenly spread. Each is gone through as :class:`EpochOrder` does, and begun again in another
    order when all its samples were drawn, regardless of where an epoch ends.

    Args:
        sources: shards by source.
        seed: seed of the run.
        epoch: number of the epoch.
        length: positions of every epoch.
        window: shards of a source that are mixed with each other.

    Example:
        >>> sources = Sources({"a": 0.75, "b": 0.25}, ["/a/0.tar", "/b/0.tar"], np.array([3, 2]))
        >>> MixedOrder(sources, seed=0, epoch=0, length=8, window=1).draws(0, 8)
        Draws(ids=array([1, 2, 4, 0, 2, 0, 3, 1]), rounds=array([0, 0, 0, 0, 1, 1, 0, 1]))
    """

    def __init__(self, sources: Sources, *, seed: int, epoch: int, length: int, window: int) -> None:
        self._sources, self._seed, self._window = sources, seed, window
        self._begin = epoch * length
        self._held: dict[int, tuple[int, EpochOrder]] = {}

    def draws(self, start: int, stop: int) -> Draws:
        """Samples at the positions ``start`` to ``stop``, and how often their source was gone through before."""
        source_of = self._sources.turns[np.arange(self._begin + start, self._begin + stop) % _PERIOD]
        ids, rounds = np.empty(len(source_of), np.int64), np.empty(len(source_of), np.int64)
        for source in range(len(self._sources.sizes)):
            passes = self._passes(source, self._drawn(source, start), self._drawn(source, stop))
            if parts := [order.draws(first, last) for order, first, last in passes]:
                own = source_of == source
                ids[own] = np.concatenate([part.ids for part in parts])
                rounds[own] = np.concatenate([part.rounds for part in parts])
        return Draws(ids, rounds)

    def needed(self, start: int, stop: int) -> list[int]:
        """Shards of the windows of every source that the positions ``start`` to ``stop`` lie in, and of those after."""
        found: dict[int, None] = {}
        for source in range(len(self._sources.sizes)):
            drawn, until = self._drawn(source, start), self._drawn(source, stop)
            # also of a source that is not drawn from just now
            for order, first, last in self._passes(source, drawn, max(until, drawn + 1)):
                found |= dict.fromkeys(order.needed(first, last))
        return list(found)

    def _drawn(self, source: int, position: int) -> int:
        return self._sources.drawn_before(source, self._begin + position)

    def _passes(self, source: int, drawn: int, until: int) -> Iterator[tuple[EpochOrder, int, int]]:
        """Orders of a source, with first position and end in each, that its draws from one to another come from."""
        size = self._sources.sizes[source]
        while drawn < until:
            number, first = divmod(drawn, size)
            last = min(size, first + until - drawn)
            yield self._pass(source, number), first, last
            drawn += last - first

    def _pass(self, source: int, number: int) -> EpochOrder:
        if source not in self._held or self._held[source][0] != number:
            shards = self._sources.shards[source]
            order = EpochOrder(self._sources.counts, seed=self._seed, epoch=number, window=self._window, shards=shards)
            self._held[source] = number, order
        return self._held[source][1]


def _shares(weights: Mapping[str, float]) -> list[int]:
    """Turns of each source in a period: its exact share, rounded up where the remainder is largest."""
    if len(weights) < 2:
        raise InputError(f"mix={dict(weights)} names {len(weights)} sources: give two or more, or leave it out.")
    for pattern, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"The weight of {pattern!r} in mix is {weight}: give a positive number, or leave it out.")
    exact = np.array(list(weights.values())) / sum(weights.values()) * _PERIOD
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: _PERIOD - shares.sum()]] += 1
    if not shares.all():
        rare = list(weights)[int(np.argmin(shares))]
        raise InputError(f"The weight of {rare!r} in mix is below 1 in {_PERIOD} draws: give it more, or leave it out.")
    return [int(share) for share in shares]


def _source_of(patterns: list[str], paths: Sequence[str]) -> Ids:
    import braceexpand

    expanded = [list(braceexpand.braceexpand(pattern)) for pattern in patterns]
    source_of = np.empty(len(paths), np.int64)
    for shard, path in enumerate(map(PurePosixPath, paths)):
        found = [
            source
            for source, names in enumerate(expanded)
            if any(path.match(name) or path.parent.match(name) for name in names)
        ]
        if len(found) != 1:
            matched = "no pattern" if not found else f"{patterns[found[0]]!r} and {patterns[found[1]]!r}"
            raise InputError(
                f"Shard {path.name!r} matches {matched} of mix: each training shard must match exactly one of "
                f"{', '.join(map(repr, patterns))}."
            )
        source_of[shard] = found[0]
    if empty := [pattern for source, pattern in enumerate(patterns) if source not in source_of]:
        raise InputError(f"No training shard matches {empty[0]!r} of mix: correct it, or leave it out.")
    return source_of
