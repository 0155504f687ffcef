"""Samples from a JSONL list (one JSON object a line) of image files and labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples
from lightning_robust.shards.sources.listed import as_row, check_columns, columns_read, listed_files
from lightning_robust.shards.sources.listedmembers import ListedMembers

_MAX_LINE = 1 << 20


def jsonl_list(
    file: str | os.PathLike[str],
    *,
    image_column: str = "path",
    label_column: str | None = "label",
    members: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> FileSamples:
    """List the images that a JSONL file names.

    Args:
        file: UTF-8, one JSON object a line, at most 2^20 characters; empty lines are left out. Paths are relative to
            it.
        image_column: key of the image's path.
        label_column: key of the class number, or of the class name; None packs none.
        members: key of each further member, by extension (``{"seg.png": "mask", "boxes.json": "annotation"}``): with
            the path of a file, packed as it is (one that ends in ``png`` must be a mask: one channel, of the size of
            its image), or, for an extension that ends in ``json``, with any value but null.
        classes: names in the order of their numbers. Without them, labels that are all numbers are class numbers and
            other labels are numbered in sorted order.

    Raises:
        InputError: the file, a key, a value, an image or a member is missing, a line is no JSON object, or a label
            is not a class.
    """
    path = Path(file)
    beside = ListedMembers(path, members)
    wanted = columns_read(image_column, label_column, beside)
    rows = []
    for where, record in _records(path):
        check_columns(path, list(record), wanted, where)
        rows.append(as_row(path, where, record, image_column, label_column))
        beside.add(where, record)
    return listed_files(path, rows, classes, beside)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            number = 0
            while line := lines.readline(_MAX_LINE + 1):
                number += 1
                if len(line) > _MAX_LINE:
                    raise InputError(f"{str(path)!r}, line {number}: it is longer than {_MAX_LINE} characters.")
                if line.strip():
                    yield f"line {number}", _record(path, number, line)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a JSONL list: {error}.") from error


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r}, line {number}: it is not JSON ({error}).") from None
    if not isinstance(record, dict):
        raise InputError(
            f"{str(path)!r}, line {number}: found {type(record).__name__}, expected a JSON object with a path and a "
            "label."
        )
    return record
