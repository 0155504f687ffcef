"""Further members that the columns of a list name."""

from __future__ import annotations

import json
import tempfile
import weakref
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.annotations import parse_json
from lightning_robust.shards.sources.beside import read_member
from lightning_robust.shards.writing import check_extension

_MOST_BYTES_IN_MEMORY = 1 << 24
_REMEDY = "Correct the list."


class ListedMembers:
    """Further members of the samples of a list: files and JSON values.

    What the rows say of them waits in a temporary file, since annotations may be many times the paths and the labels
    of a list; the files that they name are read when their sample is made.

    Args:
        file: the list; paths are relative to it.
        columns: column of each member, by extension: with a JSON value for an extension that ends in ``json``,
            otherwise with the path of a file.
        json_is_text: JSON values are given as text.

    Raises:
        InputError: an extension is not allowed.
    """

    def __init__(self, file: Path, columns: Mapping[str, str] | None, *, json_is_text: bool = False) -> None:
        self._file, self._json_is_text = file, json_is_text
        self._columns = dict(columns or {})
        for extension in self._columns:
            check_extension(extension)
        self._rows = tempfile.SpooledTemporaryFile(max_size=_MOST_BYTES_IN_MEMORY)  # noqa: SIM115 - closed below
        weakref.finalize(self, self._rows.close)
        self._ends = array("q", [0])
        self._fault, self._faults = "", 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(self._columns.values())

    def add(self, where: str, row: Mapping[str, Any]) -> None:
        """Note what the next row says; :meth:`check` tells of faults."""
        if not self._columns:
            return
        try:
            noted = [where, {extension: self._noted(where, extension, row) for extension in self._columns}]
        except InputError as error:
            self._fault, self._faults = self._fault or str(error), self._faults + 1
            return
        self._ends.append(self._ends[-1] + self._rows.write(json.dumps(noted).encode()))

    def check(self) -> None:
        """Check that every row named what it should.

        Raises:
            InputError: a value or a file is missing, or a value is no JSON; says of the first such row, and how many
                there are.
        """
        if self._faults:
            rows = self._faults + len(self._ends) - 1
            raise InputError(f"{self._fault} Such faults are in {self._faults} of {rows} rows.")

    def __call__(self, position: int, image: bytes) -> dict[str, Any]:
        """Make the further members of the sample at a position."""
        if not self._columns:
            return {}
        start, end = self._ends[position : position + 2]
        self._rows.seek(start)
        where, noted = json.loads(self._rows.read(end - start))
        return {
            extension: value
            if _is_json(extension)
            else read_member(self._file.parent / value, extension, image, self._named(where, extension, value))
            for extension, value in noted.items()
        }

    def _noted(self, where: str, extension: str, row: Mapping[str, Any]) -> Any:
        column = self._columns[extension]
        value = row[column]
        here = self._named(where, extension)
        if value is None or (value == "" and (self._json_is_text or not _is_json(extension))):
            raise InputError(f"{here} is missing: the column {column!r} is empty. {_REMEDY}")
        if _is_json(extension):
            return self._json(value, here)
        if not isinstance(value, str):
            raise InputError(
                f"{here}: the column {column!r} holds {value!r:.80}, expected the path of a file. {_REMEDY}"
            )
        path, here = self._file.parent / value, self._named(where, extension, value)
        try:
            found = path.is_file()
        except OSError as error:  # such as a value that is too long for a path
            raise InputError(f"{here} cannot be read: {error.strerror}. {_REMEDY}") from error
        if not found:
            raise InputError(f"{here} is missing: there is no file {str(path)!r}.")
        return value

    def _json(self, value: Any, here: str) -> Any:
        try:
            data = value if self._json_is_text else json.dumps(value, allow_nan=False)
            parsed = parse_json(data.encode(), where=here, remedy=_REMEDY)
        except ShardError as error:
            raise InputError(str(error)) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{here} cannot be written as JSON: {error}. {_REMEDY}") from None
        if parsed is None:
            raise InputError(f"{here} is missing: its value is null. {_REMEDY}")
        return parsed

    def _named(self, where: str, extension: str, path: str = "") -> str:
        return f"{str(self._file)!r}, {where}: the member {extension!r}" + (f" ({path!r:.200})" if path else "")


def _is_json(extension: str) -> bool:
    return extension.rpartition(".")[2] == "json"
