"""``index.json`` beside the shards, and the arrays that it names.

The JSON is the public ``wids-shard-index-v1`` form with keys of our own that other readers skip. The samples are one
structured array (:data:`SAMPLE_DTYPE`), and the other members with one extension are another, all mapped, never
unpickled. A name holds the hash of the bytes and the JSON is replaced last, so a reader never sees a mix of two states.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from lightning_robust.errors import ShardError
from lightning_robust.shards.folderindex import REBUILD, FolderIndex, ShardEntry, empty_index, load_table
from lightning_robust.shards.members import MemberTable
from lightning_robust.shards.scan import Fields

KIND = "wids-shard-index-v1"
INDEX_NAME = "index.json"


def index_lock(folder: str) -> FileLock:
    """Lock under which the index of a folder is built and replaced."""
    return FileLock(str(Path(folder) / f".{INDEX_NAME}.lock"))


def read_folder_index(folder: str, fields: Fields) -> FolderIndex:
    """Read the index of a folder; an empty one if there is none.

    An index by another tool, or for other members, gives counts and sizes to check against but no samples.

    Raises:
        ShardError: ``index.json`` is not an index of shards, is damaged, or names a file outside the folder.
    """
    path = Path(folder) / INDEX_NAME
    try:
        document = json.loads(path.read_bytes())
        if document["__kind__"] != KIND:
            raise ValueError(f"its kind is {document['__kind__']!r}")
        listed = {str(entry["url"]).rsplit("/", 1)[-1]: _entry(entry) for entry in document["shardlist"]}
    except FileNotFoundError:
        return empty_index(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{str(path)!r} is not a shard index of kind {KIND!r} ({type(error).__name__}: {error}). "
            "Move it away; the shards are then indexed again."
        ) from error
    classes = document.get("classes")
    named = None if classes is None else tuple(str(name) for name in classes)
    ours = {"shardlist", "samples_file", "fields", "created_by", "classes", "members"}
    extra = {key: value for key, value in document.items() if key not in ours}
    if "samples_file" not in document or document.get("fields") != _fields_document(fields):
        bare = {name: replace(entry, row=None) for name, entry in listed.items()}
        return replace(empty_index(folder), shards=bare, classes=named, extra=extra)
    table_file = file_beside(folder, document["samples_file"])
    table = load_table(table_file, _rows_expected(listed))
    return FolderIndex(folder, listed, table, table_file, named, extra, _member_files(folder, document.get("members")))


def read_checksums(folder: str) -> dict[str, str]:
    """SHA-256 of the shards of a folder, by file name, where its index has one."""
    entries = read_folder_index(folder, Fields((), None)).shards
    return {name: str(entry.extra["sha256"]) for name, entry in entries.items() if "sha256" in entry.extra}


def write_folder_index(index: FolderIndex, fields: Fields) -> FolderIndex:
    """Write the index of a folder (the caller holds :func:`index_lock`) and return it mapped from disk."""
    from lightning_robust import __version__

    folder = Path(index.folder)
    samples_file = _saved(folder, "index", index.table)
    members = {
        extension: Path(held).name if isinstance(held, str) else _saved(folder, "members", held)
        for extension, held in (index.members or {}).items()
    }
    document = index.extra | {
        "__kind__": KIND,
        "wids_version": 1,
        "created_by": f"lightning_robust {__version__}",
        "fields": _fields_document(fields),
        "samples_file": samples_file,
        "classes": None if index.classes is None else list(index.classes),
        **({} if index.members is None else {"members": members}),
        "shardlist": [_entry_document(name, entry) for name, entry in index.shards.items()],
    }
    replace_file(folder / INDEX_NAME, (json.dumps(document, indent=1) + "\n").encode())
    for old in (*folder.glob("index-????????????????.npy"), *folder.glob("members-????????????????.npy")):
        if old.name not in {samples_file, *members.values()}:
            old.unlink(missing_ok=True)
    table_file = str(folder / samples_file)
    return replace(
        index,
        table=load_table(table_file, len(index.table)),
        table_file=table_file,
        members=None if index.members is None else _member_files(index.folder, members),
    )


def file_beside(folder: str, name: object) -> str:
    """Path of the samples file that an index names, which must lie beside it."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".npy"):
        raise ShardError(f"The index of {folder!r} names the samples file {name!r}; it must be a .npy file beside it.")
    return str(Path(folder) / name)


def hash_named(name: str, sha256: str) -> bool:
    """Tell whether a file of the index has the name that goes with the SHA-256 of its bytes."""
    return name in {_hashed_name(kind, sha256) for kind in ("index", "members")}


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


def _saved(folder: Path, kind: str, table: npt.NDArray[np.void]) -> str:
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    name = _hashed_name(kind, hashlib.sha256(buffer.getbuffer()).hexdigest())
    replace_file(folder / name, buffer.getvalue())
    return name


def _hashed_name(kind: str, sha256: str) -> str:
    return f"{kind}-{sha256[:16]}.npy"


def _member_files(folder: str, names: Any) -> dict[str, MemberTable | str] | None:
    if names is not None and not isinstance(names, dict):
        raise ShardError(f"The index of {folder!r} has members {names!r}; expected files by extension. {REBUILD}")
    return None if names is None else {str(sort): file_beside(folder, name) for sort, name in names.items()}


def _fields_document(fields: Fields) -> dict[str, Any]:
    return {"image": list(fields.image_keys), "label": fields.label_key}


def _entry(document: dict[str, Any]) -> ShardEntry:
    extra = {key: value for key, value in document.items() if key not in {"url", "nsamples", "filesize", "row"}}
    count, size, row = document["nsamples"], document.get("filesize"), document.get("row")
    if not isinstance(count, int) or count < 0 or not isinstance(size, int | None) or not isinstance(row, int | None):
        raise ValueError(f"a shard's entry is {document}")
    return ShardEntry(count, size, row, extra)


def _entry_document(name: str, entry: ShardEntry) -> dict[str, Any]:
    document = {"url": name, "nsamples": entry.count, "filesize": entry.size, "row": entry.row}
    return {key: value for key, value in document.items() if value is not None} | entry.extra


def _rows_expected(shards: dict[str, ShardEntry]) -> int:
    spans = sorted((entry.row, entry.count) for entry in shards.values() if entry.row is not None)
    total = 0
    for row, count in spans:
        if row != total:
            raise ShardError(f"The index lists samples from row {row}, expected row {total}. {REBUILD}")
        total += count
    return total
