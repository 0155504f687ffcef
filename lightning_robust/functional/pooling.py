"""Alias-free downsampling in the frequency domain, computed as one dense product per axis."""

from __future__ import annotations

import operator
import warnings
from typing import Literal

import torch
from torch import Tensor

from lightning_robust.errors import InputError, RobustWarning
from lightning_robust.functional._pooling_matrices import Padding, Window, constant_matrix, released_length

_WINDOWS = ("asap", "rect", "band")


def frequency_pool2d(x: Tensor, output_size: int | tuple[int, int], *, window: Window = "asap") -> Tensor:
    """Downsample maps by keeping only the frequencies that the smaller grid can hold.

    Along an axis of N pixels the result has M samples at positions n N / M, so sample 0 lies on pixel 0, as with a
    strided convolution. The map is treated as periodic and its mean is kept exactly. The map is linear in ``x`` and
    saves nothing for the backward pass.

    Args:
        x: maps of shape (..., H, W) in a floating dtype. A channels_last (B, C, H, W) input gives a channels_last
            result.
        output_size: M for both axes, or (M_H, M_W), at most the input size. An axis that keeps its size is untouched.
        window: weight of the kept frequencies. ``"rect"`` keeps them all (FLC pooling, arXiv 2204.00491); ``"asap"``
            is the root of a Hamming window over the input's spectrum (ASAP, arXiv 2307.09804), centered on frequency 0;
            ``"band"`` is ours: a Hamming window over the kept band, which blurs more and hardly rings.

    Returns:
        Maps of shape (..., M_H, M_W), in the dtype of ``x``.

    Raises:
        InputError: if ``x`` is no floating-point map, the size does not fit or the window is unknown.

    Example:
        >>> frequency_pool2d(torch.ones(1, 3, 7, 9), (4, 9)).shape
        torch.Size([1, 3, 4, 9])
    """
    if window not in _WINDOWS:
        raise InputError(f"window={window!r} is unknown: choose one of {', '.join(_WINDOWS)}.")
    return _pool(x, output_size, "centered", window)


def frequency_lowpass2d(x: Tensor, stride: int | tuple[int, int], *, window: Window = "asap") -> Tensor:
    """Remove the frequencies that a following layer with ``stride`` would alias, and keep the resolution.

    ``frequency_lowpass2d(x, 2)[..., ::2, ::2]`` equals ``frequency_pool2d`` to half the size on even maps. Ours: the
    published layers always pool; this form lets a pretrained strided convolution keep its weights' meaning.

    Args:
        x: maps of shape (..., H, W) in a floating dtype.
        stride: the stride to prepare for, one value or (height, width); an axis with stride 1 is untouched.
        window: as in ``frequency_pool2d``.

    Returns:
        Maps of the same shape and dtype.

    Raises:
        InputError: if ``x`` is no floating-point map, a stride is below 1 or the window is unknown.
    """
    if window not in _WINDOWS:
        raise InputError(f"window={window!r} is unknown: choose one of {', '.join(_WINDOWS)}.")
    return _lowpass(x, stride, "lowpass", window)


