"""Decode what stands beside an image: masks of class numbers, JSON, and class numbers."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import ShardError
from lightning_robust.shards.decode import MAX_PIXELS, decode_image

Mask = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MAX_JSON_BYTES = 1 << 22
MAX_JSON_DEPTH = 32
MAX_CLASS_BYTES = 32
MAX_CLASS_DIGITS = 18

_SHOWN = 40
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _PALETTE = 0, 3
_COLORS = {2: "RGB color", 4: "gray with alpha", 6: "RGB color with alpha"}


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    color: int
    compression: int
    filtering: int
    interlacing: int


def decode_mask(data: bytes, *, where: str = "", max_pixels: int = MAX_PIXELS, remedy: str = "Pack it again.") -> Mask:
    """Decode a PNG of one channel to the numbers that it stores; of a palette PNG, to the numbers of its colors.

    Args:
        data: the PNG: gray of 1 to 16 bits, or with a palette.
        where: names the mask in an error.
        max_pixels: a mask whose header claims more is refused before decoding.
        remedy: what an error says to do about a damaged one.

    Returns:
        uint8, or uint16 for 16 bits; shape (H, W).

    Raises:
        ShardError: the bytes are no such PNG, are damaged or cut, or the mask is too large.
    """
    import cv2

    named = where or "A mask"
    try:
        header, pixels = _read_png(data)
    except ValueError as error:
        raise ShardError(f"{named} ({len(data)} bytes) cannot be decoded: {error}. {remedy}") from None
    if header.color not in (_GRAY, _PALETTE):
        found = _COLORS.get(header.color, f"PNG color type {header.color}")
        raise ShardError(f"{named} is {found}; expected one channel, or a palette, whose numbers are the classes.")
    if header.height * header.width > max_pixels:
        raise ShardError(f"{named} claims {header.width} x {header.height} pixels; the limit is {max_pixels}.")
    try:
        mask: Mask | None = cv2.imdecode(np.frombuffer(_as_gray(header, pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ShardError(f"{named} ({len(data)} bytes) cannot be decoded: {error.err}. {remedy}") from None
    if mask is None or mask.shape != (header.height, header.width):
        raise ShardError(f"{named} ({len(data)} bytes) cannot be decoded: it is damaged. {remedy}")
    # decoders stretch gray of fewer than 8 bits to the whole range
    return mask if header.depth >= 8 else mask // (255 // ((1 << header.depth) - 1))


def parse_json(data: bytes, *, where: str = "", remedy: str = "Pack it again.") -> Any:
    """Parse a JSON document.

    Args:
        data: the document, of at most :data:`MAX_JSON_BYTES`.
        where: names the document in an error.
        remedy: what an error says to do about a damaged one.

    Raises:
        ShardError: the bytes are no JSON (NaN, infinities and numbers that no float holds are none either), are too
            many, nest deeper than :data:`MAX_JSON_DEPTH`, or give an object one name twice.
    """
    named = where or "A JSON document"
    if len(data) > MAX_JSON_BYTES:
        raise ShardError(f"{named} has {len(data)} bytes; the limit is {MAX_JSON_BYTES}.")
    too_deep = f"{named} is nested more than {MAX_JSON_DEPTH} levels deep."
    try:
        value = json.loads(
            data, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object_of_unlike_names
        )
    except RecursionError:
        raise ShardError(too_deep) from None
    except ValueError as error:
        raise ShardError(f"{named} is not JSON: {error}. {remedy}") from None
    if not _is_shallow(value):
        raise ShardError(too_deep)
    return value


def parse_class(data: bytes, *, where: str = "") -> int:
    """Read a class number, written in decimal digits.

    Args:
        data: the digits, with space around them or without.
        where: names the member in an error.

    Raises:
        ShardError: the bytes are no such number, or are too many.
    """
    text = data.strip()
    if len(data) > MAX_CLASS_BYTES or not text.isdigit() or len(text) > MAX_CLASS_DIGITS:
        found = repr(data[:MAX_CLASS_BYTES]) + ("..." if len(data) > MAX_CLASS_BYTES else "")
        raise ShardError(f"{where or 'A member'} holds {found}, not a class number (decimal digits).")
    return int(text)


def check_annotation(data: bytes, extension: str) -> None:
    """Check that a member that stands beside an image is what its extension says, if that is PNG or JSON.

    Raises:
        ShardError: it does not decode. JSON of more bytes than are read as a target is left unread.
    """
    ending = extension.rpartition(".")[2]
    if ending == "json" and len(data) <= MAX_JSON_BYTES:
        parse_json(data)
    elif ending == "png":
        # the kind of color stands in the header; what is damaged there is so for both
        (decode_image if data[25:26] and data[25] in _COLORS else decode_mask)(data)


def _read_png(data: bytes) -> tuple[_Header, list[bytes]]:
    """Header and compressed pixels of a PNG whose chunks are whole."""
    if not data.startswith(_SIGNATURE):
        raise ValueError(f"no PNG begins with {data[:12]!r}")
    chunks = _chunks(data)
    kind, content = next(chunks)
    if kind != b"IHDR" or len(content) != 13:
        raise ValueError("a PNG begins with an IHDR chunk of 13 bytes")
    return _Header(*struct.unpack(">IIBBBBB", content)), [part for kind, part in chunks if kind == b"IDAT"]


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data):
            raise ValueError("it is cut")
        content = data[position + 8 : end]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            if zlib.crc32(kind + content) != int.from_bytes(data[end : end + 4], "big"):
                raise ValueError(f"its {kind.decode()} chunk is damaged")
            yield kind, content
        position = end + 4


def _as_gray(header: _Header, pixels: list[bytes]) -> bytes:
    """The same numbers as a gray PNG without palette, gamma or transparency: decoders look those up in the palette."""
    gray = struct.pack(">IIBBBBB", *header._replace(color=_GRAY))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in [(b"IHDR", gray), (b"IDAT", b"".join(pixels)), (b"IEND", b"")]
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"it holds {_shortened(text)}, which no float holds")
    return number


def _object_of_unlike_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object holds the name {_shortened(twice)!r} twice")
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return not any(isinstance(item, dict | list) for item in level)
