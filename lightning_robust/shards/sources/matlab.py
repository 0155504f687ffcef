"""Numeric arrays from MATLAB 5 files, as the MathWorks document "MAT-File Format" lays them out.

scipy reads them too, but not safely: its ``loadmat`` (1.17) ended the process by a segmentation fault on files with a
few damaged bytes. Here every length is checked before it is used.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError

_FILE_HEADER = 128
_ORDERS = {b"IM": "<", b"MI": ">"}
_VERSION = 0x0100
_MATRIX, _COMPRESSED, _INT8, _INT32, _UINT32 = 14, 15, 1, 5, 6
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x0800
_TAG = 8
# flags, dimensions and name of an array; its values come after them
_MOST_HEAD = 4096

# the first bytes of an array's element, at most as many as asked for
_Read = Callable[[int], memoryview]


def read_matlab(file: Path, names: Collection[str], *, max_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """Read arrays of a MATLAB 5 file by name; other variables are passed over.

    Args:
        file: not of version 4, nor of version 7.3, which is HDF5.
        names: of the arrays; those that are not there are left out.
        max_bytes: larger arrays are refused, before they are decompressed.

    Returns:
        Arrays of the types that the values are stored in, in Fortran order.

    Raises:
        InputError: the file cannot be read, is of another version, is damaged, or a named array is not one of real
            numbers or is larger than the limit.
    """
    try:
        data = memoryview(file.read_bytes())
        order = _byte_order(data)
        arrays: dict[str, npt.NDArray[Any]] = {}
        position = _FILE_HEADER
        while position < len(data):
            kind, start, size, position = _tag(data, position, order)
            if start + size > len(data):
                raise ValueError(f"an element claims {size} bytes, of which {len(data) - start} are there")
            content = data[start : start + size]
            if kind == _COMPRESSED:
                position = start + size  # these alone are not padded
                arrays |= _named_array(_inflated(content, order), names, order, max_bytes)
            elif kind == _MATRIX:
                arrays |= _named_array(_plain(content), names, order, max_bytes)
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise InputError(
            f"{str(file)!r} cannot be read as a MATLAB 5 file: {error}. It is damaged or of another kind: get it again."
        ) from error
    return arrays


def _byte_order(data: memoryview) -> str:
    order = _ORDERS.get(bytes(data[126:128]))
    if order is None:
        raise ValueError("it has no MATLAB 5 header")
    (version,) = struct.unpack_from(f"{order}H", data, 124)
    if version != _VERSION:
        raise ValueError(f"its version is {version:#06x}, expected {_VERSION:#06x} (7.3 is {0x0200:#06x})")
    return order


def _tag(data: memoryview, position: int, order: str) -> tuple[int, int, int, int]:
    """Type of an element, where its content begins, how long that is, and where the next element begins."""
    kind, size = struct.unpack_from(f"{order}II", data, position)
    start = position + _TAG
    if not kind >> 16:
        return kind, start, size, start + size + -size % _TAG
    kind, size = kind & 0xFFFF, kind >> 16  # the small form: up to four bytes in the place of the size
    if size > 4:
        raise ValueError(f"an element of the small form claims {size} bytes")
    return kind, position + 4, size, start


def _plain(content: memoryview) -> _Read:
    return lambda count: content[:count]


def _inflated(content: memoryview, order: str) -> _Read:
    """Read a compressed array no further than asked; if that is beyond its end, its checksum is compared too."""

    def read(count: int) -> memoryview:
        stream = zlib.decompressobj()
        data = memoryview(stream.decompress(content, _TAG + count))
        if len(data) < _TAG + count and not stream.eof:
            raise ValueError(f"a compressed element is cut after {len(data)} bytes")
        kind, _ = struct.unpack_from(f"{order}II", data)
        if kind != _MATRIX:
            raise ValueError(f"a compressed element holds one of type {kind}, not an array")
        return data[_TAG:]

    return read


def _named_array(read: _Read, names: Collection[str], order: str, max_bytes: int) -> dict[str, npt.NDArray[Any]]:
    head = read(_MOST_HEAD)
    flags, position = _part(head, 0, _UINT32, order)
    shape, position = _part(head, position, _INT32, order)
    letters, position = _part(head, position, _INT8, order)
    name = letters.tobytes().decode("ascii", "replace")
    if name not in names:
        return {}
    if len(flags) != 2 or flags[0] & 0xFF not in _NUMERIC_CLASSES or flags[0] & _COMPLEX:
        raise ValueError(f"{name} is not an array of real numbers")
    kind, start, size, _ = _tag(head, position, order)
    if kind not in _DTYPES or not len(shape) or shape.min() < 0:
        raise ValueError(f"the array {name} has values of type {kind} and the dimensions {shape.tolist()}")
    dtype, count = np.dtype(order + _DTYPES[kind]), math.prod(shape.tolist())
    if size != count * dtype.itemsize or size > max_bytes:
        raise ValueError(
            f"the array {name} with the dimensions {shape.tolist()} claims {size} bytes, expected "
            f"{count * dtype.itemsize}, and at most {max_bytes}"
        )
    body = read(start + size + _TAG)
    if not start + size <= len(body) < start + size + _TAG:
        raise ValueError(f"the array {name} has {len(body)} bytes, expected {start + size}")
    return {name: np.frombuffer(body, dtype, count, start).reshape(shape.tolist(), order="F")}


def _part(head: memoryview, position: int, expected: int, order: str) -> tuple[npt.NDArray[Any], int]:
    kind, start, size, following = _tag(head, position, order)
    if kind != expected or start + size > len(head):
        raise ValueError(f"found an element of type {kind} and {size} bytes where the head of an array was expected")
    dtype = np.dtype(order + _DTYPES[kind])
    return np.frombuffer(head[start : start + size], dtype), following
