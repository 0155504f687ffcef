"""Samples from a CSV list of image files and labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples
from lightning_robust.shards.sources.listed import Row, check_columns, listed_files


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
            check_columns(path, list(reader.fieldnames or []), (image_column, label_column))
            rows = [Row(f"line {reader.line_num}", row[image_column], row[label_column]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read as a CSV list: {error}.") from error
    return listed_files(path, rows, classes)
