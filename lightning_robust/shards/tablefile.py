"""The arrays that an index names: mapped, never unpickled, and through a link only with the bytes that are named."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import ShardError

REBUILD = "Run `lightning-robust shards index --rebuild`."
CHECKED_BYTES = 64 << 20

_ROWS_AT_ONCE = 1 << 16
_HASHED = re.compile(r"(?:index|members)-([0-9a-f]{16})\.npy")


def load_rows(path: str, rows: int, dtype: np.dtype[np.void], *, checked_bytes: int = 0) -> npt.NDArray[np.void]:
    """Map a file of the index and check that it has the expected number of rows.

    Args:
        path: the file, a regular one, or a link to one whose bytes have the hash in its name.
        rows: how many it must hold.
        dtype: of a row.
        checked_bytes: a file of at most so many is compared with the hash in its name, if that has one.

    Raises:
        ShardError: it cannot be read, or holds something else.
    """
    try:
        with os.fdopen(_opened(path), "rb") as file:
            name, is_link = Path(path).name, Path(path).is_symlink()
            if is_link or os.fstat(file.fileno()).st_size <= checked_bytes:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if (is_link or _HASHED.fullmatch(name)) and not hash_named(name, digest):
                    raise ValueError("it holds other bytes than its name says")
                file.seek(0)
            if np.lib.format.read_magic(file) == (1, 0):
                shape, _, found = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, found = np.lib.format.read_array_header_2_0(file)
            if found == dtype and shape == (rows,):
                return np.memmap(file, dtype, "r", file.tell(), (rows,)) if rows else np.empty(0, dtype)
    # numpy has Python parse the header, which raises what it likes on damaged text
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError, TokenError, RecursionError) as error:
        raise ShardError(f"The samples file {path!r} of the index cannot be read: {error}. {REBUILD}") from error
    raise ShardError(f"The samples file {path!r} holds {found} {shape}, expected {dtype} ({rows},). {REBUILD}")


def hash_named(name: str, sha256: str) -> bool:
    """Tell whether a file of the index has the name that goes with the SHA-256 of its bytes."""
    match = _HASHED.fullmatch(name)
    return match is not None and match[1] == sha256[:16]


def save_rows(folder: Path, kind: str, table: npt.NDArray[np.void]) -> str:
    """Write a table to a folder, under a name that holds the hash of the file; returns the name."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(table))
    digest = hashlib.sha256()
    aside = folder / f".{kind}.{os.getpid()}.part"
    try:
        with aside.open("wb") as file:
            for piece in itertools.chain([header.getbuffer()], pieces_of(table)):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        name = f"{kind}-{digest.hexdigest()[:16]}.npy"
        aside.replace(folder / name)
    finally:
        aside.unlink(missing_ok=True)
    return name


def slices_of(table: npt.NDArray[np.void]) -> Iterator[npt.NDArray[np.void]]:
    """A table, a few rows at a time: what is computed of a whole one would take as much memory."""
    return (table[start : start + _ROWS_AT_ONCE] for start in range(0, len(table), _ROWS_AT_ONCE))


def pieces_of(table: npt.NDArray[np.void]) -> Iterator[memoryview]:
    """The bytes of a table, a few rows at a time."""
    return (np.ascontiguousarray(rows).view(np.uint8).data for rows in slices_of(table))


def _opened(path: str) -> int:
    # a pipe in the place of the file must not be waited for
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no regular file")
    return descriptor
