from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightning_robust.errors import ShardError
from lightning_robust.shards import decode_image
from lightning_robust.shards.imagesize import image_size


def _encoded(kind: str, size: tuple[int, int] = (19, 13), mode: str = "RGB", **options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


ENCODED = {
    "png": _encoded("PNG"),
    "png gray": _encoded("PNG", mode="L"),
    "png palette": _encoded("PNG", mode="P"),
    "jpeg": _encoded("JPEG", quality=95),
    "jpeg 4:4:4": _encoded("JPEG", quality=90, subsampling=0),
    "jpeg progressive": _encoded("JPEG", progressive=True),
    "jpeg gray": _encoded("JPEG", mode="L"),
    "jpeg with comment": _encoded("JPEG", comment=b"x" * 3000),
    "webp lossless": _encoded("WEBP", lossless=True),
    "webp lossy": _encoded("WEBP", quality=80),
    "webp extended": _encoded("WEBP", quality=80, icc_profile=b"x" * 200),
}


@pytest.mark.parametrize("name", ENCODED)
def test_equals_pillow(name):
    data = ENCODED[name]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = decode_image(data)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("name", ENCODED)
def test_size_is_read_from_the_header(name):
    assert image_size(ENCODED[name]) == (13, 19)


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), kind=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_size_for_any_shape(width, height, kind):
    assert image_size(_encoded(kind, (width, height))) == (height, width)


def test_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert decode_image(_encoded("JPEG", exif=exif)).shape == (13, 19, 3)


def test_alpha_is_dropped():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(decode_image(file.getvalue()), pixels[..., :3])


@pytest.mark.parametrize("name", ["png", "jpeg", "jpeg progressive", "webp lossy", "webp lossless"])
def test_cut_images_raise_and_are_named(name):
    data = ENCODED[name]
    for length in (0, 1, 20, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(ShardError, match=r"image of sample 7 .*cannot be decoded"):
            decode_image(data[:length], where="sample 7")


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + b"\0" * 50, b"<html>" * 9, b"\x80\x04pickle", b"\xff\xd8" + b"\0" * 40]
)
def test_other_bytes(data):
    with pytest.raises(ShardError, match="cannot be decoded"):
        decode_image(data)


def test_a_bomb_is_refused_before_decoding(monkeypatch):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000))
    monkeypatch.setattr("cv2.imdecode", None)
    with pytest.raises(ShardError, match="claims 60000 x 50000 pixels; the limit is 67108864"):
        decode_image(bomb)


def test_pixel_limit_is_inclusive():
    assert decode_image(ENCODED["png"], max_pixels=13 * 19).shape == (13, 19, 3)
    with pytest.raises(ShardError, match="19 x 13"):
        decode_image(ENCODED["png"], max_pixels=13 * 19 - 1)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(ENCODED)), position=st.integers(0, 120), value=st.integers(0, 255))
def test_damage_gives_an_image_of_the_stated_size_or_an_error(name, position, value):
    data = bytearray(ENCODED[name])
    data[position] = value
    with contextlib.suppress(ShardError):
        assert decode_image(bytes(data), max_pixels=1 << 16).shape == (*image_size(bytes(data)), 3)
