"""Open a shard set: read the index of each folder, or build and keep it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import (
    FolderIndex,
    index_lock,
    read_folder_index,
    write_folder_index,
)
from lightning_robust.shards.paths import Shards, expand_shards, glob_patterns
from lightning_robust.shards.scan import Fields, scan_shard

_CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS}
_REBUILD = "run `lightning-robust shards index --rebuild`"

logger = logging.getLogger(__name__)


def open_index(
    shards: Shards,
    *,
    image_keys: Sequence[str] = ("jpg", "jpeg", "png", "webp"),
    label_key: str | None = "cls",
    progress: bool = False,
    write: bool = True,
    rebuild: bool = False,
) -> ShardIndex:
    """Open the index of a shard set, building it first where there is none.

    The index of a folder is its ``index.json`` and the ``.npy`` file that this names. If a shard is not listed there,
    all shards asked for are scanned and added. In a folder that cannot be written to the index is held in memory.

    Args:
        shards: a local path, glob, brace pattern or folder (its ``*.tar``), or a list of these.
        image_keys: extensions of the image member; the first present is taken.
        label_key: extension of the member with the class number; None for a set without labels.
        progress: show a bar while scanning.
        write: keep what was scanned beside the shards.
        rebuild: scan again, whatever the index says.

    Returns:
        The index; a sample's id is its position in the concatenation of the shards.

    Raises:
        ShardError: a shard is missing, damaged, changed since it was indexed, or holds what it must not.
        UnsupportedError: a URL was given.
        InputError: nothing was given, a shard was named twice, or folders disagree on the class names.
    """
    fields = Fields(tuple(image_keys), label_key)
    paths = expand_shards(shards)
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(str(Path(path).parent), []).append(path)
    folders = {}
    for folder, members in by_folder.items():
        known = read_folder_index(folder, fields)
        if rebuild or not _covers(known, members, shards):
            known = _build(folder, members, shards, fields, progress=progress, write=write, rebuild=rebuild)
        folders[folder] = known
    return _assemble(paths, folders, has_labels=label_key is not None)


def _covers(known: FolderIndex, paths: list[str], shards: Shards) -> bool:
    """Tell whether every shard asked for is indexed; those that are must not have changed."""
    patterns = glob_patterns(shards)
    for name in known.shards.keys() - {Path(path).name for path in paths}:
        lost = Path(known.folder) / name
        if any(lost.match(pattern) for pattern in patterns) and not lost.is_file():
            raise ShardError(
                f"Shard {str(lost)!r} is missing: the index lists it with {known.shards[name].count} samples. Fetch it "
                f"again, or {_REBUILD} if it was taken away on purpose."
            )
    for path in paths:
        listed = known.shards.get(Path(path).name)
        size = Path(path).stat().st_size
        if listed is not None and listed.size not in (None, size):
            raise ShardError(
                f"Shard {path!r} has {size} bytes; the index says {listed.size} bytes with {listed.count} samples. "
                f"It was cut or replaced: fetch it again, or {_REBUILD} if it was replaced on purpose."
            )
    return all(known.row_of(Path(path).name) is not None for path in paths)


def _build(
    folder: str, paths: list[str], shards: Shards, fields: Fields, *, progress: bool, write: bool, rebuild: bool
) -> FolderIndex:
    if not write:
        return _scan(folder, paths, fields, progress=progress, rebuild=rebuild)
    try:
        with index_lock(folder):
            known = read_folder_index(folder, fields)
            if not rebuild and _covers(known, paths, shards):  # another process was here first
                return known
            return write_folder_index(_scan(folder, paths, fields, progress=progress, rebuild=rebuild), fields)
    except OSError as error:
        if isinstance(error, ShardError) or error.errno not in _CANNOT_WRITE:
            raise
        logger.info("Folder %r cannot be written to (%s); the index of its shards is held in memory.", folder, error)
        return _scan(folder, paths, fields, progress=progress, rebuild=rebuild)


def _scan(folder: str, paths: list[str], fields: Fields, *, progress: bool, rebuild: bool) -> FolderIndex:
    from tqdm import tqdm

    known = read_folder_index(folder, fields)
    if rebuild:
        gone = {name for name in known.shards if not (Path(folder) / name).is_file()}
        known = known.without({Path(path).name for path in paths} | gone)
    seen: dict[str, str] = {}
    tables, sizes = {}, {}
    for path in tqdm(paths, desc="Indexing", unit=" shards", disable=not progress):
        name = Path(path).name
        sizes[name] = Path(path).stat().st_size
        tables[name] = scan_shard(path, fields, seen=seen)
        listed = known.shards.get(name)
        if listed is not None and listed.count != len(tables[name]):
            raise ShardError(
                f"Shard {path!r} holds {len(tables[name])} samples; the index says {listed.count}. Fetch it again, or "
                f"{_REBUILD} if it was replaced on purpose."
            )
    return known.with_shards(tables, sizes=sizes)


def _assemble(paths: list[str], folders: dict[str, FolderIndex], *, has_labels: bool) -> ShardIndex:
    named = {folder.classes for folder in folders.values() if folder.classes is not None}
    if len(named) > 1:
        raise InputError("The folders of these shards disagree on the names of the classes: they are not one set.")
    located = [(folders[str(Path(path).parent)], Path(path).name) for path in paths]
    only = next(iter(folders.values()))
    whole = len(folders) == 1 and only.holds_only([name for _, name in located])
    return ShardIndex(
        paths=tuple(paths),
        counts=np.array([folder.shards[name].count for folder, name in located], dtype=np.int64),
        sizes=np.array([folder.shards[name].size for folder, name in located], dtype=np.int64),
        classes=named.pop() if named else None,
        table=only.table if whole else np.concatenate([folder.rows(name) for folder, name in located]),
        has_labels=has_labels,
        table_file=only.table_file if whole else None,
    )
