"""The shard index: which samples there are, where their bytes lie, and what their labels are."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.cache import RemoteSet, RemoteShard
from lightning_robust.shards.members import MEMBER_DTYPE, MemberTable
from lightning_robust.shards.scan import SAMPLE_DTYPE, SampleTable
from lightning_robust.shards.tablefile import load_rows, pieces_of, slices_of
from lightning_robust.shards.tar import member_before
from lightning_robust.shards.urls import base_name, is_url, shown

Integers = npt.NDArray[np.int64]

_LABELS_NAMED = 8


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
        selection: which samples of the shards these are, in words; empty for all.
        members: by extension, offset and size of a further member of each sample, see :data:`MEMBER_DTYPE`.
        member_files: the files that these are mapped from, if they are.
        label_key: extension of the member that the labels were read from; None for a set without labels.
    """

    paths: tuple[str, ...]
    counts: Integers
    sizes: Integers
    classes: tuple[str, ...] | None
    table: SampleTable = field(repr=False)
    has_labels: bool = True
    table_file: str | None = field(default=None, repr=False)
    remote: RemoteSet | None = field(default=None, repr=False)
    selection: str = ""
    members: dict[str, MemberTable] = field(default_factory=dict, repr=False)
    member_files: dict[str, str] = field(default_factory=dict, repr=False)
    label_key: str | None = "cls"

    def __post_init__(self) -> None:
        if self.has_labels and self.classes is not None:
            label = max(int(rows["label"].max()) for rows in slices_of(self.table))
            if label >= len(self.classes):
                worst = int(np.argmax(self.table["label"]))
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
        for piece in pieces_of(self.table):
            found.update(piece)
        return found.hexdigest()

    @property
    def labels(self) -> Integers | None:
        """Class number of every sample, int64 (N,), or None for a set without labels."""
        return np.asarray(self.table["label"]) if self.has_labels else None

    def select(self, samples: Sequence[int] | Integers | npt.NDArray[np.bool_]) -> ShardIndex:
        """View of some of the samples, in the order of the set; the shards stay as they are.

        Sample i of the view is the i-th one chosen, so ``np.sort(samples)`` gives the ids of the whole set. The rows of
        the chosen samples (24 bytes each) are held in memory; shards that hold none of them are left out.

        Args:
            samples: ids, each once, in any order; or one boolean for each sample of the set.

        Raises:
            InputError: if nothing is chosen, an id is there twice or outside the set, or a mask has another length.
        """
        return self._view(self._chosen(np.asarray(samples)), "selected ones")

    def with_labels(self, labels: Collection[int], *, renumber: bool = False) -> ShardIndex:
        """View of the samples of some classes, in the order of the set, as :meth:`select` makes it.

        Args:
            labels: class numbers to keep.
            renumber: number the kept classes 0, 1, ... in ascending order of their labels.

        Raises:
            InputError: if the set has no labels, or no sample with one of them.
        """
        if self.labels is None:
            raise InputError("These samples cannot be chosen by label: the set was opened with label_key=None.")
        kept = np.array(sorted(set(labels)), dtype=np.int64)
        if lost := sorted(set(kept.tolist()) - set(np.unique(self.labels).tolist())):
            raise InputError(
                f"No sample of the shards from {self.named(0)!r} on has label {', '.join(map(str, lost))}: leave this "
                "out of the labels to keep, or name the shards that hold it."
            )
        named = ", ".join(map(str, kept[:_LABELS_NAMED])) + (", ..." if len(kept) > _LABELS_NAMED else "")
        view = self._view(np.flatnonzero(np.isin(self.labels, kept)), f"label{'s' * (len(kept) > 1)} {named}")
        if not renumber:
            return view
        view.table["label"] = np.searchsorted(kept, view.table["label"])
        return replace(view, classes=None if self.classes is None else tuple(self.classes[label] for label in kept))

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

    def locate_member(self, extension: str, sample: int) -> tuple[int, int, int]:
        """Find a further member of a sample: its shard, its byte offset there, and its byte size.

        Raises:
            ShardError: the sample has no such member.
            InputError: the index was opened without ``extension`` in ``members``, or the id is outside the set.
        """
        if extension not in self.members:
            raise InputError(
                f"The index does not say where the members '.{extension}' lie: open it with "
                f"open_index(..., members=[{extension!r}])."
            )
        shards, _, _ = self.locate([sample])
        place = self.members[extension][sample]
        if place["offset"] <= 0:
            raise ShardError(
                f"The {self.describe(sample)} has no member '.{extension}'. Pack it with one, or leave the sample out "
                "(ShardIndex.select)."
            )
        return int(shards[0]), int(place["offset"]), int(place["size"])

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

    def _chosen(self, samples: npt.NDArray[Any]) -> Integers:
        if samples.dtype == np.bool_:
            if samples.shape != (len(self),):
                raise InputError(
                    f"The mask has shape {samples.shape}: the set has {len(self)} samples, so give ({len(self)},)."
                )
            return np.flatnonzero(samples)
        if samples.ndim != 1 or (samples.size and not np.issubdtype(samples.dtype, np.integer)):
            raise InputError(
                f"Samples were chosen by {samples.dtype} of shape {samples.shape}: give ids, or one boolean per sample."
            )
        ids, times = np.unique(samples.astype(np.int64), return_counts=True)
        if ids.size and not (ids[0] >= 0 and ids[-1] < len(self)):
            raise InputError(f"Samples {ids[0]} to {ids[-1]} were chosen; the set holds 0 to {len(self) - 1}.")
        if (times > 1).any():
            raise InputError(f"Sample {ids[times.argmax()]} was chosen {times.max()} times: choose each once.")
        return ids

    def _view(self, ids: Integers, selection: str) -> ShardIndex:
        if not ids.size:
            raise InputError("No sample was chosen: give one at least.")
        shards = np.searchsorted(self.starts, ids, side="right") - 1
        counts = np.bincount(shards, minlength=len(self.paths)).astype(np.int64)
        used = np.flatnonzero(counts)
        return replace(
            self,
            paths=tuple(self.paths[shard] for shard in used),
            counts=counts[used],
            sizes=self.sizes[used],
            table=np.array(self.table[ids]),
            table_file=None,
            members={extension: np.array(rows[ids]) for extension, rows in self.members.items()},
            member_files={},
            remote=None
            if self.remote is None
            else replace(self.remote, shards=tuple(self.remote.shards[shard] for shard in used)),
            selection=f"{self.selection}, of these {selection}" if self.selection else selection,
        )

    def __reduce__(self) -> tuple[object, ...]:
        table = _held(self.table, self.table_file)
        members = {extension: _held(rows, self.member_files.get(extension)) for extension, rows in self.members.items()}
        shards = (self.paths, self.counts, self.sizes, self.classes, self.has_labels, self.remote, self.selection)
        return _restore, (*shards, table, members, self.label_key)


def _held(table: npt.NDArray[np.void], file: str | None) -> npt.NDArray[np.void] | str:
    """What is pickled of a table: its file, unless that went when other shards of the folder were indexed."""
    return file if file is not None and Path(file).is_file() else np.array(table)


def _restore(
    paths: tuple[str, ...],
    counts: Integers,
    sizes: Integers,
    classes: tuple[str, ...] | None,
    has_labels: bool,
    remote: RemoteSet | None,
    selection: str,
    table: SampleTable | str,
    members: dict[str, MemberTable | str],
    label_key: str | None,
) -> ShardIndex:
    rows = int(counts.sum())
    return ShardIndex(
        paths,
        counts,
        sizes,
        classes,
        load_rows(table, rows, SAMPLE_DTYPE) if isinstance(table, str) else table,
        has_labels,
        table if isinstance(table, str) else None,
        remote,
        selection,
        {
            name: load_rows(held, rows, MEMBER_DTYPE) if isinstance(held, str) else held
            for name, held in members.items()
        },
        {name: held for name, held in members.items() if isinstance(held, str)},
        label_key,
    )
