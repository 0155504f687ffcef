"""Bring an image, and what belongs to it, to one size: scaled until it just covers it, cropped at the center."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from lightning_robust.shards.decode import MAX_PIXELS

Pixels: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.integer[Any]]
Size: TypeAlias = tuple[int, int]


class Boxes(NamedTuple):
    """Boxes of one image: corners (x0, y0, x1, y1) in pixels, float32 (N, 4), and class numbers, int64 (N,)."""

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def fit_image(image: Pixels, size: Size) -> Pixels:
    """Scale an image until it just covers ``size`` and crop the center; the aspect ratio is kept.

    Args:
        image: uint8, (H, W, C).
        size: height and width in pixels.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    scaled, top, left = _cover((height, width), size)
    enlarged = max(size[0] / height, size[1] / width) >= 1
    if enlarged and scaled[0] * scaled[1] > MAX_PIXELS:
        return _enlarged_part(image, scaled, top, left, size)
    method = cv2.INTER_LINEAR if enlarged else cv2.INTER_AREA
    image = np.asarray(cv2.resize(image, scaled[::-1], interpolation=method), dtype=np.uint8)
    return image[top : top + size[0], left : left + size[1]]


def fit_mask(mask: Mask, size: Size) -> Mask:
    """Scale and crop a mask (H, W) as :func:`fit_image` does its image, taking the nearest pixel."""
    if mask.shape == size:
        return mask
    scaled, top, left = _cover((mask.shape[0], mask.shape[1]), size)
    rows = _nearest(mask.shape[0], scaled[0], top, size[0])
    columns = _nearest(mask.shape[1], scaled[1], left, size[1])
    return mask[rows[:, None], columns]


def fit_boxes(found: Boxes, image_size: Size, size: Size) -> Boxes:
    """Scale and crop boxes as :func:`fit_image` does their image.

    Args:
        found: boxes in the image.
        image_size: height and width of the image.
        size: height and width that it is brought to.

    Returns:
        Boxes cut off at the border; those that are outside are dropped with their labels.
    """
    if image_size == size:
        return found
    scaled, top, left = _cover(image_size, size)
    scale = np.array([scaled[1] / image_size[1], scaled[0] / image_size[0]] * 2)
    moved = found.boxes.astype(np.float64) * scale - np.array([left, top] * 2)
    return clip_boxes(Boxes(moved.astype(np.float32), found.labels), size)


def clip_boxes(found: Boxes, size: Size) -> Boxes:
    """Cut boxes off at the border of an image of height and width ``size``, and drop those that are outside."""
    boxes = np.clip(found.boxes, 0, np.array([size[1], size[0]] * 2, np.float32))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Boxes(boxes[kept], found.labels[kept])


def _cover(image_size: Size, size: Size) -> tuple[Size, int, int]:
    """Height and width of an image that is scaled to cover ``size``, and the top and left of the crop."""
    scale = max(size[0] / image_size[0], size[1] / image_size[1])
    scaled = (max(size[0], round(image_size[0] * scale)), max(size[1], round(image_size[1] * scale)))
    return scaled, (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2


def _enlarged_part(image: Pixels, scaled: Size, top: int, left: int, size: Size) -> Pixels:
    """The part of an enlarged image that the crop leaves, from those pixels alone that it needs.

    A line of pixels, a few hundred bytes as a file, would take gigabytes where it is made as high as ``size``. Other
    images go through OpenCV, which is faster; its numbers are up to 1 from these.
    """
    above, below, down = _neighbors(image.shape[0], scaled[0], top, size[0])
    before, after, right = _neighbors(image.shape[1], scaled[1], left, size[1])
    lines = [
        image[row[:, None], before] * (1 - right)[:, None] + image[row[:, None], after] * right[:, None]
        for row in (above, below)
    ]
    return np.rint(lines[0] * (1 - down)[:, None, None] + lines[1] * down[:, None, None]).astype(np.uint8)


def _neighbors(
    length: int, scaled: int, start: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For ``count`` pixels of an enlarged line, the two whose centers it lies between, and the weight of the second."""
    center = (np.arange(start, start + count) + 0.5) * length / scaled - 0.5
    low = np.floor(center).astype(np.int64)
    return low.clip(0), (low + 1).clip(max=length - 1), (center - low).astype(np.float32)


def _nearest(length: int, scaled: int, start: int, count: int) -> npt.NDArray[np.int64]:
    """For ``count`` pixels of a scaled line, from ``start`` on, the one whose center is nearest.

    cv2.INTER_NEAREST takes the one at the left edge instead, which shifts a mask against its image.
    """
    # the first in whole numbers of any size: in those of NumPy the product may overflow
    first, rest = divmod((2 * start + 1) * length, 2 * scaled)
    return first + (rest + 2 * length * np.arange(count, dtype=np.int64)) // (2 * scaled)
