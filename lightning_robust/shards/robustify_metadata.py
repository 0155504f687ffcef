"""EXIF, ICC profile and XMP of a JPEG, PNG or WebP, taken from one file's bytes and put into another's."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lightning_robust.errors import ShardError
from lightning_robust.shards.imagesize import image_size

Codec = Literal["jpeg", "png", "webp"]

_PNG_START = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_PNG_XMP = b"XML:com.adobe.xmp\0"
_SEGMENT = 65533
_ICC_PIECE = _SEGMENT - len(_ICC) - 2
_MOST_INFLATED = 16 << 20
_ORIENTATION = 0x0112
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Metadata:
    """What is known of an image besides its pixels; empty where there is none.

    Attributes:
        exif: a TIFF structure.
        icc: a color profile.
        xmp: an XML packet.
    """

    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""

    def only_orientation(self) -> Metadata:
        """Forget everything but which way up the picture is."""
        turned = orientation(self.exif)
        if turned == 1:
            return Metadata()
        entry = _ORIENTATION.to_bytes(2, "little") + b"\x03\0\x01\0\0\0" + turned.to_bytes(4, "little")
        return Metadata(exif=b"II*\0\x08\0\0\0\x01\0" + entry + bytes(4))

    def for_channels(self, channels: int) -> Metadata:
        """Leave out a color profile that is made for another number of channels."""
        fits = self.icc[16:20] == (b"GRAY" if channels == 1 else b"RGB ")
        return self if fits or not self.icc else Metadata(self.exif, b"", self.xmp)


def codec_of(data: bytes) -> Codec:
    """Tell the format of an image that :func:`image_size` takes."""
    return "jpeg" if data.startswith(b"\xff\xd8") else "png" if data.startswith(_PNG_START) else "webp"


def is_gray(data: bytes) -> bool:
    """Tell whether an image is stored with one channel, alpha aside."""
    codec = codec_of(data)
    if codec == "jpeg":
        return any(marker in _JPEG_FRAMES and body[5:6] == b"\x01" for marker, body in _segments(data))
    return codec == "png" and data[25] in (0, 4)


def is_lossless(data: bytes) -> bool:
    """Tell whether an image is stored without loss."""
    codec = codec_of(data)
    return codec == "png" or (codec == "webp" and any(kind == b"VP8L" for kind, _ in _riff_chunks(data)))


def orientation(exif: bytes) -> int:
    """Read the orientation from EXIF, 1 to 8; 1, which is upright, where it says nothing."""
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"
    start = int.from_bytes(exif[4:8], order)
    for number in range(int.from_bytes(exif[start : start + 2], order)):
        entry = exif[start + 2 + 12 * number : start + 14 + 12 * number]
        if len(entry) < 12:
            break
        if int.from_bytes(entry[:2], order) == _ORIENTATION:
            value = int.from_bytes(entry[8:10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def read_metadata(data: bytes) -> Metadata:
    """Take the metadata from an image; what is damaged, and so shown by no viewer, counts as absent."""
    return {"jpeg": _read_jpeg, "png": _read_png, "webp": _read_webp}[codec_of(data)](data)


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Put metadata into an encoded image that has none.

    Raises:
        ShardError: JPEG cannot hold as much.
    """
    if metadata == Metadata():
        return data
    return {"jpeg": _write_jpeg, "png": _write_png, "webp": _write_webp}[codec_of(data)](data, metadata)


def _read_jpeg(data: bytes) -> Metadata:
    exif = xmp = b""
    profile: dict[int, bytes] = {}
    for marker, body in _segments(data):
        if marker == 0xE1 and body.startswith(_EXIF):
            exif = exif or body[len(_EXIF) :]
        elif marker == 0xE1 and body.startswith(_XMP):
            xmp = xmp or body[len(_XMP) :]
        elif marker == 0xE2 and body.startswith(_ICC) and len(body) > len(_ICC) + 2:
            profile[body[len(_ICC)]] = body[len(_ICC) + 2 :]
    return Metadata(exif, b"".join(profile[number] for number in sorted(profile)), xmp)


def _write_jpeg(data: bytes, metadata: Metadata) -> bytes:
    pieces = [metadata.icc[start : start + _ICC_PIECE] for start in range(0, len(metadata.icc), _ICC_PIECE)]
    segments = [(0xE1, _EXIF + metadata.exif)] if metadata.exif else []
    segments += [(0xE1, _XMP + metadata.xmp)] if metadata.xmp else []
    segments += [
        (0xE2, _ICC + bytes([number, len(pieces)]) + piece) for number, piece in enumerate(pieces[:255], start=1)
    ]
    if len(pieces) > 255 or any(len(body) > _SEGMENT for _, body in segments):
        raise ShardError("JPEG cannot hold metadata of that size: choose another format, or strip the metadata.")
    start = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2  # behind the JFIF header
    added = b"".join(bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body for marker, body in segments)
    return data[:start] + added + data[start:]


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of the segments before the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker < 0xD9:
            position += 1 if marker == 0xFF else 2
            continue
        length = max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def _read_png(data: bytes) -> Metadata:
    exif = icc = xmp = b""
    for kind, body in _png_chunks(data):
        if kind == b"eXIf":
            exif = exif or body.removeprefix(_EXIF)
        elif kind == b"iCCP":
            icc = icc or _inflated(body.partition(b"\0")[2][1:])
        elif kind == b"iTXt" and body.startswith(_PNG_XMP):
            compressed = body[len(_PNG_XMP) : len(_PNG_XMP) + 1] == b"\x01"
            text = body[len(_PNG_XMP) + 2 :].split(b"\0", 2)[-1]
            xmp = xmp or (_inflated(text) if compressed else text)
    return Metadata(exif, icc, xmp)


def _write_png(data: bytes, metadata: Metadata) -> bytes:
    chunks = [(b"iCCP", b"icc\0\0" + zlib.compress(metadata.icc))] if metadata.icc else []
    chunks += [(b"eXIf", metadata.exif)] if metadata.exif else []
    chunks += [(b"iTXt", _PNG_XMP + bytes(4) + metadata.xmp)] if metadata.xmp else []
    added = b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    )
    header = len(_PNG_START) + 25
    return data[:header] + added + data[header:]


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(_PNG_START)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 8 : position + 8 + length]
        if len(body) < length:
            return
        yield data[position + 4 : position + 8], body
        position += length + 12


def _inflated(data: bytes) -> bytes:
    try:
        stream = zlib.decompressobj()
        inflated = stream.decompress(data, _MOST_INFLATED)
    except zlib.error:
        return b""
    return inflated if stream.eof else b""


def _read_webp(data: bytes) -> Metadata:
    chunks = dict(reversed(list(_riff_chunks(data))))
    return Metadata(chunks.get(b"EXIF", b"").removeprefix(_EXIF), chunks.get(b"ICCP", b""), chunks.get(b"XMP ", b""))


def _write_webp(data: bytes, metadata: Metadata) -> bytes:
    height, width = image_size(data)
    image = [(kind, body) for kind, body in _riff_chunks(data) if kind in (b"VP8 ", b"VP8L")]
    flags = 0x20 * bool(metadata.icc) + 0x08 * bool(metadata.exif) + 0x04 * bool(metadata.xmp)
    header = bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = [(b"VP8X", header), (b"ICCP", metadata.icc), *image, (b"EXIF", metadata.exif), (b"XMP ", metadata.xmp)]
    content = b"WEBP" + b"".join(
        kind + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2) for kind, body in chunks if body
    )
    return b"RIFF" + len(content).to_bytes(4, "little") + content


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        yield data[position : position + 4], data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
