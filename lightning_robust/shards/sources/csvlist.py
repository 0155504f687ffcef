"""Samples from a CSV list of image files and labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples
from lightning_robust.shards.sources.listed import as_row, check_columns, columns_read, listed_files
from lightning_robust.shards.sources.listedmembers import ListedMembers


def csv_list(
    file: str | os.PathLike[str],
    *,
    image_column: str = "path",
    label_column: str | None = "label",
    members: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> FileSamples:
    """List the images that a CSV file names.

    Args:
        file: UTF-8, with a header line; paths are relative to it.
        image_column: column with the image's path.
        label_column: column with class numbers, or with class names; None packs none.
        members: column of each further member, by extension (``{"seg.png": "mask", "boxes.json": "annotation"}``): with
            the path of a file, packed as it is (one that ends in ``png`` must be a mask: one channel, of the size of
            its image), or, for an extension that ends in ``json``, with text that is JSON.
        classes: names in the order of their numbers. Without them, labels that are all numbers are class numbers and
            other labels are numbered in sorted order.

    Raises:
        InputError: the file, a column, a value, an image or a member is missing, a member is no JSON, or a label is
            not a class.
    """
    path = Path(file)
    beside = ListedMembers(path, members, json_is_text=True)
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            check_columns(path, list(reader.fieldnames or []), columns_read(image_column, label_column, beside))
            for row in reader:
                rows.append(as_row(path, f"line {reader.line_num}", row, image_column, label_column))
                beside.add(rows[-1].where, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read as a CSV list: {error}.") from error
    return listed_files(path, rows, classes, beside)
