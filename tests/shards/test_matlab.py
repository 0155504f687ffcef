"""The reader of MATLAB 5 files against scipy's writer and reader."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.io import loadmat, savemat

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.matlab import read_matlab

LIMIT = 1 << 20
NUMBERS = [np.dtype(kind) for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(
    array=arrays.arrays(st.sampled_from(NUMBERS), arrays.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=4)),
    compressed=st.booleans(),
)
def test_arrays_are_those_that_scipy_reads(array, compressed, tmp_path):
    path = tmp_path / "a.mat"
    savemat(
        path,
        {"other": np.eye(3), "text": "abc", "x": array, "cells": np.array(["a", 1], object)},
        do_compression=compressed,
    )
    read = read_matlab(path, ["x"], max_bytes=LIMIT)
    assert list(read) == ["x"]
    expected = loadmat(path)["x"]
    assert read["x"].dtype == expected.dtype == array.dtype
    np.testing.assert_array_equal(read["x"], expected)


def test_names_that_are_not_there_are_left_out(tmp_path):
    savemat(tmp_path / "a.mat", {"x": np.eye(2)})
    assert list(read_matlab(tmp_path / "a.mat", ["x", "y"], max_bytes=LIMIT)) == ["x"]
    assert read_matlab(tmp_path / "a.mat", [], max_bytes=LIMIT) == {}


def test_big_endian(tmp_path):
    """Written by hand, for scipy writes the order of the machine."""
    parts = [(6, struct.pack(">II", 11, 0)), (5, struct.pack(">ii", 2, 1)), (1, b"x"), (4, struct.pack(">HH", 258, 3))]
    content = b"".join(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in parts)
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + struct.pack(">II", 14, len(content)) + content)
    assert loadmat(path)["x"].tolist() == [[258], [3]]
    assert read_matlab(path, ["x"], max_bytes=LIMIT)["x"].tolist() == [[258], [3]]


@pytest.mark.parametrize("value", [np.array([[1j]]), np.array(["a", 1], object), "text", {"field": 1}])
def test_what_is_no_array_of_real_numbers_is_refused_by_name_only(value, tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"x": value, "y": np.eye(2)})
    assert read_matlab(path, ["y"], max_bytes=LIMIT)["y"].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(InputError, match="x is not an array of real numbers"):
        read_matlab(path, ["x"], max_bytes=LIMIT)


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"x": np.zeros((1 << 12, 1 << 12), np.uint8)}, do_compression=True)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(InputError, match=r"claims 16777216 bytes, expected 16777216, and at most 1048576"):
        read_matlab(path, ["x"], max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no MATLAB 5 header"),
        (b"<html>" * 100, "no MATLAB 5 header"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384), r"version is 0x0200, expected 0x0100 \(7\.3"),
        (bytes(124) + b"\x00\x01IM" + b"\x0e\x00\x00\x00\xff\xff\x00\x00", "claims 65535 bytes, of which 0 are there"),
    ],
)
def test_files_that_are_none(content, said, tmp_path):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(InputError, match=f"cannot be read as a MATLAB 5 file.*{said}"):
        read_matlab(tmp_path / "a.mat", ["x"], max_bytes=LIMIT)
    with pytest.raises(InputError, match="cannot be read as a MATLAB 5 file"):
        read_matlab(tmp_path / "none.mat", ["x"], max_bytes=LIMIT)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compressed"])
def good(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    savemat(path, {"x": array}, do_compression=request.param)
    return path, path.read_bytes(), array


def test_a_file_that_was_cut_is_refused(good):
    path, whole, array = good
    np.testing.assert_array_equal(read_matlab(path, ["x"], max_bytes=LIMIT)["x"], array)
    for length in range(129, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot be read as a MATLAB 5 file"):
            read_matlab(path, ["x"], max_bytes=LIMIT)
    path.write_bytes(whole)


@QUICK
@given(places=st.lists(st.tuples(st.integers(124, 260), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_never_does_worse_than_an_error(good, places):
    path, whole, _ = good
    damaged = bytearray(whole)
    for place, value in places:
        damaged[place] = value
    path.write_bytes(damaged)
    try:
        read = read_matlab(path, ["x"], max_bytes=LIMIT)
    except InputError:
        return
    finally:
        path.write_bytes(whole)
    assert all(array.nbytes <= LIMIT for array in read.values())


def test_the_checksum_of_compressed_values_is_compared(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"x": np.arange(60)}, do_compression=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="incorrect data check"):
        read_matlab(path, ["x"], max_bytes=LIMIT)
    path.write_bytes(whole[:132] + struct.pack("<I", len(whole) - 136 - 4) + whole[136:-4])
    with pytest.raises(InputError, match="a compressed element is cut"):
        read_matlab(path, ["x"], max_bytes=LIMIT)
