"""What a job that sharpens a set has done so far, kept on disk so that a killed one goes on.

Everything is prepared in a hidden folder of the destination. A unit (a shard, or a folder of images) counts as done
once its record is there, which is written after its files are synced and bear their names.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.indexfile import index_lock, replace_file
from lightning_robust.shards.members import FoundMembers
from lightning_robust.shards.scan import SampleTable

MANIFEST_NAME = "robustify.json"

_HIDDEN = ".robustify"
_JOB_NAME = "job.json"


@dataclass(frozen=True)
class Written:
    """A file of the result: its path below the destination, its bytes and their SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a unit.

    Attributes:
        files: what was written.
        keys: of the samples, in order.
        measures: a row of :data:`MEASURES` per sample.
        table: where the samples lie in a shard; None for a folder of images.
        members: where their further members lie; None for a folder of images.
    """

    files: list[Written]
    keys: list[str]
    measures: npt.NDArray[np.void]
    table: SampleTable | None = None
    members: FoundMembers | None = None


@dataclass(frozen=True, eq=False)
class Record:
    """What is kept of an outcome; the extremes of each measure with the sample's key."""

    files: list[Written]
    samples: int
    worst: dict[str, tuple[float, str]]
    measures: npt.NDArray[np.void]
    table: SampleTable | None
    members: FoundMembers | None


