from __future__ import annotations

import math
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import RemoteOptions, Sample, open_index, pack
from lightning_robust.shards.contact_sheet import CAPTION, GAP, class_name, contact_sheet, sample_key, sheet_size

CLASSES = ["plain", "名前 été \x1b"]
COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 40), (40, 220, 220), (120, 60, 180), (250, 250, 250)]
# height, width: larger and smaller than a cell, wide, tall, and a line
SIZES = [(8, 8), (100, 100), (10, 40), (40, 10), (32, 32), (1, 90), (33, 31)]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    samples = [
        Sample(f"deep/{number:02d}", np.full((*size, 3), color, np.uint8), number % 2)
        for number, (size, color) in enumerate(zip(SIZES, COLORS, strict=True))
    ]
    return pack(samples, tmp_path_factory.mktemp("sheet") / "set", samples_per_shard=3, classes=CLASSES)


def _cells(sheet, count, cell, columns):
    for number in range(count):
        top = GAP + (number // columns) * (cell + CAPTION + GAP)
        left = GAP + (number % columns) * (cell + GAP)
        yield sheet[top : top + cell, left : left + cell], sheet[top + cell : top + cell + CAPTION, left : left + cell]


@pytest.mark.parametrize(("cell", "columns"), [(32, None), (24, 2), (48, 7)])
def test_cells_hold_the_right_pictures_in_their_proportions(index, cell, columns):
    order = [6, 0, 3, 2, 5, 1, 4]
    sheet = contact_sheet(index, order, cell=cell, columns=columns)
    assert sheet.dtype == np.uint8
    assert sheet.shape[:2] == sheet_size(7, cell=cell, columns=columns)
    for sample, (square, _) in zip(order, _cells(sheet, 7, cell, columns or 3), strict=True):
        pictured = (square == COLORS[sample]).all(axis=2)
        height, width = SIZES[sample]
        rows, lines = np.flatnonzero(pictured.any(axis=1)), np.flatnonzero(pictured.any(axis=0))
        assert pictured[rows[0] : rows[-1] + 1, lines[0] : lines[-1] + 1].all()
        longest = max(height, width)
        assert len(rows) == max(1, round(cell * height / longest))
        assert len(lines) == max(1, round(cell * width / longest))
        for found in (rows, lines):  # in the middle
            assert abs(found[0] - (cell - 1 - found[-1])) <= 1
        bars = square[~pictured]
        assert not len(bars) or np.ptp(bars) == 0


def test_small_images_are_enlarged_without_blur(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    index = pack([Sample("a", pixels, 0)], tmp_path / "set")
    sheet = contact_sheet(index, [0], cell=16)
    np.testing.assert_array_equal(sheet[GAP : GAP + 16, GAP : GAP + 16], pixels.repeat(4, axis=0).repeat(4, axis=1))


def test_captions_tell_key_and_class(index):
    sheet = contact_sheet(index, [0, 2, 1], cell=96)
    (first, second, third) = (caption.copy() for _, caption in _cells(sheet, 3, 96, 2))
    half = CAPTION // 2
    assert (first[:half] != second[:half]).any()
    np.testing.assert_array_equal(first[half:], second[half:])  # of one class
    assert (first[half:] != third[half:]).any()
    assert (first > 128).any()
    assert (third[half:] > 128).any()


def test_texts(index):
    assert [sample_key(index, sample) for sample in (0, 5)] == ["deep/00", "deep/05"]
    assert [class_name(index, sample) for sample in (0, 5)] == ["0 plain", "1 名前 été ?"]


def test_texts_that_are_long_or_strange_stay_in_their_cell(tmp_path, write_tar):
    png = bytes(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1])
    keys = ["x" * 95, "é" * 40, b"\xff\xfe\x1b".decode("utf-8", "surrogateescape"), "x" * 5000]
    members = [(f"{key}.{extension}", data) for key in keys for extension, data in (("cls", b"0"), ("png", png))]
    write_tar(tmp_path / "a.tar", members, format=tarfile.GNU_FORMAT)
    index = open_index(tmp_path / "a.tar")
    sheet = contact_sheet(index, range(4), cell=16, columns=4)
    for start in range(0, sheet.shape[1], 16 + GAP):
        assert np.ptp(sheet[:, start : start + GAP]) == 0  # nothing is drawn between the cells
    assert sample_key(index, 2) == "???"


def test_the_telling_ends_of_long_texts_are_shown(tmp_path):
    black = np.zeros((4, 4, 3), np.uint8)
    samples = [Sample("x" * 80 + tail, black, number) for number, tail in enumerate(["1", "2"])]
    index = pack(samples, tmp_path / "set", classes=["same " * 20 + "end", "same " * 20 + "other end"])
    sheet = contact_sheet(index, [0, 1], cell=64)
    first, second = (caption for _, caption in _cells(sheet, 2, 64, 2))
    half = CAPTION // 2
    assert (first[:half, :-12] == second[:half, :-12]).mean() > 0.95
    assert (first[:half, -12:] != second[:half, -12:]).any()
    assert (first[half:, :12] != second[half:, :12]).any()
    np.testing.assert_array_equal(first[half:, 20:], second[half:, 20:])


def test_a_set_without_labels(tmp_path, write_tar):
    png = bytes(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1])
    index = open_index(write_tar(tmp_path / "a.tar", [("a.png", png)]), label_key=None)
    assert class_name(index, 0) == ""
    assert contact_sheet(index, [0]).shape == (2 * GAP + 128 + CAPTION, 2 * GAP + 128, 3)


def test_shards_at_urls(index, web, tmp_path):
    url = web.add_folder(Path(index.paths[0]).parent, "a")
    far = open_index(url, remote=RemoteOptions(cache_dir=str(tmp_path), backoff=0, attempts=2, timeout=5))
    np.testing.assert_array_equal(contact_sheet(far, [4, 0], cell=32), contact_sheet(index, [4, 0], cell=32))


def test_what_cannot_be_drawn(index, tmp_path, write_tar):
    with pytest.raises(InputError, match="at least one sample"):
        contact_sheet(index, [])
    for wrong in ({"cell": 8}, {"cell": 4096}, {"columns": 0}):
        with pytest.raises(InputError, match="expected at least one sample and column, and cells of 16 to 2048"):
            contact_sheet(index, [0], **wrong)
    with pytest.raises(InputError, match="the set holds 0 to 6"):
        contact_sheet(index, [7])
    with pytest.raises(InputError, match="the limit is 67108864"):
        sheet_size(10_000, cell=128)
    damaged = open_index(write_tar(tmp_path / "a.tar", [("a.cls", b"0"), ("a.png", b"garbage")]))
    with pytest.raises(ShardError, match=r"sample 0 \('a.png'\).*cannot be decoded"):
        contact_sheet(damaged, [0])


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 400), cell=st.integers(16, 64), columns=st.none() | st.integers(1, 40))
def test_the_sheet_holds_all_cells(count, cell, columns):
    height, width = sheet_size(count, cell=cell, columns=columns)
    across = (width - GAP) / (cell + GAP)
    down = (height - GAP) / (cell + CAPTION + GAP)
    assert across == (columns or math.ceil(math.sqrt(count)))
    assert (down - 1) * across < count <= down * across
