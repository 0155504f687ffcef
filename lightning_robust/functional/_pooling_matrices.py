"""One matrix per axis for every pooling operator, built once in float64 and kept per size, dtype and device."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Window: TypeAlias = Literal["asap", "rect", "band"]
Padding: TypeAlias = Literal["none", "one", "large"]
Matrix: TypeAlias = NDArray[np.float64]


def centered_matrix(size: int, output_size: int, window: Window) -> Matrix:
    """Return the (output_size, size) matrix that keeps the band of the output and samples from pixel 0 on."""
    n, p = np.arange(output_size)[:, None], np.arange(size)[:, None]
    k, weight = _band(size, output_size / 2, window)
    # phases are reduced as integers: exact at every size
    phase_out = 2 * np.pi * ((n * k) % output_size) / output_size
    phase_in = 2 * np.pi * ((p * k) % size) / size
    return _resampling(phase_out, phase_in, weight)


def lowpass_matrix(size: int, stride: int, window: Window) -> Matrix:
    """Return the (size, size) matrix that keeps frequencies below ``size / (2 * stride)`` and all pixels."""
    p = np.arange(size)[:, None]
    k, weight = _band(size, size / (2 * stride), window)
    phase = 2 * np.pi * ((p * k) % size) / size
    return _resampling(phase, phase, weight)


def blur_matrix(size: int, output_size: int) -> Matrix:
    """Return the (output_size, size) matrix of a binomial blur sampled from pixel 0 on, edges replicated."""
    blur = blur_lowpass_matrix(size, max(round(size / output_size), 1))
    position = np.arange(output_size) * (size / output_size)
    left = np.floor(position).astype(int)
    share = (position - left)[:, None]
    right = np.minimum(left + 1, size - 1)
    matrix: Matrix = (1 - share) * blur[left] + share * blur[right]
    return matrix


def blur_lowpass_matrix(size: int, stride: int) -> Matrix:
    """Return the (size, size) matrix of a binomial blur with ``2 * stride - 1`` taps, edges replicated."""
    reach = stride - 1
    taps = [math.comb(2 * reach, j) / 4**reach for j in range(2 * reach + 1)]
    pixel = np.arange(size)
    matrix = np.zeros((size, size))
    for offset, tap in enumerate(taps, start=-reach):
        np.add.at(matrix, (pixel, np.clip(pixel + offset, 0, size - 1)), tap)
    return matrix


def released_matrix(size: int, padding: Padding, *, hamming: bool) -> NDArray[np.complex128]:
    """Return the complex (M, size) matrix of the released code: transform, shift, window, crop, shift, inverse.

    Padding selects columns and the final crop of ``padding="large"`` selects rows. Where the padded length is 2 mod 4
    the crop is off center, and the inverse transform assigns each frequency to its neighbor, as the released code does.
    """
    before, after = _released_padding(size, padding)
    length = before + size + after
    low, high = int(length / 4), int(length / 4 * 3)
    cropped = high - low
    window = np.sqrt(np.hamming(length)) if hamming and length > 1 else np.ones(length)
    index = np.arange(cropped)
    taken = low + index - length // 2
    assigned = index - cropped // 2
    rows, columns = np.arange(cropped)[:, None], np.arange(before, before + size)[:, None]
    inverse = np.exp(2j * np.pi * ((rows * assigned) % max(cropped, 1)) / max(cropped, 1))
    forward = np.exp(-2j * np.pi * ((columns * taken) % length) / length)
    matrix: NDArray[np.complex128] = (inverse * window[low:high]) @ forward.T / length
    if padding == "large":
        matrix = matrix[int(cropped / 4) : int(cropped / 4 * 3)]
    return matrix


def released_length(size: int, padding: Padding) -> int:
    """Return the length of an axis after the padding of the released code."""
    return size + sum(_released_padding(size, padding))


def released_columns(size: int, padding: Padding, *, hamming: bool) -> Matrix:
    """Return the real (2M, size) factor for the width: the real parts, then the imaginary parts."""
    matrix = released_matrix(size, padding, hamming=hamming)
    return np.concatenate([matrix.real, matrix.imag])


def released_rows(size: int, padding: Padding, *, hamming: bool) -> Matrix:
    """Return the real (M, 2 size) factor for the height: real and negated imaginary columns in turn.

    Re(A x B^T) is one real product per axis when the map in between, of shape (size, 2M), is read as (2 size, M).
    """
    matrix = released_matrix(size, padding, hamming=hamming)
    return np.stack([matrix.real, -matrix.imag], axis=-1).reshape(matrix.shape[0], 2 * size)


_BUILDERS: dict[str, Callable[..., Matrix]] = {
    "centered": centered_matrix,
    "lowpass": lowpass_matrix,
    "blur": blur_matrix,
    "blur_lowpass": blur_lowpass_matrix,
    "released_rect_columns": lambda size, padding: released_columns(size, padding, hamming=False),
    "released_rect_rows": lambda size, padding: released_rows(size, padding, hamming=False),
    "released_asap_columns": lambda size, padding: released_columns(size, padding, hamming=True),
    "released_asap_rows": lambda size, padding: released_rows(size, padding, hamming=True),
}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def constant_matrix(kind: str, arguments: tuple[int | str, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the cached matrix ``kind(*arguments)`` as a constant tensor, in eager code and in compiled graphs."""
    return _cached_matrix(kind, arguments, dtype, device)


# Behind the boundary above no compiler traces the cache.
@lru_cache(maxsize=512)
def _cached_matrix(kind: str, arguments: tuple[int | str, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    matrix = _BUILDERS[kind](*arguments)
    # A new thread has none of the caller's modes. Built under inference mode, a functional transform or an export
    # trace, the cached tensor would break every later call outside of it.
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(_to_tensor, matrix, dtype, device).result()


def _to_tensor(matrix: Matrix, dtype: torch.dtype, device: torch.device) -> Tensor:
    # the dtype first: not every accelerator holds float64
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype).to(device)


def _band(size: int, cutoff: float, window: Window) -> tuple[NDArray[np.int64], Matrix]:
    k = np.arange(math.floor(cutoff) + 1)
    weight = np.full(k.shape, 2.0)
    weight[0] = 1.0
    if k[-1] == cutoff:
        # the cut-off frequency has no partner of its own: it is shared by both signs
        weight[-1] = 1.0
    if window == "asap":
        weight *= np.sqrt(np.where(k == 0, 1.0, 0.54 + 0.46 * np.cos(2 * np.pi * k / size)))
    elif window == "band":
        weight *= np.where(k == 0, 1.0, 0.54 + 0.46 * np.cos(np.pi * k / cutoff))
    return k, weight / size


def _resampling(phase_out: Matrix, phase_in: Matrix, weight: Matrix) -> Matrix:
    even = (np.cos(phase_out) * weight) @ np.cos(phase_in).T
    odd = (np.sin(phase_out) * weight) @ np.sin(phase_in).T
    matrix: Matrix = even + odd
    return matrix


def _released_padding(size: int, padding: Padding) -> tuple[int, int]:
    if padding == "one":
        return 0, 1
    if padding == "large":
        return int(size / 2 - 1), int(size / 2)
    return 0, 0