class Job:
    """The folder of a job.

    Args:
        destination: of the set.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.folder = destination / _HIDDEN
        self.files = self.folder / "files"
        self._records = self.folder / "records"

    def begin(self, document: dict[str, Any]) -> None:
        """Begin a job, or go on with the one that was begun if it has the same source, parameters and versions.

        Raises:
            InputError: the destination holds a finished set, another job, or anything else.
        """
        check_destination(self.destination)
        self.destination.mkdir(parents=True, exist_ok=True)
        self._records.mkdir(parents=True, exist_ok=True)
        self.files.mkdir(exist_ok=True)
        with index_lock(str(self.folder)):
            path = self.folder / _JOB_NAME
            if not path.exists():
                replace_file(path, json.dumps(document, indent=1).encode())
        begun = self.document()
        for part in document:
            if begun.get(part) != document[part]:
                differs = _difference(begun.get(part), document[part])
                raise InputError(
                    f"{str(self.destination)!r} holds an unfinished job with another {part} ({differs}). Go on with "
                    "that one, or take the folder away."
                )

    def document(self) -> dict[str, Any]:
        """What was begun.

        Raises:
            InputError: nothing was.
        """
        try:
            document: dict[str, Any] = json.loads((self.folder / _JOB_NAME).read_bytes())
        except FileNotFoundError:
            raise InputError(f"{str(self.destination)!r} holds no unfinished job. Run one first.") from None
        return document

    def keep(self, unit: str, outcome: Outcome) -> None:
        """Record that a unit is done."""
        home = self._home(unit)
        home.mkdir(parents=True, exist_ok=True)
        found = outcome.members
        extensions = [] if found is None else sorted(found.tables)
        arrays = {"measures": outcome.measures, "table": outcome.table}
        arrays |= {f"members-{number}": found.tables[name] for number, name in enumerate(extensions) if found}
        for name, array in arrays.items():
            if array is not None:
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                replace_file(home / f"{name}.npy", buffer.getvalue())
        document = {
            "members": extensions,
            "sought": None if found is None else [sorted(found.sought), found.complete],
            "files": [dataclasses.astuple(file) for file in outcome.files],
            "samples": len(outcome.measures),
            "worst": _worst(outcome),
        }
        replace_file(home / "record.json", json.dumps(document).encode())

    def is_done(self, unit: str) -> bool:
        """Tell whether a unit is recorded and its files are there whole."""
        return self._recorded(unit) is not None

    def record(self, unit: str) -> Record | None:
        """Return what is recorded of a unit; None if it is not done."""
        document = self._recorded(unit)
        if document is None:
            return None
        home, table = self._home(unit), self._home(unit) / "table.npy"
        members = None
        if document.get("sought") is not None:
            tables = {
                name: np.load(home / f"members-{number}.npy", allow_pickle=False)
                for number, name in enumerate(document["members"])
            }
            sought, complete = document["sought"]
            members = FoundMembers(tables, frozenset(sought), complete)
        return Record(
            [Written(*entry) for entry in document["files"]],
            document["samples"],
            {name: (value, key) for name, (value, key) in document["worst"].items()},
            np.load(home / "measures.npy", allow_pickle=False),
            np.load(table, allow_pickle=False) if table.exists() else None,
            members,
        )

    def _recorded(self, unit: str) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((self._home(unit) / "record.json").read_bytes())
        except FileNotFoundError:
            return None
        return document if all(self.size(path) == size for path, size, _ in document["files"]) else None

    def size(self, path: str) -> int | None:
        """Bytes of a file of the result, wherever it is by now; None if there is none."""
        for home in (self.files, self.destination):
            if (home / path).is_file():
                return (home / path).stat().st_size
        return None

    def put_in_place(self, path: str) -> None:
        """Move a file of the result to its place, unless it is there."""
        if (self.files / path).exists():
            (self.destination / path).parent.mkdir(parents=True, exist_ok=True)
            (self.files / path).replace(self.destination / path)

    def end(self, manifest: dict[str, Any]) -> None:
        """Write the manifest and clear up."""
        sync_folder(self.destination)
        replace_file(self.destination / MANIFEST_NAME, (json.dumps(manifest, indent=1) + "\n").encode())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _home(self, unit: str) -> Path:
        return self._records / unit


def check_destination(destination: Path) -> None:
    """Check that a job may write to a folder.

    Raises:
        InputError: it holds a finished set, or files that are of no unfinished job.
    """
    if (destination / MANIFEST_NAME).exists():
        raise InputError(f"{str(destination)!r} holds a finished set ({MANIFEST_NAME}). Choose another folder.")
    if destination.exists() and not destination.is_dir():
        raise InputError(f"{str(destination)!r} is a file. Choose a folder.")
    if destination.is_dir() and not (destination / _HIDDEN).exists() and any(destination.iterdir()):
        raise InputError(f"{str(destination)!r} is not empty. Choose a new folder.")


def check_no_result(folder: Path) -> None:
    """Check that no such job writes to a folder, or has written to it.

    Raises:
        InputError: one does.
    """
    for name in (MANIFEST_NAME, _HIDDEN):
        if (folder / name).exists():
            raise already_sharpened(str(folder), name)


def already_sharpened(folder: str, mark: str) -> InputError:
    """The error for a set that was sharpened before."""
    return InputError(
        f"{folder!r} is sharpened already, as {mark} says; a second pass would sharpen it twice as much. Give the "
        "original set."
    )


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and sync it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _worst(outcome: Outcome) -> dict[str, tuple[float, str]]:
    """The largest of distances, the smallest of similarities, of each measure that has a finite value."""
    worst = {}
    for name in outcome.measures.dtype.names or ():
        values = outcome.measures[name]
        rank = np.where(np.isfinite(values), values if name.endswith(("linf", "alpha")) else -values, -np.inf)
        if rank.size and np.isfinite(rank.max()):
            position = int(rank.argmax())
            worst[name] = (float(values[position]), outcome.keys[position])
    return worst


def _difference(begun: Any, wanted: Any) -> str:
    if not (isinstance(begun, dict) and isinstance(wanted, dict)):
        return f"{len(begun)} there, {len(wanted)} here" if isinstance(wanted, list) else f"{begun!r}, now {wanted!r}"
    keys = [key for key in wanted if begun.get(key) != wanted[key]]
    return ", ".join(f"{key} {begun.get(key)!r}, now {wanted[key]!r}" for key in keys)
