"""3x3 filters on the CPU: OpenCV over the whole batch at once.

OpenCV filters one tall picture, whose rows are the rows of all planes; only the first and the last row of each plane
then see a stranger, and they are computed again. For three channels this is many times faster than a depthwise
convolution.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor

from lightning_robust.errors import UnsupportedError

Padding: TypeAlias = Literal["replicate", "reflect", "zeros"]

_BORDERS: dict[Padding, int] = {
    "replicate": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "zeros": cv2.BORDER_CONSTANT,
}
_MAX_INTERLEAVED = 4


def suits_opencv(image: Tensor) -> bool:
    """Whether :func:`filter_planes` takes this tensor: on the CPU, eager, not empty, 8-bit or full precision."""
    return (
        not torch.compiler.is_compiling()
        and image.device.type == "cpu"
        and image.dtype in (torch.uint8, torch.float32, torch.float64)
        and image.numel() > 0
        and type(image) in (Tensor, torch.nn.Parameter)
    )


def filter_planes(image: Tensor, kernel: Tensor, *, padding: Padding, delta: float = 0.0) -> Tensor:
    """Correlate every plane of (B, C, H, W) with a 3x3 kernel and add ``delta``; no gradient.

    An 8-bit image gives an 8-bit result, rounded to nearest and saturated.
    """
    rows, weights = _rows(image), kernel.double().numpy()
    result = torch.empty(rows.shape, dtype=rows.dtype)
    _filter_tall(rows, weights, padding, delta, into=result)
    if rows.shape[0] > 1:
        bands = _edge_bands(rows, padding)
        filtered = torch.empty(bands.shape, dtype=rows.dtype)
        _filter_tall(bands, weights, padding, delta, into=filtered)
        result[:, 0] = filtered[:, 1]
        result[:, -1] = filtered[:, 4]
    return _from_rows(result, image)


def to_bytes(image: Tensor) -> Tensor:
    """Float32 image in [0, 1] to the nearest 8-bit values, in one pass; no gradient."""
    rows = _rows(image)
    result = torch.empty(rows.shape, dtype=torch.uint8)
    wanted = _tall(result)
    _check_written(cv2.convertScaleAbs(_tall(rows), dst=wanted, alpha=255.0), wanted)
    return _from_rows(result, image)


def from_bytes(values: Tensor) -> Tensor:
    """8-bit values to float32 in [0, 1], the bits of ``values.float() / 255``, in one pass."""
    rows = _rows(values)
    result = torch.empty(rows.shape, dtype=torch.float32)
    units = torch.arange(256, dtype=torch.float32).div(255).numpy()
    wanted = _tall(result)
    _check_written(cv2.LUT(_tall(rows), units, dst=wanted), wanted)
    return _from_rows(result, values)


def _filter_tall(rows: Tensor, weights: np.ndarray[Any, Any], padding: Padding, delta: float, *, into: Tensor) -> None:
    wanted = _tall(into)
    written = cv2.filter2D(_tall(rows), -1, weights, dst=wanted, delta=delta, borderType=_BORDERS[padding])
    _check_written(written, wanted)


def _check_written(written: Any, wanted: np.ndarray[Any, Any]) -> None:
    # where dst does not fit, OpenCV returns an array of its own without a word and leaves dst as it was
    if not np.may_share_memory(written, wanted):
        raise UnsupportedError(
            f"OpenCV {cv2.__version__} was given a {wanted.dtype} array {wanted.shape} to write into and returned "
            f"another, {written.dtype} {written.shape}. Report this with the type and the shape of the image; another "
            "version of opencv-python-headless may help meanwhile."
        )


def _edge_bands(rows: Tensor, padding: Padding) -> Tensor:
    """First and last row of each plane, each between its true neighbors: (planes, 6, W)."""
    last = rows.shape[1] - 1
    wanted = np.array([-1, 0, 1, last - 1, last, last + 1])
    inside = np.clip(wanted, 0, last) if padding != "reflect" else last - np.abs(last - np.abs(wanted))
    bands = rows[:, torch.from_numpy(inside)]
    if padding == "zeros":
        bands[:, torch.from_numpy(wanted != inside)] = 0
    return bands


def _rows(image: Tensor) -> Tensor:
    """The planes of an image as (planes, H, W), or as (B, H, W, C) where the channels of a pixel lie side by side."""
    source = image.detach()
    return source.permute(0, 2, 3, 1) if _is_interleaved(source) else source.contiguous().flatten(0, 1)


def _from_rows(rows: Tensor, like: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2) if _is_interleaved(like) else rows.view(like.shape)


def _is_interleaved(image: Tensor) -> bool:
    channels_last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    return channels_last and image.shape[1] <= _MAX_INTERLEAVED


def _tall(rows: Tensor) -> np.ndarray[Any, Any]:
    # by one flat view: OpenCV refuses the odd strides that torch leaves on axes of length one
    array: np.ndarray[Any, Any] = rows.reshape(-1).view(-1, *rows.shape[2:]).numpy()
    return array
