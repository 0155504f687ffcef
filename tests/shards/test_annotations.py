from __future__ import annotations

import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightning_robust.errors import ShardError
from lightning_robust.shards.annotations import MAX_JSON_BYTES, MAX_JSON_DEPTH, decode_mask, parse_json


def _numbers(bits, shape=(7, 13)):
    return np.random.default_rng(bits).integers(0, 1 << bits, shape)


def _saved(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def _png(width, height, pixels, *, depth=8, color=0):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_mask_is_its_color_numbers(bits):
    numbers = _numbers(bits).astype(np.uint8)
    image = Image.fromarray(numbers)
    # two colors alike: what a decoder to RGB could not tell apart
    image.putpalette([10, 20, 30] * 2 + [number % 256 for number in range(762)])
    mask = decode_mask(_saved(image, bits=bits, transparency=0))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, numbers)


def test_gray_masks_keep_their_numbers():
    eight, sixteen = _numbers(8).astype(np.uint8), _numbers(16).astype(np.uint16)
    np.testing.assert_array_equal(decode_mask(_saved(Image.fromarray(eight))), eight)
    decoded = decode_mask(bytes(cv2.imencode(".png", sixteen)[1]))
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, sixteen)
    np.testing.assert_array_equal(decode_mask(_saved(Image.fromarray(_numbers(1) == 1))), _numbers(1))


def test_every_cut_and_every_flipped_bit_is_seen():
    data = _saved(Image.fromarray(_numbers(8, (3, 4)).astype(np.uint8)))
    for end in range(len(data)):
        flipped = data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]
        for damaged in (data[:end], flipped):
            with pytest.raises(ShardError, match=r"cannot be decoded|claims"):
                decode_mask(damaged)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_saved(Image.new("RGB", (4, 3))), "RGB color; expected one channel"),
        (_saved(Image.new("LA", (4, 3))), "gray with alpha"),
        (bytes(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1]), "no PNG begins with"),
        (_png(1 << 20, 1 << 20, zlib.compress(b"")), "1048576 x 1048576 pixels; the limit is 67108864"),
        (_png(4, 4, zlib.compress(bytes(7))), "is damaged"),
        (_png(4, 4, b"no deflate"), "is damaged"),
    ],
)
def test_what_is_no_mask_is_named(data, said):
    with pytest.raises(ShardError, match=f"The mask of k .*{said}"):
        decode_mask(data, where="The mask of k")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=80))
def test_junk_behind_a_signature_is_an_error_in_words(junk):
    with pytest.raises(ShardError):
        decode_mask(b"\x89PNG\r\n\x1a\n" + junk)


def test_json_is_parsed_within_limits():
    value = {"boxes": [[0, 1.5, 2, 3]], "text": "é", "size": {"text": -1e300}}
    assert parse_json(json.dumps(value).encode()) == value
    deepest = b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH
    assert parse_json(deepest)[0][0]
    for data, said in (
        (b"[" + deepest + b"]", "nested more than 32 levels deep"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested more than 32 levels deep"),
        (b"[" * 200_000, "nested more than 32 levels deep|is not JSON"),
        (b"[1, 2", "X is not JSON"),
        (b"\xff\xfe\xfd", "X is not JSON"),
        (b"[NaN]", "X is not JSON: it holds NaN"),
        (b"[-Infinity]", "it holds -Infinity"),
        (b"[1, -1e999]", "X is not JSON: it holds -1e999, which no float holds"),
        (b"1" * 400 + b".5", "it holds 1{40}\\.\\.\\., which no float holds"),
        (b'[{"a": 1, "b": 2, "a": 1}]', "X is not JSON: an object holds the name 'a' twice"),
        (b'{"a": 1, "\\u0061": 2}', "the name 'a' twice"),
        (b"9" * 5000, "X is not JSON"),
        (b" " * (MAX_JSON_BYTES + 1), f"has {MAX_JSON_BYTES + 1} bytes; the limit is {MAX_JSON_BYTES}"),
    ):
        with pytest.raises(ShardError, match=said):
            parse_json(data, where="X")