def blur_pool2d(x: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """Downsample maps after a binomial blur: the plain baseline of the frequency pools.

    The blur has 2 s - 1 taps for a reduction by s (1-2-1 for 2) and replicates the edges. Samples lie at n N / M;
    between pixels they are interpolated linearly. Our plain form of the blur of Zhang, "Making Convolutional Networks
    Shift-Invariant Again" (ICML 2019), which takes any output size.

    Args:
        x: maps of shape (..., H, W) in a floating dtype.
        output_size: M for both axes, or (M_H, M_W), at most the input size. An axis that keeps its size is untouched.

    Returns:
        Maps of shape (..., M_H, M_W), in the dtype of ``x``.

    Raises:
        InputError: if ``x`` is no floating-point map or the size does not fit.
    """
    return _pool(x, output_size, "blur")


def blur_lowpass2d(x: Tensor, stride: int | tuple[int, int]) -> Tensor:
    """Blur maps by the filter of ``blur_pool2d`` for ``stride`` and keep the resolution.

    Args:
        x: maps of shape (..., H, W) in a floating dtype.
        stride: the stride to prepare for, one value or (height, width).

    Returns:
        Maps of the same shape and dtype.

    Raises:
        InputError: if ``x`` is no floating-point map or a stride is below 1.
    """
    return _lowpass(x, stride, "blur_lowpass")


def released_pool2d(
    x: Tensor, *, window: Literal["asap", "rect"], padding: Padding = "none", transpose: bool = False
) -> Tensor:
    """Halve maps exactly as the released code of FLC and ASAP pooling does, its flaws included.

    The flaws: where a (padded) axis is 2 mod 4 pixels long the spectrum is shifted by one bin and the mean is lost,
    which happens at 14 x 14; the imaginary part of the result is dropped; sizes of odd axes do not follow a strided
    convolution; ``transpose`` returns maps mirrored about their diagonal.

    Args:
        x: maps of shape (..., H, W) in a floating dtype.
        window: ``"rect"`` for FLC, ``"asap"`` for ASAP.
        padding: zero padding of the released ASAP classes: ``"one"`` adds a row and a column, ``"large"`` about doubles
            the map and crops the result.
        transpose: return the transpose of the pooled maps, the default of the released ASAP class without padding.

    Returns:
        Maps of about half the size.

    Raises:
        InputError: if ``x`` is no floating-point map, or so small that the released code leaves nothing of it.

    Source: github.com/GeJulia/flc_pooling, ``flc_pooling.py`` and ``asap.py`` at 983b2b5.
    """
    height, width = _map_size(x)
    if min(height, width) < 2:
        raise InputError(f"A map of {height} x {width} pixels is too small for the released code: it would be empty.")
    shifted = [size for size in (height, width) if released_length(size, padding) % 4 == 2]
    if shifted and not torch.compiler.is_compiling():
        warnings.warn(
            f"The released pooling of an axis of {shifted[0]} pixels shifts its spectrum by one bin and loses the mean "
            'of the map. variant="centered" has no such sizes.',
            RobustWarning,
            stacklevel=2,
        )
    columns = constant_matrix(f"released_{window}_columns", (width, padding), x.dtype, x.device)
    rows = constant_matrix(f"released_{window}_rows", (height, padding), x.dtype, x.device)
    y = _multiply(x, rows, columns, columns.shape[0] // 2)
    return y.transpose(-1, -2) if transpose else y


def _pool(x: Tensor, output_size: int | tuple[int, int], kind: str, *arguments: str) -> Tensor:
    sizes = _map_size(x)
    targets = _pair(output_size, "output_size")
    if targets[0] > sizes[0] or targets[1] > sizes[1]:
        raise InputError(
            f"output_size={targets} is larger than the map of {sizes[0]} x {sizes[1]} pixels: pooling only shrinks."
        )
    rows, columns = (
        None if size == target else constant_matrix(kind, (size, target, *arguments), x.dtype, x.device)
        for size, target in zip(sizes, targets, strict=True)
    )
    return _multiply(x, rows, columns, targets[1])


def _lowpass(x: Tensor, stride: int | tuple[int, int], kind: str, *arguments: str) -> Tensor:
    sizes = _map_size(x)
    strides = _pair(stride, "stride")
    rows, columns = (
        None if step == 1 else constant_matrix(kind, (size, step, *arguments), x.dtype, x.device)
        for size, step in zip(sizes, strides, strict=True)
    )
    return _multiply(x, rows, columns, sizes[1])


def _multiply(x: Tensor, rows: Tensor | None, columns: Tensor | None, width: int) -> Tensor:
    """Apply ``columns`` along the width, read the map in between with ``width`` columns, apply ``rows`` to its rows."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return _multiply_channels_last(x, rows, columns, width)
    if columns is not None:
        x = x @ columns.T
    if rows is not None:
        x = rows @ x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1] // width, width)
    return x


def _multiply_channels_last(x: Tensor, rows: Tensor | None, columns: Tensor | None, width: int) -> Tensor:
    # channels stay innermost, so that the memory format survives without a copy
    z = x.permute(0, 2, 3, 1)
    batch, channels = z.shape[0], z.shape[3]
    if columns is not None:
        z = columns @ z
    if rows is not None:
        z = rows @ z.reshape(batch, z.shape[1] * z.shape[2] // width, width * channels)
    return z.reshape(batch, -1, width, channels).permute(0, 3, 1, 2)


def _map_size(x: Tensor) -> tuple[int, int]:
    if x.ndim < 2 or not x.is_floating_point():
        raise InputError(
            f"Pooling needs maps of shape (..., height, width) in a floating dtype, got {tuple(x.shape)} in {x.dtype}."
        )
    # a matrix belongs to one size: index() makes a compiler specialize on it
    return operator.index(x.shape[-2]), operator.index(x.shape[-1])


def _pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    pair = operator.index(first), operator.index(second)
    if min(pair) < 1:
        raise InputError(f"{name}={value} must be at least 1 along each axis.")
    return pair
