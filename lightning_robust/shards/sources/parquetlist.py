"""Samples from a Parquet list of image files and labels."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples
from lightning_robust.shards.sources.listed import Row, as_row, check_columns, listed_files

# a column that repeats one value takes a few bytes on disk for any number of rows
_MAX_ROWS = 50_000_000


def parquet_list(
    file: str | os.PathLike[str],
    *,
    image_column: str = "path",
    label_column: str = "label",
    classes: Sequence[str] | None = None,
) -> FileSamples:
    """List the images that a Parquet file names; only the two columns are read.

    Args:
        file: at most 50,000,000 rows; paths are relative to it.
        image_column: column with the image's path, text.
        label_column: column with class numbers, or with class names.
        classes: names in the order of their numbers. Without them, labels that are all numbers are class numbers and
            other labels are numbered in sorted order.

    Raises:
        InputError: pyarrow, the file, a column, a value or an image is missing, a value has another type, or a label
            is not a class.
    """
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(
            "A Parquet list needs pyarrow, which is not installed. Install it: pip install 'lightning-robust[parquet]'."
        ) from None
    path = Path(file)
    rows: list[Row] = []
    try:
        with parquet.ParquetFile(path) as table:
            check_columns(path, table.schema_arrow.names, (image_column, label_column))
            if table.metadata.num_rows > _MAX_ROWS:
                raise InputError(f"{str(path)!r} has {table.metadata.num_rows} rows; the limit is {_MAX_ROWS}.")
            for batch in table.iter_batches(columns=[image_column, label_column]):
                images, labels = batch.column(image_column).to_pylist(), batch.column(label_column).to_pylist()
                for image, label in zip(images, labels, strict=True):
                    rows.append(as_row(path, f"row {len(rows) + 1}", image, label))
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        raise InputError(f"{str(path)!r} cannot be read as a Parquet list: {error}.") from error
    return listed_files(path, rows, classes)
