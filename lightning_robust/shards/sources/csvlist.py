"""Samples from a CSV list of image files and labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples


def csv_list(
    file: str | os.PathLike[str],
    *,
    image_column: str = "path",
    label_column: str = "label",
    classes: Sequence[str] | None = None,
) -> FileSamples:
    """List the images that a CSV file names.

    Args:
        file: UTF-8, with a header line; paths are relative to it.
        image_column: column with the image's path.
        label_column: column with class numbers, or with class names.
        classes: names in the order of their numbers. Without them, labels that are all numbers are class numbers and
            other labels are numbered in sorted order.

    Raises:
        InputError: the file, a column, a value or an image is missing, or a label is not a class.
    """
    path = Path(file)
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            header = list(reader.fieldnames or [])
            missing = [column for column in (image_column, label_column) if column not in header]
            if missing:
                raise InputError(
                    f"{str(path)!r} has no column {missing[0]!r}; its columns are {', '.join(header) or 'none'}. "
                    "Name the columns with image_column and label_column (--image-column, --label-column)."
                )
            rows = [(reader.line_num, row[image_column], row[label_column]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read as a CSV list: {error}.") from error
    for number, name, label in rows:
        if not name or not label:
            raise InputError(f"{str(path)!r}, line {number}: the path or the label is empty.")
    if not rows:
        raise InputError(f"{str(path)!r} lists no images.")
    labels = [label.strip() for _, _, label in rows]
    names = list(classes) if classes is not None else _names(labels)
    numbers = {} if names is None else {name: number for number, name in enumerate(names)}
    limit = None if names is None else len(names)
    targets = [_target(label, numbers, limit, path, line) for (line, _, _), label in zip(rows, labels, strict=True)]
    return FileSamples([path.parent / name for _, name, _ in rows], targets, classes=names)


def _names(labels: list[str]) -> list[str] | None:
    return None if all(_is_number(label) for label in labels) else sorted(set(labels))


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) <= 18


def _target(label: str, numbers: dict[str, int], limit: int | None, path: Path, line: int) -> int:
    if label in numbers:
        return numbers[label]
    if _is_number(label) and (limit is None or int(label) < limit):
        return int(label)
    raise InputError(
        f"{str(path)!r}, line {line}: the label {label!r} is neither a name nor a number of the {limit} classes."
    )
