"""Samples from a Parquet list of image files and labels."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples
from lightning_robust.shards.sources.listed import Row, as_row, check_columns, columns_read, listed_files
from lightning_robust.shards.sources.listedmembers import ListedMembers

# a column that repeats one value takes a few bytes on disk for any number of rows
_MAX_ROWS = 50_000_000
# as Python objects, annotations take many times the bytes that they have in the file
_ROWS_AT_ONCE = 1024


def parquet_list(
    file: str | os.PathLike[str],
    *,
    image_column: str = "path",
    label_column: str | None = "label",
    members: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> FileSamples:
    """List the images that a Parquet file names; only the columns that are named are read.

    Args:
        file: at most 50,000,000 rows; paths are relative to it.
        image_column: column with the image's path, text.
        label_column: column with class numbers, or with class names; None packs none.
        members: column of each further member, by extension (``{"seg.png": "mask", "boxes.json": "annotation"}``): with
            the path of a file, packed as it is (one that ends in ``png`` must be a mask: one channel, of the size of
            its image), or, for an extension that ends in ``json``, with any value that JSON can say.
        classes: names in the order of their numbers. Without them, labels that are all numbers are class numbers and
            other labels are numbered in sorted order.

    Raises:
        InputError: pyarrow, the file, a column, a value, an image or a member is missing, a value has another
            type, or a label is not a class.
    """
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(
            "A Parquet list needs pyarrow, which is not installed. Install it: pip install 'lightning-robust[parquet]'."
        ) from None
    path = Path(file)
    beside = ListedMembers(path, members)
    wanted = columns_read(image_column, label_column, beside)
    rows: list[Row] = []
    try:
        with parquet.ParquetFile(path) as table:
            check_columns(path, table.schema_arrow.names, wanted)
            if table.metadata.num_rows > _MAX_ROWS:
                raise InputError(f"{str(path)!r} has {table.metadata.num_rows} rows; the limit is {_MAX_ROWS}.")
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    rows.append(as_row(path, f"row {len(rows) + 1}", row, image_column, label_column))
                    beside.add(rows[-1].where, row)
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        raise InputError(f"{str(path)!r} cannot be read as a Parquet list: {error}.") from error
    return listed_files(path, rows, classes, beside)
