"""``index.json`` beside the shards, and the arrays that it names.

The JSON is the public ``wids-shard-index-v1`` form with keys of our own that other readers skip. The samples are one
structured array (:data:`SAMPLE_DTYPE`), and the other members with one extension are another, all mapped, never
unpickled. A name holds the hash of the bytes and the JSON is replaced last, so a reader never sees a mix of two states;
one that finds an array gone, since another process has replaced the index just then, reads it anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from lightning_robust.errors import ShardError
from lightning_robust.shards.folderindex import FolderIndex, ShardEntry, empty_index
from lightning_robust.shards.indexdocument import KIND, IndexDocument, entry_document, parse_index
from lightning_robust.shards.members import MemberTable
from lightning_robust.shards.scan import SAMPLE_DTYPE, Fields
from lightning_robust.shards.tablefile import CHECKED_BYTES, REBUILD, load_rows, save_rows

INDEX_NAME = "index.json"

_MOST_TRIES = 20


def index_lock(folder: str) -> FileLock:
    """Lock under which the index of a folder is built and replaced."""
    return FileLock(str(Path(folder) / f".{INDEX_NAME}.lock"))


def read_folder_index(
    folder: str,
    fields: Fields,
    *,
    members: Collection[str] | None = (),
    bring: Callable[[str], None] = lambda _: None,
    checked_bytes: int = CHECKED_BYTES,
) -> FolderIndex:
    """Read the index of a folder; an empty one if there is none.

    An index by another tool, or for other members, gives counts and sizes to check against but no samples.

    Args:
        folder: where it lies.
        fields: what is read of a sample.
        members: extensions of further members whose places are mapped now, where they are known; None for all.
        bring: is called with the path of each file of members before it is mapped.
        checked_bytes: arrays of at most so many bytes are compared with the hash in their names.

    Raises:
        ShardError: ``index.json`` or an array is damaged, is none, or cannot be read.
    """
    path = Path(folder) / INDEX_NAME
    last = None
    for attempt in range(_MOST_TRIES):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return empty_index(folder)
        except OSError as error:
            raise ShardError(f"The index {str(path)!r} cannot be read: {error.strerror}.") from error
        try:
            return _mapped(folder, parse_index(data, str(path)), fields, members, bring, checked_bytes)
        except ShardError as error:
            replaced = isinstance(error.__cause__, FileNotFoundError) and data != last
            if not replaced or attempt == _MOST_TRIES - 1:
                raise
        last = data
    raise AssertionError


def read_checksums(folder: str) -> dict[str, str]:
    """SHA-256 of the shards of a folder, by file name, where its index has one."""
    entries = read_folder_index(folder, Fields((), None)).shards
    return {name: str(entry.extra["sha256"]) for name, entry in entries.items() if "sha256" in entry.extra}


def write_folder_index(index: FolderIndex, fields: Fields) -> FolderIndex:
    """Write the index of a folder (the caller holds :func:`index_lock`) and return it mapped from disk."""
    from lightning_robust import __version__

    folder = Path(index.folder)
    samples_file = save_rows(folder, "index", index.table)
    members = {extension: _member_file(folder, held) for extension, held in (index.members or {}).items()}
    document = index.extra | {
        "__kind__": KIND,
        "wids_version": 1,
        "created_by": f"lightning_robust {__version__}",
        "fields": _fields_document(fields),
        "samples_file": samples_file,
        "classes": None if index.classes is None else list(index.classes),
        **({} if index.members is None else {"members": members}),
        "shardlist": [entry_document(name, entry) for name, entry in index.shards.items()],
    }
    replace_file(folder / INDEX_NAME, (json.dumps(document, indent=1) + "\n").encode())
    for old in (*folder.glob("index-????????????????.npy"), *folder.glob("members-????????????????.npy")):
        if old.name not in {samples_file, *members.values()}:
            old.unlink(missing_ok=True)
    table_file = str(folder / samples_file)
    return replace(
        index,
        table=load_rows(table_file, len(index.table), SAMPLE_DTYPE),
        table_file=table_file,
        members=None if index.members is None else _member_files(folder, members),
    )


def replace_file(path: Path, data: bytes) -> None:
    """Write a file aside, sync it, and put it in place in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _mapped(
    folder: str,
    document: IndexDocument,
    fields: Fields,
    members: Collection[str] | None,
    bring: Callable[[str], None],
    checked_bytes: int,
) -> FolderIndex:
    if document.samples_file is None or document.fields != _fields_document(fields):
        bare = {name: replace(entry, row=None) for name, entry in document.shards.items()}
        return replace(empty_index(folder), shards=bare, classes=document.classes, extra=document.extra)
    rows = _rows_expected(document.shards)
    table_file = str(Path(folder) / document.samples_file)
    table = load_rows(table_file, rows, SAMPLE_DTYPE, checked_bytes=checked_bytes)
    files = None if document.members is None else _member_files(Path(folder), document.members)
    index = FolderIndex(folder, document.shards, table, table_file, document.classes, document.extra, files)
    for extension, file in (files or {}).items():
        if isinstance(file, str) and (members is None or extension in members):
            bring(file)
            index.member_table(extension, checked_bytes=checked_bytes)
    return index


def _member_file(folder: Path, held: MemberTable | str | None) -> str | None:
    if held is None:
        return None
    return Path(held).name if isinstance(held, str) else save_rows(folder, "members", held)


def _member_files(folder: Path, names: dict[str, str | None]) -> dict[str, MemberTable | str | None]:
    return {extension: None if name is None else str(folder / name) for extension, name in names.items()}


def _fields_document(fields: Fields) -> dict[str, Any]:
    return {"image": list(fields.image_keys), "label": fields.label_key}


def _rows_expected(shards: dict[str, ShardEntry]) -> int:
    spans = sorted((entry.row, entry.count) for entry in shards.values() if entry.row is not None)
    total = 0
    for row, count in spans:
        if row != total:
            raise ShardError(f"The index lists samples from row {row}, expected row {total}. {REBUILD}")
        total += count
    return total
