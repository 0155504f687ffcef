"""A strict walk over the headers of an uncompressed tar file.

Python's ``tarfile`` takes a bad header for the end of the archive, so a shard that is cut or damaged reads as a shorter
shard without a word; it also costs more than ten times as much per member. Here everything that is not a sound archive
raises.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lightning_robust.errors import ShardError

BLOCK = 512
MAX_MEMBER_BYTES = 64 << 20
_MAX_EXTENSION_BYTES = 1 << 20
_CHUNK = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REGULAR = b"0\x007"
_DIRECTORY = b"5"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


class Member(NamedTuple):
    """A regular file in a tar: its name, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


def walk_tar(path: str, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> Iterator[Member]:
    """Yield the regular members of a tar file and check every header on the way.

    Args:
        path: an uncompressed tar file (ustar, GNU or pax).
        max_member_bytes: larger members are refused.

    Raises:
        ShardError: the file is missing, empty, compressed, not a tar, cut or damaged anywhere in its structure, goes on
            after its end, or holds a link, a device, a name that leads out of the archive, or a member above the limit.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise ShardError(f"Shard {path!r} is missing. Check the path, or fetch the shard again.") from None
    except OSError as error:
        raise ShardError(f"Shard {path!r} cannot be opened: {error.strerror}.") from error
    try:
        total = os.fstat(descriptor).st_size
        yield from _walk(lambda start, count: os.pread(descriptor, count, start), path, total, max_member_bytes)
    except IsADirectoryError:
        raise ShardError(f"Shard {path!r} is a folder, not a tar file.") from None
    finally:
        os.close(descriptor)


def stream_tar(file: BinaryIO, name: str, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the regular members of a tar that can only be read forwards, with the same checks.

    Args:
        file: the tar; a short read means its end.
        name: of the shard, for messages.
        max_member_bytes: larger members are refused.

    Raises:
        ShardError: as :func:`walk_tar`.
    """
    read = _Forward(file)
    for member in _walk(read, name, math.inf, max_member_bytes):
        data = read(member.offset, member.size)
        if len(data) < member.size:
            raise ShardError(
                f"Shard {name!r} ends after {member.offset + len(data)} bytes, inside the member {member.name!r}: it "
                "was cut. Fetch or pack it again."
            )
        yield member.name, data


def member_before(path: str, offset: int) -> str | None:
    """Return the member name in the header that ends at ``offset``, or None if there is none to read."""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, offset - BLOCK))
            return _name(file.read(BLOCK)) or None
    except (OSError, ValueError):
        return None


class _Forward:
    """Reads at positions that never go back, except to what was read last."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start, self._last = 0, b""

    def __call__(self, start: int, count: int) -> bytes:
        """Read ``count`` bytes from ``start`` on; fewer at the end of the file."""
        kept = self._last[start - self._start :]
        gap = start - self._start - len(self._last)
        while gap > 0 and (skipped := self._file.read(min(gap, _CHUNK))):
            gap -= len(skipped)
        self._start, self._last = start, kept + self._file.read(max(0, count - len(kept)))
        return self._last[:count]


# bytes at a position; fewer than asked for at the end of the file
_Read = Callable[[int, int], bytes]


def _walk(read: _Read, path: str, total: float, limit: int) -> Iterator[Member]:
    _check_start(read(0, BLOCK), path)
    position, members, override = 0, 0, {}
    while True:
        header = read(position, BLOCK)
        where = f"Shard {path!r}, byte {position}, after {members} members"
        if len(header) < BLOCK:
            raise ShardError(
                f"{where}: the file ends after {position + len(header)} bytes without the end-of-archive blocks that "
                "close a tar. It was cut, or its writer was killed; fetch or pack it again."
            )
        if not any(header):
            _check_end(read, position, where)
            return
        if not _checksum_holds(header):
            raise ShardError(f"{where}: found damaged bytes where a member header was expected. Fetch the shard again.")
        size = _number(header[124:136], where)
        kind = header[156:157]
        position += BLOCK
        if kind in b"Lxg":
            extension = _extension(read(position, min(size, _MAX_EXTENSION_BYTES)), size, kind, where)
            position += _padded(size)
            override.update(extension)
            continue
        name = override.pop("path", None) or _name(header)
        size = int(override.pop("size", size))
        where = f"{where}: member {name!r}"
        if kind in _REGULAR:
            _check_member(name, size, position, total, limit, where)
            members += 1
            yield Member(name, position, size)
            position += _padded(size)
        elif kind != _DIRECTORY:
            raise ShardError(
                f"{where} is {_KINDS.get(kind, f'of type {kind!r}')}; a shard may hold regular files only."
            )


def _check_start(start: bytes, path: str) -> None:
    if not start:
        raise ShardError(f"Shard {path!r} is empty (0 bytes). Fetch or pack it again.")
    for magic, method in _COMPRESSED.items():
        if start.startswith(magic):
            raise ShardError(
                f"Shard {path!r} is compressed ({method}). Shards are read at random places and images are compressed "
                "already: store the plain tar."
            )
    if len(start) < BLOCK or (any(start) and not _checksum_holds(start)):
        raise ShardError(f"Shard {path!r} is not a tar file (it begins with {start[:16]!r}).")


def _check_end(read: _Read, position: int, where: str) -> None:
    if len(read(position, 2 * BLOCK)) < 2 * BLOCK:
        raise ShardError(f"{where}: the file was cut inside its end-of-archive blocks. Fetch or pack it again.")
    while chunk := read(position, _CHUNK):
        if any(chunk):
            raise ShardError(
                f"{where}: the archive ends here, but the file goes on with more data "
                "(two tars in one file?). Pack the samples again."
            )
        position += len(chunk)


def _check_member(name: str, size: int, position: int, total: float, limit: int, where: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise ShardError(f"{where} has a name that leads out of the archive. Do not use this shard.")
    if size > limit:
        raise ShardError(f"{where} claims {size} bytes; the limit is {limit}.")
    if position + size > total:
        raise ShardError(
            f"{where} should end at byte {position + size}, but the file ends after {total}: it was cut. "
            "Fetch or pack it again."
        )


def _checksum_holds(header: bytes) -> bool:
    field = header[148:156].split(b"\0")[0].strip()
    if not field.isdigit():
        return False
    try:
        return sum(header) - sum(header[148:156]) + 8 * 32 == int(field, 8)
    except ValueError:
        return False


def _number(field: bytes, where: str) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise ShardError(f"{where}: the header's size field {field!r} is not a number.") from None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0")[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _extension(data: bytes, size: int, kind: bytes, where: str) -> dict[str, str]:
    """Read a GNU long name or a pax record set that speaks of the next member."""
    if len(data) < size:
        raise ShardError(
            f"{where}: an extended header of {size} bytes does not fit (the file holds {len(data)}; at most "
            f"{_MAX_EXTENSION_BYTES} are read)."
        )
    if kind == b"L":
        return {"path": data.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    records = {}
    while data:
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
            raise ShardError(f"{where}: found a damaged pax header. Fetch the shard again.")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    if kind == b"g" or any(key.startswith("GNU.sparse") for key in records):
        if {"path", "size"} & records.keys() or kind != b"g":
            raise ShardError(f"{where}: found a sparse file or a global name; a shard may hold plain files only.")
        return {}
    if not records.get("size", "0").isdigit():
        raise ShardError(f"{where}: the pax size {records['size']!r} is not a number.")
    return {key: records[key] for key in ("path", "size") if key in records}


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
