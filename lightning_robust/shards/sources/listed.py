"""What the lists of images and labels have in common, whatever file they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples, check_unlabeled
from lightning_robust.shards.sources.listedmembers import ListedMembers


class Row(NamedTuple):
    """A row of a list: where it stands, for messages, its image and its label as text (None: the list has none)."""

    where: str
    path: str
    label: str | None


def columns_read(image_column: str, label_column: str | None, members: ListedMembers) -> list[str]:
    """The columns that samples are made of, each once."""
    labels = [] if label_column is None else [label_column]
    return list(dict.fromkeys([image_column, *labels, *members.columns]))


def check_columns(file: Path, columns: Sequence[str], wanted: Sequence[str], where: str | None = None) -> None:
    """Check that a list, or its row at ``where``, has the columns that were named."""
    missing = [column for column in wanted if column not in columns]
    if missing:
        here = f"{str(file)!r}, {where}," if where else repr(str(file))
        raise InputError(
            f"{here} has no column {missing[0]!r}; its columns are {', '.join(columns) or 'none'}. "
            "Name the columns with image_column, label_column and members (--image-column, --label-column, --member); "
            "label_column=None (--no-labels) reads a list without labels."
        )


def as_row(file: Path, where: str, values: Mapping[str, object], image_column: str, label_column: str | None) -> Row:
    """Make a row of typed values: the path is text, the label text or a whole number."""
    path, label = values[image_column], None if label_column is None else values[label_column]
    if not isinstance(path, str | None):
        raise InputError(f"{str(file)!r}, {where}: the path is {path!r}, expected text.")
    if not isinstance(label, str | int | None) or isinstance(label, bool):
        raise InputError(f"{str(file)!r}, {where}: the label is {label!r}, expected a class number or a class name.")
    if label_column is None:
        return Row(where, path or "", None)
    return Row(where, path or "", "" if label is None else str(label))


def listed_files(file: Path, rows: Sequence[Row], classes: Sequence[str] | None, members: ListedMembers) -> FileSamples:
    """Make the samples of a list.

    Args:
        file: the list; paths are relative to it.
        rows: its rows.
        classes: names in the order of their numbers. Without them, labels that are all numbers are class numbers and
            other labels are numbered in sorted order.
        members: what the rows say of further members.

    Raises:
        InputError: there are no rows, a value, an image or a member is missing, a label is not a class, or there are
            classes and no labels.
    """
    for row in rows:
        if not row.path or (row.label is not None and not row.label.strip()):
            raise InputError(f"{str(file)!r}, {row.where}: the path or the label is empty.")
    if not rows:
        raise InputError(f"{str(file)!r} lists no images.")
    targets, names = _numbered(file, rows, classes)
    source = FileSamples([file.parent / row.path for row in rows], targets, classes=names, members=members)
    members.check()
    return source


def _numbered(
    file: Path, rows: Sequence[Row], classes: Sequence[str] | None
) -> tuple[list[int] | None, list[str] | None]:
    """Class numbers and class names; neither in a list without labels."""
    labels = [row.label.strip() for row in rows if row.label is not None]
    if not labels:
        check_unlabeled(classes)
        return None, None
    names = list(classes) if classes is not None else _names(labels)
    numbers = {} if names is None else {name: number for number, name in enumerate(names)}
    limit = None if names is None else len(names)
    return [_target(label, numbers, limit, file, row.where) for row, label in zip(rows, labels, strict=True)], names


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
