"""Decode an encoded image to pixels, with its size checked first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import ShardError
from lightning_robust.shards.imagesize import image_size

MAX_PIXELS = 1 << 26
REMEDY = "Check the source, then pack it again."


def decode_image(
    data: bytes, *, where: str = "", max_pixels: int = MAX_PIXELS, remedy: str = REMEDY
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG, PNG or WebP to RGB.

    The pixels are those of Pillow's ``convert("RGB")`` for 8-bit gray, RGB and palette images; an alpha channel is
    dropped, and the EXIF orientation is not applied, as training pipelines around Pillow do.

    Args:
        data: the encoded image.
        where: names the image in an error, see :meth:`ShardIndex.describe`.
        max_pixels: an image whose header claims more is refused before decoding.
        remedy: what an error tells the reader to do.

    Returns:
        uint8 array of shape (H, W, 3).

    Raises:
        ShardError: the bytes are no such image, are damaged or cut, or the image is too large.
    """
    import cv2

    named = f"The image of {where}" if where else "An image"
    try:
        height, width = image_size(data)
    except ValueError as error:
        raise ShardError(f"{named} ({len(data)} bytes) cannot be decoded: {error}. {remedy}") from None
    if height * width > max_pixels:
        raise ShardError(f"{named} claims {width} x {height} pixels; the limit is {max_pixels}.")
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ShardError(f"{named} ({len(data)} bytes) cannot be decoded: {error.err}. {remedy}") from None
    if image is None:
        raise ShardError(f"{named} ({len(data)} bytes) cannot be decoded: it is cut or damaged. {remedy}")
    if image.shape != (height, width, 3):
        raise ShardError(f"{named} decodes to {image.shape}, its header says {(height, width, 3)}. {remedy}")
    return image
