"""Open a shard set: read the index of each folder, or build and keep it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.cache import RemoteSet, ShardCache
from lightning_robust.shards.folderindex import FolderIndex
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import index_lock, read_folder_index, write_folder_index
from lightning_robust.shards.members import MemberPlaces, MemberTable
from lightning_robust.shards.paths import Shards, expand_shards, glob_patterns
from lightning_robust.shards.places import LocalFolder, Place, RemoteFolder
from lightning_robust.shards.remote import RemoteOptions
from lightning_robust.shards.scan import Fields
from lightning_robust.shards.tablefile import slices_of
from lightning_robust.shards.urls import base_name, folder_of, is_url, shown

_CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS}
_SHARDS_ONLY = Fields((), None)
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
    remote: RemoteOptions = RemoteOptions(),
    members: Collection[str] = (),
) -> ShardIndex:
    """Open the index of a shard set, building it first where there is none.

    The index of a folder is its ``index.json`` and the ``.npy`` file that this names. If a shard is not listed there,
    all shards asked for are scanned and added. In a folder that cannot be written to the index is held in memory. For
    shards at URLs, the ``index.json`` beside them is used; without one they are downloaded and indexed in the cache.

    Args:
        shards: a path, URL, glob, brace pattern or folder (its ``*.tar``; as a URL with a slash at the end), or a list
            of these.
        image_keys: extensions of the image member; the first present is taken.
        label_key: extension of the member with the class number; None for a set without labels.
        progress: show a bar while scanning.
        write: keep what was scanned beside the shards.
        rebuild: scan again, whatever the index says.
        remote: how shards at URLs are fetched, and where they are kept.
        members: extensions of members that are read besides image and label (``"seg.png"``), as targets are. Where the
            index does not say where they lie, the shards are scanned again.

    Returns:
        The index; a sample's id is its position in the concatenation of the shards.

    Raises:
        ShardError: a shard is missing, damaged, changed since it was indexed, or holds what it must not.
        FetchError: a store refuses, or does not answer.
        UnsupportedError: a URL that is not read, or whose driver is not installed.
        InputError: nothing was given, a shard was named twice, folders disagree on the class names, or no sample has
            one of ``members``.
    """
    fields = Fields(tuple(image_keys), label_key)
    wanted = tuple(dict.fromkeys(extension.lower().lstrip(".") for extension in members))
    paths = expand_shards(shards, remote)
    cache = ShardCache(remote)
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(_folder(path), []).append(path)
    patterns = glob_patterns(shards)
    places: dict[str, Place] = {}
    known = {}
    for folder, shards_in in by_folder.items():
        urls = {base_name(url): url for url in shards_in}
        names = list(urls)
        if len(names) < len(shards_in):
            raise InputError(f"Two shards in {folder!r} have one file name; only their queries differ. Rename one.")
        places[folder] = place = RemoteFolder(folder, urls, fields, cache) if is_url(folder) else LocalFolder(folder)
        asked = _Asked(place, names, patterns, fields, wanted, progress=progress, rebuild=rebuild)
        known[folder] = _read(asked, wanted)
        if rebuild or not _covers(known[folder], asked):
            known[folder] = _build(asked, _read(asked, None), write=write)
    index = _assemble(paths, known, wanted, label_key)
    sources = tuple(places[_folder(path)].source(base_name(path), known[_folder(path)]) for path in paths)
    return index if not any(sources) else replace(index, remote=RemoteSet(cache, sources))


def _folder(path: str) -> str:
    return folder_of(path) if is_url(path) else str(Path(path).parent)


@dataclass(frozen=True)
class _Asked:
    """What is asked of one folder."""

    place: Place
    names: list[str]
    patterns: list[str]
    fields: Fields
    members: tuple[str, ...]
    progress: bool
    rebuild: bool


def _read(asked: _Asked, members: Collection[str] | None) -> FolderIndex:
    home = asked.place.home
    try:
        return read_folder_index(home, asked.fields, members=members, bring=asked.place.bring)
    except ShardError:
        if not asked.rebuild:
            raise
    # arrays that cannot be read are made anew
    return read_folder_index(home, _SHARDS_ONLY)


def _covers(known: FolderIndex, asked: _Asked) -> bool:
    """Tell whether every shard and member asked for is indexed; shards that are must not have changed."""
    place = asked.place
    for lost in place.lost(known, asked.names, asked.patterns):
        raise ShardError(
            f"Shard {place.named(lost)!r} is missing: the index lists it with {known.shards[lost].count} samples. "
            f"Fetch it again, or {_REBUILD} if it was taken away on purpose."
        )
    for name, size in place.sizes(asked.names).items():
        listed = known.shards.get(name)
        if listed is not None and listed.size not in (None, size):
            raise ShardError(
                f"Shard {place.named(name)!r} has {size} bytes; the index says {listed.size} bytes with {listed.count} "
                f"samples. It was cut or replaced: fetch it again, or {_REBUILD} if it was replaced on purpose."
            )
    listed_all = all(known.row_of(name) is not None for name in asked.names)
    return listed_all and (not asked.members or known.has_sought(asked.members, asked.names))


def _build(asked: _Asked, known: FolderIndex, *, write: bool) -> FolderIndex:
    if not write:
        return _scan(asked, known)
    home = asked.place.home
    try:
        with index_lock(home):
            known = _read(asked, None if asked.rebuild else ())
            if not asked.rebuild and _covers(known, asked):  # another process was here first
                return known
            return write_folder_index(_scan(asked, known), asked.fields)
    except OSError as error:
        if isinstance(error, ShardError) or error.errno not in _CANNOT_WRITE:
            raise
        logger.info("Folder %r cannot be written to (%s); the index of its shards is held in memory.", home, error)
        return _scan(asked, known)


def _scan(asked: _Asked, known: FolderIndex) -> FolderIndex:
    from tqdm import tqdm

    place, names = asked.place, asked.names
    if asked.rebuild:
        known = known.without({*names, *place.lost(known, names, asked.patterns)})
    seen: dict[str, str] = {}
    tables, sizes, extra, members = {}, {}, {}, {}
    # what was asked for before is looked for too, or else two who ask in turn would scan at every turn
    others = MemberPlaces(asked.members if asked.rebuild else {*asked.members, *(known.members or ())})
    found = place.find(names, known, refresh=asked.rebuild)
    for shard in tqdm(found, total=len(names), desc="Indexing", unit=" shards", disable=not asked.progress):
        name = shard.name
        sizes[name] = Path(shard.path).stat().st_size
        tables[name] = place.scan(shard, asked.fields, seen, others)
        members[name] = others.take(len(tables[name]))
        if shard.extra is not None:
            extra[name] = shard.extra
        listed = known.shards.get(name)
        if listed is not None and listed.count != len(tables[name]):
            raise ShardError(
                f"Shard {place.named(name)!r} holds {len(tables[name])} samples; the index says {listed.count}. Fetch "
                f"it again, or {_REBUILD} if it was replaced on purpose."
            )
    seen.clear()  # the keys take more memory than all else
    return known.with_shards(tables, sizes=sizes, extra=extra, members=members)


def _assemble(
    paths: list[str], folders: dict[str, FolderIndex], members: tuple[str, ...], label_key: str | None
) -> ShardIndex:
    named = {folder.classes for folder in folders.values() if folder.classes is not None}
    if len(named) > 1:
        raise InputError("The folders of these shards disagree on the names of the classes: they are not one set.")
    located = [(folders[_folder(path)], base_name(path)) for path in paths]
    only = next(iter(folders.values()))
    whole = len(folders) == 1 and only.holds_only([name for _, name in located])
    places = {
        extension: only.member_table(extension)
        if whole and extension in (only.members or {})
        else np.concatenate([folder.member_rows(extension, name) for folder, name in located])
        for extension in members
    }
    _check_members(places, folders, paths)
    files = {extension: (only.members or {}).get(extension) for extension in members if whole}
    return ShardIndex(
        paths=tuple(paths),
        counts=np.array([folder.shards[name].count for folder, name in located], dtype=np.int64),
        sizes=np.array([folder.shards[name].size for folder, name in located], dtype=np.int64),
        classes=named.pop() if named else None,
        table=only.table if whole else np.concatenate([folder.rows(name) for folder, name in located]),
        has_labels=label_key is not None,
        table_file=only.table_file if whole else None,
        members=places,
        member_files={extension: file for extension, file in files.items() if isinstance(file, str)},
        label_key=label_key,
    )


def _check_members(places: dict[str, MemberTable], folders: dict[str, FolderIndex], paths: list[str]) -> None:
    held = sorted(
        {name for folder in folders.values() for name, held in (folder.members or {}).items() if held is not None}
    )
    for extension, table in places.items():
        if not any((rows["offset"] > 0).any() for rows in slices_of(table)):
            others = [f".{name}" for name in held if name not in places]
            first = shown(paths[0]) if is_url(paths[0]) else paths[0]
            raise InputError(
                f"No sample of the shards from {first!r} on has a member '.{extension}'. Besides image and label, "
                f"their samples have {', '.join(others) or 'nothing'} that a mask or JSON can be read from."
            )
