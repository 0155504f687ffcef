"""Filter banks of PyWavelets, and their constant matrices kept per type and device."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_robust.errors import InputError

# Outputs per band that one row of a block matrix holds: more waste products on zeros, fewer copy more overlap.
BLOCK = 16

_HAAR = 0.5 * np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=np.float64)
# ITU-R BT.601 as scikit-image has it, for [0, 1] images; the offsets 16, 128, 128 cancel in all that is done here
_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class FilterBank:
    """The four filters of a wavelet, all of one even length, as PyWavelets orders them; plain fields, for compilers."""

    name: str
    length: int
    is_haar: bool
    dec_lo: tuple[float, ...]
    dec_hi: tuple[float, ...]
    rec_lo: tuple[float, ...]
    rec_hi: tuple[float, ...]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def filter_bank(wavelet: str) -> FilterBank:
    """Return the filters of a discrete wavelet that PyWavelets knows by this name.

    Raises:
        InputError: if it knows none.
    """
    return _cached_bank(wavelet)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def constant_matrix(kind: str, wavelet: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a cached constant matrix, in eager code and in compiled graphs.

    Args:
        kind: ``"haar"``, ``"ycbcr"``, ``"rgb"``, or the block matrices ``"analysis"`` and ``"synthesis"`` of a wavelet.
        wavelet: its name; read by the block matrices only.
        dtype: of the result.
        device: of the result.
    """
    return _cached_matrix(kind, wavelet, dtype, device)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices in full precision, also where the user lets float32 products round their factors.

    With ``torch.set_float32_matmul_precision("medium")`` a product of float32 images may keep 8 bits, less than the
    noise that a denoiser removes.
    """
    if left.dtype == torch.float32 and left.device.type in ("cpu", "cuda") and not _products_keep_float32():
        return (left.double() @ right.double()).float()
    return left @ right


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _products_keep_float32() -> bool:
    return torch.get_float32_matmul_precision() == "highest"


def analysis_matrix(bank: FilterBank) -> NDArray[np.float64]:
    """Return the (2 BLOCK + length - 2, 2 BLOCK) matrix from a stretch of a signal to its low, then high band."""
    matrix = np.zeros((2 * BLOCK + bank.length - 2, 2, BLOCK))
    for k in range(BLOCK):
        for band, taps in enumerate((bank.dec_lo, bank.dec_hi)):
            matrix[2 * k : 2 * k + bank.length, band, k] = taps[::-1]
    return matrix.reshape(len(matrix), 2 * BLOCK)


def synthesis_matrix(bank: FilterBank) -> NDArray[np.float64]:
    """Return the (2 (BLOCK + length/2 - 1), 2 BLOCK) matrix from a stretch of both bands to 2 BLOCK samples."""
    reach = BLOCK + bank.length // 2 - 1
    matrix = np.zeros((2, reach, 2 * BLOCK))
    for band, taps in enumerate((bank.rec_lo, bank.rec_hi)):
        for k in range(reach):
            for u in range(2 * BLOCK):
                tap = u + bank.length - 2 - 2 * k
                if 0 <= tap < bank.length:
                    matrix[band, k, u] = taps[tap]
    return matrix.reshape(2 * reach, 2 * BLOCK)


# Behind the boundaries above no compiler traces the caches.
@lru_cache(maxsize=256)
def _cached_bank(wavelet: str) -> FilterBank:
    import pywt

    if not isinstance(wavelet, str) or wavelet.lower() not in pywt.wavelist(kind="discrete"):
        families = ", ".join(pywt.families())
        raise InputError(
            f"wavelet={wavelet!r} is no discrete wavelet of PyWavelets: give a name of pywt.wavelist(kind='discrete'), "
            f"for example 'db1', 'sym4' or 'bior2.2' (families: {families})."
        )
    filters = pywt.Wavelet(wavelet)
    taps = (filters.dec_lo, filters.dec_hi, filters.rec_lo, filters.rec_hi)
    low, high, composing_low, composing_high = (tuple(float(tap) for tap in one) for one in taps)
    name = wavelet.lower()
    return FilterBank(name, len(low), name in ("haar", "db1"), low, high, composing_low, composing_high)


@lru_cache(maxsize=512)
def _cached_matrix(kind: str, wavelet: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    matrix = _build(kind, wavelet)
    # A new thread has none of the caller's modes. Built under inference mode, a functional transform or an export
    # trace, the cached tensor would break every later call outside of it.
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(_to_tensor, matrix, dtype, device).result()


def _build(kind: str, wavelet: str) -> NDArray[np.float64]:
    if kind == "haar":
        return _HAAR
    if kind == "ycbcr":
        return _YCBCR
    if kind == "rgb":
        return np.asarray(np.linalg.inv(_YCBCR), dtype=np.float64)
    return analysis_matrix(_cached_bank(wavelet)) if kind == "analysis" else synthesis_matrix(_cached_bank(wavelet))


def _to_tensor(matrix: NDArray[np.float64], dtype: torch.dtype, device: torch.device) -> Tensor:
    # the dtype first: not every accelerator holds float64
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype).to(device)
