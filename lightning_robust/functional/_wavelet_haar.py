"""One level of the Haar transform: 2 x 2 pixels times an orthogonal matrix that is its own inverse."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from lightning_robust.errors import UnsupportedError
from lightning_robust.functional._wavelet_banks import constant_matrix, product
from lightning_robust.functional._wavelet_border import extend


def analyze_haar(planes: Tensor, mode: str) -> Tensor:
    """Take (N, H, W) to bands (4, N, h, w) in the order A, H, V, D of PyWavelets."""
    for dim in (-1, -2):
        planes = extend(planes, 0, planes.shape[dim] % 2, mode, dim)
    quads = _split(planes) if suits_opencv(planes) else _split_by_views(planes)
    return _mixed(quads)


def synthesize_haar(bands: Tensor) -> Tensor:
    """Take bands (4, N, h, w) back to (N, 2 h, 2 w)."""
    quads = _mixed(bands)
    return _merge(quads) if suits_opencv(quads) else _merge_by_views(quads)


def suits_opencv(x: Tensor) -> bool:
    """Whether OpenCV may take the pixels apart, which is twice as fast as a strided copy of torch."""
    return is_plain(x) and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0


def is_plain(x: Tensor) -> bool:
    """Whether nobody watches what is done to this tensor: eager, and no gradient wanted."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


def _mixed(quads: Tensor) -> Tensor:
    matrix = constant_matrix("haar", "", quads.dtype, quads.device)
    return product(matrix, quads.reshape(4, -1)).view_as(quads)


def _split_by_views(planes: Tensor) -> Tensor:
    count, height, width = planes.shape
    quads = planes.reshape(count, height // 2, 2, width // 2, 2).permute(2, 4, 0, 1, 3)
    return quads.reshape(4, count, height // 2, width // 2)


def _merge_by_views(quads: Tensor) -> Tensor:
    _, count, height, width = quads.shape
    pixels = quads.reshape(2, 2, count, height, width).permute(2, 3, 0, 4, 1)
    return pixels.reshape(count, 2 * height, 2 * width)


def _split(planes: Tensor) -> Tensor:
    count, height, width = planes.shape
    quads = torch.empty(4, count, height // 2, width // 2, dtype=planes.dtype)
    pairs = planes.detach().contiguous().view(-1, 2, width // 2, 2).numpy()
    parts = quads.view(4, -1, width // 2).numpy()
    for row in (0, 1):
        written = cv2.split(pairs[:, row], [parts[2 * row], parts[2 * row + 1]])
        _check_written(written[0], parts)
        _check_written(written[1], parts)
    return quads


def _merge(quads: Tensor) -> Tensor:
    _, count, height, width = quads.shape
    planes = torch.empty(count, 2 * height, 2 * width, dtype=quads.dtype)
    pairs = planes.view(-1, 2, width, 2).numpy()
    parts = quads.detach().contiguous().view(4, -1, width).numpy()
    for row in (0, 1):
        _check_written(cv2.merge([parts[2 * row], parts[2 * row + 1]], pairs[:, row]), pairs)
    return planes


def _check_written(written: np.ndarray, wanted: np.ndarray) -> None:
    # where dst does not fit, OpenCV returns an array of its own without a word and leaves dst as it was
    if not np.may_share_memory(written, wanted):
        raise UnsupportedError(
            f"OpenCV {cv2.__version__} was given a {wanted.dtype} array {wanted.shape} to write into and returned "
            f"another, {written.dtype} {written.shape}. Report this with the type and the shape of the image; another "
            "version of opencv-python-headless may help meanwhile."
        )
