"""Copy a tar with other contents, and perhaps other names, for some members; all else stays byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from lightning_robust.errors import ShardError
from lightning_robust.shards.tar import BLOCK, Member

_CHUNK = 1 << 20
_NAME_BYTES = 100

# new name and new bytes of a member, or None to keep it
Replace = Callable[[Member], tuple[str, bytes] | None]
Write = Callable[[bytes], object]


def copy_tar(path: str, members: Iterable[Member], write: Write, replace: Replace) -> list[int]:
    """Copy a tar file.

    The header of a replaced member keeps its time, mode and owner. Extended headers that tell its name or size are made
    to tell the new ones; all other headers, folders and the blocks at the end are copied as they are.

    Args:
        path: the tar to read.
        members: of the tar, as :func:`walk_tar` yields them.
        write: takes the bytes of the copy, in order.
        replace: is asked for each member, in order. A new name differs from the old after its last dot only.

    Returns:
        Where the bytes of each replaced member begin in the copy.

    Raises:
        ShardError: a new name is too long for its header.
    """
    begins: list[int] = []
    total = 0
    with Path(path).open("rb") as file:
        position = 0
        for member in members:
            new = replace(member)
            end = member.offset + _padded(member.size)
            if new is None:
                total += _copy(file, position, end, write)
            else:
                name, data = new
                before = _read(file, position, member.offset)
                headers = _renamed(before[:-BLOCK], before[-BLOCK:], member.name, name, len(data))
                begins.append(total + len(headers))
                padding = bytes(_padded(len(data)) - len(data))
                for block in (headers, data, padding):
                    write(block)
                total += len(headers) + len(data) + len(padding)
            position = end
        _copy(file, position, None, write)
    return begins


def _renamed(before: bytes, header: bytes, old: str, name: str, size: int) -> bytes:
    """Headers of a member under its new name and size: the extended ones, and its own."""
    parts = _split(before)
    first = max((number + 1 for number, (head, _) in enumerate(parts) if head[156:157] == b"5"), default=0)
    encoded = name.encode("utf-8", "surrogateescape")
    told_elsewhere = False
    blocks: list[bytes] = []
    for number, (head, body) in enumerate(parts):
        kind = head[156:157]
        if number >= first and kind == b"L":
            told_elsewhere, body = True, encoded + b"\0"
        elif number >= first and kind == b"x":
            body, told = _pax_renamed(body, encoded, size)
            told_elsewhere |= told
        head = head if kind == b"5" else _header(head, size=len(body))
        blocks += [head, body, bytes(_padded(len(body)) - len(body))]
    if name == old:
        return b"".join([*blocks, _header(header, size=size)])
    stored = header[:_NAME_BYTES].split(b"\0")[0]
    last, new_last = (text.rpartition(".")[2].encode("utf-8", "surrogateescape") for text in (old, name))
    changed = stored.removesuffix(last) + new_last if stored.endswith(last) else stored
    if len(changed) > _NAME_BYTES and not told_elsewhere:
        raise ShardError(
            f"The member {old!r} cannot be renamed to {name!r}: a tar header has {_NAME_BYTES} bytes for a name. Keep "
            "the format (--encode same)."
        )
    return b"".join([*blocks, _header(header, size=size, name=changed[:_NAME_BYTES])])


def _split(blocks: bytes) -> list[tuple[bytes, bytes]]:
    """Headers with what they hold."""
    parts, position = [], 0
    while position < len(blocks):
        head = blocks[position : position + BLOCK]
        position += BLOCK
        size = 0 if head[156:157] == b"5" else int(head[124:136].split(b"\0")[0].strip() or b"0", 8)
        parts.append((head, blocks[position : position + size]))
        position += _padded(size)
    return parts


def _pax_renamed(records: bytes, name: bytes, size: int) -> tuple[bytes, bool]:
    """The records with another name and size where they tell them, and whether they tell the name."""
    renamed, told = b"", False
    while records:
        length = int(records.partition(b" ")[0])
        key, _, value = records[len(str(length)) + 1 : length - 1].partition(b"=")
        if key == b"path":
            value, told = name, True
        elif key == b"size":
            value = str(size).encode()
        rest = b" " + key + b"=" + value + b"\n"
        total = len(rest) + len(str(len(rest)))
        total += len(str(total)) - len(str(len(rest)))
        renamed += str(total).encode() + rest
        records = records[length:]
    return renamed, told


def _header(header: bytes, *, size: int, name: bytes | None = None) -> bytes:
    changed = bytearray(header)
    if name is not None:
        changed[:_NAME_BYTES] = name.ljust(_NAME_BYTES, b"\0")
    changed[124:136] = b"%011o\0" % size
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _copy(file: BinaryIO, start: int, end: int | None, write: Write) -> int:
    file.seek(start)
    position = start
    while chunk := file.read(_CHUNK if end is None else min(_CHUNK, end - position)):
        write(chunk)
        position += len(chunk)
    return position - start


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
