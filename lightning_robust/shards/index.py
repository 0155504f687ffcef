"""The shard index: which samples there are, where their bytes lie, and what their labels are."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.cache import RemoteSet, RemoteShard
from lightning_robust.shards.indexfile import load_table
from lightning_robust.shards.scan import SampleTable
from lightning_robust.shards.tar import member_before
from lightning_robust.shards.urls import base_name, is_url, shown

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """An immutable list of the samples of a shard set; a sample's id is its position in the concatenated shards.

    Holds no open file and pickles small: a table that is mapped from disk is mapped again where it is unpickled.

    Attributes:
        paths: shards, in order: files, or URLs.
        counts: samples per shard, int64 (S,).
        sizes: bytes per shard, int64 (S,).
        classes: names of the classes, if the set has any.
        table: offset, size and label of each sample, see :data:`SAMPLE_DTYPE`.
        has_labels: whether the labels were read.
        table_file: the file that ``table`` is mapped from, if it is.
        remote: where the shards at URLs are fetched from; None if all are files.
    """

    paths: tuple[str, ...]
    counts: Integers
    sizes: Integers
    classes: tuple[str, ...] | None
    table: SampleTable = field(repr=False)
    has_labels: bool = True
    table_file: str | None = field(default=None, repr=False)
    remote: RemoteSet | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.has_labels and self.classes is not None:
            worst = int(np.argmax(self.table["label"]))
            if (label := int(self.table["label"][worst])) >= len(self.classes):
                raise ShardError(
                    f"The label of {self.describe(worst)} is {label}; the set names {len(self.classes)} classes, so "
                    f"labels run from 0 to {len(self.classes) - 1}. Pack the samples again with the right classes."
                )

    def __len__(self) -> int:
        return int(self.starts[-1])

    @functools.cached_property
    def starts(self) -> Integers:
        """First sample id of each shard, then the number of samples; int64 (S + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash over all shards in order: base name, sample count, byte size, and offset, size and label of each sample.

        Tar pads its members, so that names and sizes alone would not tell two orders of one set apart.
        """
        rows = [
            [base_name(path), int(count), int(size)]
            for path, count, size in zip(self.paths, self.counts, self.sizes, strict=True)
        ]
        found = hashlib.sha256(json.dumps(rows).encode())
        found.update(np.ascontiguousarray(self.table).tobytes())
        return found.hexdigest()

    @property
    def labels(self) -> Integers | None:
        """Class number of every sample, int64 (N,), or None for a set without labels."""
        return np.asarray(self.table["label"]) if self.has_labels else None

    def locate(self, ids: Sequence[int] | Integers) -> tuple[Integers, Integers, Integers]:
        """Find the image bytes of samples.

        Args:
            ids: sample ids in [0, len(self)).

        Returns:
            Shard numbers, byte offsets in the shard, byte sizes; each int64 of the length of ``ids``.

        Raises:
            InputError: an id is outside the set.
        """
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise InputError(
                f"Sample ids from {wanted.min()} to {wanted.max()} were asked for; the set holds 0 to {len(self) - 1}."
            )
        rows = np.asarray(self.table[wanted])
        shards = np.searchsorted(self.starts, wanted, side="right") - 1
        return shards.astype(np.int64), rows["offset"].copy(), rows["size"].copy()

    def describe(self, sample: int) -> str:
        """Name a sample for a message: its id, its member and its shard."""
        shards, _, _ = self.locate([sample])
        member = self.member(sample)
        return f"sample {sample}" + (f" ({member!r})" if member else "") + f" of shard {self.named(int(shards[0]))!r}"

    def member(self, sample: int) -> str | None:
        """Name of the member that holds the image of a sample; None if its shard is not at hand."""
        shards, offsets, _ = self.locate([sample])
        shard = int(shards[0])
        source = self.source(shard)
        copy = self.paths[shard] if source is None or self.remote is None else str(self.remote.cache.path(source))
        return member_before(copy, int(offsets[0]))

    def named(self, shard: int) -> str:
        """Path or URL of a shard for messages, without what may be secret."""
        path = self.paths[shard]
        return shown(path) if is_url(path) else path

    def source(self, shard: int) -> RemoteShard | None:
        """Where a shard is fetched from; None for a file."""
        return None if self.remote is None else self.remote.shards[shard]

    def open_shard(self, shard: int) -> int:
        """Open a shard for reading, fetching it to the cache first if it is remote and not there.

        Returns:
            A file descriptor.
        """
        source = self.source(shard)
        if source is None or self.remote is None:
            return os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self.remote.cache.open(source)

    def __reduce__(self) -> tuple[object, ...]:
        # the file goes when other shards of the folder are indexed; the map of it stays good
        file = self.table_file if self.table_file is not None and Path(self.table_file).is_file() else None
        table = np.array(self.table) if file is None else None
        return _restore, (self.paths, self.counts, self.sizes, self.classes, table, self.has_labels, file, self.remote)


def _restore(
    paths: tuple[str, ...],
    counts: Integers,
    sizes: Integers,
    classes: tuple[str, ...] | None,
    table: SampleTable | None,
    has_labels: bool,
    table_file: str | None,
    remote: RemoteSet | None,
) -> ShardIndex:
    if table is None:
        table = load_table(str(table_file), int(counts.sum()))
    return ShardIndex(paths, counts, sizes, classes, table, has_labels, table_file, remote)
