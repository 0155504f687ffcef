"""A picture of many samples, to look at a shard set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.decode import MAX_PIXELS, decode_image
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.reader import SampleReader
from lightning_robust.shards.scan import split_name

GAP = 8
CAPTION = 32
CELL_SIZES = (16, 2048)

_PAGE, _BARS = 24, 48
_TEXT = (224, 224, 224)
_SCALE = 0.4
_LINE = CAPTION // 2
_BELOW = 4
_MOST_CHARACTERS = 300

Image = npt.NDArray[np.uint8]


def contact_sheet(
    index: ShardIndex,
    positions: Sequence[int] | npt.NDArray[np.int64],
    *,
    cell: int = 128,
    columns: int | None = None,
    progress: bool = False,
) -> Image:
    """Draw samples side by side, each with its key and its class beneath.

    Images keep their proportions within a square of ``cell`` pixels. The square of number ``i`` begins at row ``GAP +
    (i // columns) * (cell + CAPTION + GAP)`` and column ``GAP + (i % columns) * (cell + GAP)``. Text that is too long
    is cut; OpenCV before 5 draws question marks for what is not ASCII.

    Args:
        index: the shard set.
        positions: sample ids, in the order of the cells.
        cell: side of a cell in pixels, 16 to 2048.
        columns: cells in a row; None for about as many as rows.
        progress: show a bar.

    Returns:
        RGB image, uint8 (H, W, 3).

    Raises:
        InputError: no positions, a position outside the set, or a sheet of more than 2^26 pixels.
        ShardError: an image cannot be read or decoded.
    """
    from tqdm import tqdm

    ids = np.asarray(positions, dtype=np.int64).reshape(-1)
    columns = math.ceil(math.sqrt(len(ids))) if columns is None else columns
    height, width = sheet_size(len(ids), cell=cell, columns=columns)
    sheet = np.full((height, width, 3), _PAGE, np.uint8)
    with SampleReader(index) as reader:
        for number, sample in enumerate(tqdm(ids.tolist(), desc="Drawing", unit=" images", disable=not progress)):
            row, column = divmod(number, columns)
            top, left = GAP + row * (cell + CAPTION + GAP), GAP + column * (cell + GAP)
            (data,) = reader.read([sample])
            image = decode_image(data, where=index.describe(sample))
            sheet[top : top + cell, left : left + cell] = _letterboxed(image, cell)
            caption = sheet[top + cell : top + cell + CAPTION, left : left + cell]
            _write(caption, sample_key(index, sample), line=1, keep_end=True)
            _write(caption, class_name(index, sample), line=2, keep_end=False)
    return sheet


def sheet_size(count: int, *, cell: int, columns: int | None = None) -> tuple[int, int]:
    """Height and width in pixels of the sheet that :func:`contact_sheet` draws of so many samples.

    Raises:
        InputError: as there.
    """
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    smallest, largest = CELL_SIZES
    if count < 1 or columns < 1 or not smallest <= cell <= largest:
        raise InputError(
            f"A contact sheet of {count} samples in {columns} columns of {cell} pixels: expected at least one sample "
            f"and column, and cells of {smallest} to {largest} pixels."
        )
    height = GAP + math.ceil(count / columns) * (cell + CAPTION + GAP)
    width = GAP + columns * (cell + GAP)
    if height * width > MAX_PIXELS:
        raise InputError(
            f"A contact sheet of {count} samples has {width} x {height} pixels; the limit is {MAX_PIXELS}. Take fewer "
            "samples or smaller cells."
        )
    return height, width


def sample_key(index: ShardIndex, sample: int) -> str:
    """Key of a sample whose shard is at hand; characters that cannot be shown are question marks."""
    member = index.member(sample) or f"sample {sample}"
    parts = split_name(member)
    return _shown(member if parts is None else parts[0])


def class_name(index: ShardIndex, sample: int) -> str:
    """Class number and name of a sample, as far as the set has them."""
    if index.labels is None:
        return ""
    label = int(index.labels[sample])
    return str(label) if index.classes is None else f"{label} {_shown(index.classes[label])}"


def _letterboxed(image: Image, side: int) -> Image:
    import cv2

    height, width = image.shape[:2]
    scale = side / max(height, width)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    # enlarged pixels stay pixels, so that a small image shows what the net sees
    fitted = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)
    square = np.full((side, side, 3), _BARS, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = fitted
    return square


def _write(caption: Image, text: str, *, line: int, keep_end: bool) -> None:
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    width = caption.shape[1]
    text = text[-_MOST_CHARACTERS:] if keep_end else text[:_MOST_CHARACTERS]
    rest = text
    while rest and cv2.getTextSize(text, font, _SCALE, 1)[0][0] > width:
        rest = rest[1:] if keep_end else rest[:-1]
        text = f"..{rest}" if keep_end else f"{rest}.."
    drawn = np.ascontiguousarray(caption)
    cv2.putText(drawn, text, (0, line * _LINE - _BELOW), font, _SCALE, _TEXT, 1, cv2.LINE_AA)
    caption[:] = drawn


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
