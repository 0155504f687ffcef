"""``index.json`` beside the shards, and the array of samples that it names.

The JSON is the public ``wids-shard-index-v1`` form with keys of our own that other readers skip. The samples are one
structured array (:data:`SAMPLE_DTYPE`), mapped, never unpickled. Its name holds the hash of its bytes and the JSON is
replaced last, so a reader sees an old pair or a new one and never a mix.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from filelock import FileLock

from lightning_robust.errors import ShardError
from lightning_robust.shards.scan import SAMPLE_DTYPE, Fields, SampleTable

KIND = "wids-shard-index-v1"
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class ShardEntry:
    """What the index says of one shard; ``row`` is its first row in the table, None if its samples are not listed."""

    count: int
    size: int | None
    row: int | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The index of the shards of one folder, by file name."""

    folder: str
    shards: dict[str, ShardEntry]
    table: SampleTable
    table_file: str | None = None
    classes: tuple[str, ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def row_of(self, name: str) -> int | None:
        """First row of a shard in the table; None if its samples are not listed."""
        return self.shards[name].row if name in self.shards else None

    def rows(self, name: str) -> SampleTable:
        """Rows of a shard whose samples are listed."""
        row = self.row_of(name)
        if row is None:
            raise KeyError(name)
        return self.table[row : row + self.shards[name].count]

    def holds_only(self, names: list[str]) -> bool:
        """Tell whether the table is these shards' rows, in this order, and nothing else."""
        starts = [self.shards[name].row for name in names]
        counts = [self.shards[name].count for name in names]
        expected = np.cumsum([0, *counts])
        return starts == expected[:-1].tolist() and int(expected[-1]) == len(self.table)

    def with_shards(
        self, tables: dict[str, SampleTable], *, sizes: dict[str, int], extra: dict[str, dict[str, Any]] | None = None
    ) -> FolderIndex:
        """Add shards, or replace what was known of them, keeping the others."""
        merged = {name: self.rows(name) for name, entry in self.shards.items() if entry.row is not None} | tables
        starts = dict(zip(merged, np.cumsum([0, *map(len, merged.values())]).tolist(), strict=False))
        shards = {name: entry for name, entry in self.shards.items() if entry.row is None}
        for name, rows in merged.items():
            known = self.shards.get(name, ShardEntry(0, None, None))
            shards[name] = ShardEntry(
                len(rows), sizes.get(name, known.size), starts[name], (extra or {}).get(name, known.extra)
            )
        table = np.concatenate([*merged.values(), np.empty(0, SAMPLE_DTYPE)])
        return replace(self, shards=dict(sorted(shards.items())), table=table, table_file=None)

    def without(self, names: set[str]) -> FolderIndex:
        """Forget shards."""
        return replace(self, shards={name: entry for name, entry in self.shards.items() if name not in names})


def empty_index(folder: str) -> FolderIndex:
    """Make the index of a folder of which nothing is known."""
    return FolderIndex(folder, {}, np.empty(0, SAMPLE_DTYPE))


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
    ours = {"shardlist", "samples_file", "fields", "created_by", "classes"}
    extra = {key: value for key, value in document.items() if key not in ours}
    if "samples_file" not in document or document.get("fields") != _fields_document(fields):
        bare = {name: replace(entry, row=None) for name, entry in listed.items()}
        return replace(empty_index(folder), shards=bare, classes=named, extra=extra)
    table_file = file_beside(folder, document["samples_file"])
    return FolderIndex(folder, listed, load_table(table_file, _rows_expected(listed)), table_file, named, extra)


def read_checksums(folder: str) -> dict[str, str]:
    """SHA-256 of the shards of a folder, by file name, where its index has one."""
    entries = read_folder_index(folder, Fields((), None)).shards
    return {name: str(entry.extra["sha256"]) for name, entry in entries.items() if "sha256" in entry.extra}


def write_folder_index(index: FolderIndex, fields: Fields) -> FolderIndex:
    """Write the index of a folder (the caller holds :func:`index_lock`) and return it mapped from disk."""
    from lightning_robust import __version__

    folder = Path(index.folder)
    buffer = io.BytesIO()
    np.save(buffer, index.table, allow_pickle=False)
    samples_file = table_name(hashlib.sha256(buffer.getbuffer()).hexdigest())
    document = index.extra | {
        "__kind__": KIND,
        "wids_version": 1,
        "created_by": f"lightning_robust {__version__}",
        "fields": _fields_document(fields),
        "samples_file": samples_file,
        "classes": None if index.classes is None else list(index.classes),
        "shardlist": [_entry_document(name, entry) for name, entry in index.shards.items()],
    }
    replace_file(folder / samples_file, buffer.getvalue())
    replace_file(folder / INDEX_NAME, (json.dumps(document, indent=1) + "\n").encode())
    for old in folder.glob("index-????????????????.npy"):
        if old.name != samples_file:
            old.unlink(missing_ok=True)
    table_file = str(folder / samples_file)
    return replace(index, table=load_table(table_file, len(index.table)), table_file=table_file)


def load_table(path: str, rows: int) -> SampleTable:
    """Map a table of samples and check that it has the expected number of rows."""
    try:
        table: SampleTable = np.load(path, mmap_mode="r" if rows else None, allow_pickle=False)
    # numpy has Python parse the header, which raises what it likes on damaged text
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError, TokenError, RecursionError) as error:
        raise ShardError(f"The samples file {path!r} of the index cannot be read: {error}. {_REBUILD}") from error
    if table.dtype != SAMPLE_DTYPE or table.shape != (rows,):
        raise ShardError(
            f"The samples file {path!r} holds {table.dtype} {table.shape}, expected {SAMPLE_DTYPE} ({rows},). "
            + _REBUILD
        )
    return table


_REBUILD = "Run `lightning-robust shards index --rebuild`."


def file_beside(folder: str, name: object) -> str:
    """Path of the samples file that an index names, which must lie beside it."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".npy"):
        raise ShardError(f"The index of {folder!r} names the samples file {name!r}; it must be a .npy file beside it.")
    return str(Path(folder) / name)


def table_name(sha256: str) -> str:
    """Name of the samples file whose bytes have this SHA-256."""
    return f"index-{sha256[:16]}.npy"


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
            raise ShardError(f"The index lists samples from row {row}, expected row {total}. {_REBUILD}")
        total += count
    return total
