"""Kind, width and height of a JPEG, PNG or WebP from its first bytes, without decoding it."""

from __future__ import annotations

_MAGIC = {"jpg": b"\xff\xd8", "png": b"\x89PNG\r\n\x1a\n"}
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}


def image_size(data: bytes) -> tuple[int, int]:
    """Read height and width in pixels from the header of an encoded image.

    Args:
        data: the bytes of a JPEG, PNG or WebP file.

    Raises:
        ValueError: the bytes are none of these, or end before the size.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_size(data)
    raise ValueError(f"no JPEG, PNG or WebP image begins with {data[:12]!r}")


def image_extension(data: bytes) -> str | None:
    """Tell the extension that fits an encoded image by its first bytes: jpg, png or webp; None for another file."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return next((name for name, magic in _MAGIC.items() if data.startswith(magic)), None)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while position + 9 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF:
            raise ValueError(f"expected a JPEG marker at byte {position}")
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _JPEG_ALONE:
            position += 2
        elif marker in _JPEG_FRAMES:
            return (
                int.from_bytes(data[position + 5 : position + 7], "big"),
                int.from_bytes(data[position + 7 : position + 9], "big"),
            )
        else:
            position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
    raise ValueError("the JPEG ends before its frame header")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
    raise ValueError(f"unknown WebP chunk {kind!r}")
