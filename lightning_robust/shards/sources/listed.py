"""What the lists of images and labels have in common, whatever file they come in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples


class Row(NamedTuple):
    """A row of a list: where it stands, for messages, and its two values as text."""

    where: str
    path: str
    label: str


def check_columns(file: Path, columns: Sequence[str], wanted: Sequence[str], where: str | None = None) -> None:
    """Check that a list, or its row at ``where``, has the columns that were named."""
    missing = [column for column in wanted if column not in columns]
    if missing:
        here = f"{str(file)!r}, {where}," if where else repr(str(file))
        raise InputError(
            f"{here} has no column {missing[0]!r}; its columns are {', '.join(columns) or 'none'}. "
            "Name the columns with image_column and label_column (--image-column, --label-column)."
        )


def as_row(file: Path, where: str, path: object, label: object) -> Row:
    """Make a row of typed values: the path is text, the label text or a whole number."""
    if not isinstance(path, str | None):
        raise InputError(f"{str(file)!r}, {where}: the path is {path!r}, expected text.")
    if not isinstance(label, str | int | None) or isinstance(label, bool):
        raise InputError(f"{str(file)!r}, {where}: the label is {label!r}, expected a class number or a class name.")
    return Row(where, path or "", "" if label is None else str(label))


def listed_files(file: Path, rows: Sequence[Row], classes: Sequence[str] | None) -> FileSamples:
    """Make the samples of a list.

    Args:
        file: the list; paths are relative to it.
        rows: its rows.
        classes: names in the order of their numbers. Without them, labels that are all numbers are class numbers and
            other labels are numbered in sorted order.

    Raises:
        InputError: there are no rows, a value or an image is missing, or a label is not a class.
    """
    for row in rows:
        if not row.path or not (row.label and row.label.strip()):
            raise InputError(f"{str(file)!r}, {row.where}: the path or the label is empty.")
    if not rows:
        raise InputError(f"{str(file)!r} lists no images.")
    labels = [row.label.strip() for row in rows]
    names = list(classes) if classes is not None else _names(labels)
    numbers = {} if names is None else {name: number for number, name in enumerate(names)}
    limit = None if names is None else len(names)
    targets = [_target(label, numbers, limit, file, row.where) for row, label in zip(rows, labels, strict=True)]
    return FileSamples([file.parent / row.path for row in rows], targets, classes=names)


def _names(labels: list[str]) -> list[str] | None:
    return None if all(_is_number(label) for label in labels) else sorted(set(labels))


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) <= 18


def _target(label: str, numbers: dict[str, int], limit: int | None, file: Path, where: str) -> int:
    if label in numbers:
        return numbers[label]
    if _is_number(label) and (limit is None or int(label) < limit):
        return int(label)
    raise InputError(
        f"{str(file)!r}, {where}: the label {label!r} is neither a name nor a number of the {limit} classes."
    )
