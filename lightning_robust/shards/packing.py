"""Write samples to WebDataset shards."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_robust.errors import InputError
from lightning_robust.shards.checksums import sha256_of
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import FolderIndex, index_lock, read_folder_index, write_folder_index
from lightning_robust.shards.opening import open_index
from lightning_robust.shards.scan import Fields, SampleTable, scan_shard
from lightning_robust.shards.writing import EXTENSIONS, Sample, ShardWriter

_FIELDS = Fields(EXTENSIONS, "cls")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def pack(
    samples: Iterable[Sample],
    folder: str | os.PathLike[str],
    *,
    samples_per_shard: int = 1000,
    max_bytes: int | None = None,
    name: str = "shard",
    classes: Sequence[str] | None = None,
    shuffle_seed: int | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> ShardIndex:
    """Write samples to shards ``folder/name-000000.tar``, ... and their index.

    The same samples give the same bytes. Shards are written aside in a hidden folder and put in place together at the
    end, after the index that lists them: a pack that was killed shows as missing shards, never as a smaller set.

    Args:
        samples: the samples, in order; a ``Sequence`` is read one by one also when it is shuffled.
        folder: made if it does not exist; may hold the shards of other names.
        samples_per_shard: most samples in a shard.
        max_bytes: most bytes in a shard of more than one sample; None for no limit.
        name: begins the shards' file names.
        classes: names of the classes; targets must then be below their number.
        shuffle_seed: order in which the samples are written; None keeps theirs.
        progress: show a bar.
        overwrite: replace shards of this name.

    Returns:
        The index of the shards written.

    Raises:
        InputError: no samples, a sample that is not as :class:`Sample` says, shards of this name that exist, or
            shards beside them with other class names.
    """
    home = Path(folder).absolute()
    check_limits(name=name, samples_per_shard=samples_per_shard, max_bytes=max_bytes)
    check_destination(home, name=name, classes=classes, overwrite=overwrite)
    home.mkdir(parents=True, exist_ok=True)
    with index_lock(str(home)):
        known, old = check_destination(home, name=name, classes=classes, overwrite=overwrite)
        for left in home.glob(".pack-*"):  # by a pack that was killed: the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=".pack-", dir=home))
        try:
            with ShardWriter(aside, name, samples_per_shard, max_bytes) as writer:
                for sample in _with_progress(_ordered(samples, shuffle_seed), samples, progress):
                    writer.write(sample, None if known.classes is None else len(known.classes))
            tables, sizes, extra = _read_back(aside)
            write_folder_index(known.with_shards(tables, sizes=sizes, extra=extra), _FIELDS)
            for written in tables:
                (aside / written).replace(home / written)
            for surplus in old - tables.keys():
                (home / surplus).unlink(missing_ok=True)
            _sync_folder(home)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return open_index([home / written for written in tables])


def check_limits(*, name: str, samples_per_shard: int, max_bytes: int | None) -> None:
    """Check the arguments of :func:`pack` that stand for themselves."""
    if samples_per_shard < 1 or (max_bytes is not None and max_bytes < 1):
        raise InputError(f"samples_per_shard={samples_per_shard}, max_bytes={max_bytes}: expected at least 1.")
    if not _NAME.fullmatch(name):
        raise InputError(f"The name {name!r} must be made of letters, digits, '_' and '-'.")


def check_destination(
    home: Path, *, name: str, classes: Sequence[str] | None, overwrite: bool
) -> tuple[FolderIndex, set[str]]:
    """Check that shards of a name may be written to a folder.

    Returns:
        What is known of the shards that stay there, with the classes of the set, and the file names of those that go.

    Raises:
        InputError: shards of this name exist and may not be replaced, or the others have other class names.
    """
    known = read_folder_index(str(home), _FIELDS)
    files = {*known.shards, *(path.name for path in home.glob("*.tar"))}
    old = {file for file in files if re.fullmatch(rf"{re.escape(name)}-\d{{6,}}\.tar", file)}
    if old and not overwrite:
        raise InputError(
            f"{str(home)!r} holds {len(old)} shards named {name!r} already. Choose another folder or name, or replace "
            "them with overwrite=True (--overwrite)."
        )
    stays = known.without(old)
    named = None if classes is None else tuple(classes)
    if not stays.shards:
        return replace(stays, classes=named), old
    if None not in (named, stays.classes) and named != stays.classes:
        raise InputError(f"The shards in {str(home)!r} have other class names. Pack into another folder.")
    return replace(stays, classes=named or stays.classes), old


def _ordered(samples: Iterable[Sample], seed: int | None) -> Iterator[Sample]:
    if seed is None:
        return iter(samples)
    from lightning_robust.seeds import derive

    items = samples if isinstance(samples, Sequence) else list(samples)
    order = np.argsort(derive(np.arange(len(items), dtype=np.int64), "pack", seed), kind="stable")
    return (items[position] for position in order.tolist())


def _with_progress(ordered: Iterator[Sample], samples: Iterable[Sample], progress: bool) -> Iterator[Sample]:
    from tqdm import tqdm

    total = len(samples) if isinstance(samples, Sequence) else None
    return iter(tqdm(ordered, total=total, desc="Packing", unit=" samples", disable=not progress))


def _read_back(folder: Path) -> tuple[dict[str, SampleTable], dict[str, int], dict[str, dict[str, Any]]]:
    """Index what was written from the files themselves, so that the writer is checked by the reader."""
    tables, sizes, extra = {}, {}, {}
    seen: dict[str, str] = {}
    for path in sorted(folder.glob("*.tar")):
        tables[path.name] = scan_shard(str(path), _FIELDS, seen=seen)
        sizes[path.name] = path.stat().st_size
        extra[path.name] = {"sha256": sha256_of(path)}
    if not tables:
        raise InputError("There are no samples to pack.")
    return tables, sizes, extra


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
