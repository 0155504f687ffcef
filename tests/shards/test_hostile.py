"""Shards and indexes made by someone who means harm: nothing in them runs, and damage is a sentence."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.errors import RobustError
from lightning_robust.shards import Sample, SampleReader, merge_shards, open_index, pack, split_shards, verify_shards
from lightning_robust.shards.contact_sheet import contact_sheet


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _payloads(target: Path) -> dict[str, bytes]:
    """Members that run code in a reader which decodes by extension, as webdataset's can."""
    array, checkpoint = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([_Touch(target)], dtype=object), allow_pickle=True)
    torch.save(_Touch(target), checkpoint)
    pickled = pickle.dumps(_Touch(target))
    script = f"import pathlib; pathlib.Path({str(target)!r}).touch()".encode()
    return {"npy": array.getvalue(), "pth": checkpoint.getvalue(), "pkl": pickled, "pyd": pickled, "py": script}


def test_no_member_of_a_shard_is_run(tmp_path, write_tar, make_png):
    executed = tmp_path / "executed"
    members = [("a.png", make_png(1)), ("a.cls", b"0")]
    members += [(f"a.{extension}", data) for extension, data in _payloads(executed).items()]
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "a.tar", members)
    assert verify_shards(tmp_path / "set").ok
    index = open_index(tmp_path / "set")
    with SampleReader(index) as reader:
        reader.read([0])
    contact_sheet(index, [0])
    split_shards(tmp_path / "set", tmp_path / "parts", {"train": 1.0})
    merge_shards([tmp_path / "parts"], tmp_path / "merged")
    assert not executed.exists()


@pytest.mark.parametrize("shards", ["pipe:touch executed", "pipe:touch executed | cat", ["pipe:touch executed"]])
def test_no_name_of_a_shard_is_run(tmp_path, monkeypatch, shards):
    monkeypatch.chdir(tmp_path)
    for read in (open_index, verify_shards):
        with pytest.raises(RobustError):
            read(shards)
    assert not Path("executed").exists()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    image = np.zeros((2, 2, 3), np.uint8)
    pack([Sample(f"{i}", image, i % 2) for i in range(5)], folder, samples_per_shard=2, classes=["x", "y"])
    return folder


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_index_is_refused_or_harmless(healthy, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(healthy, folder)
    name = data.draw(st.sampled_from(["index.json", json.loads((folder / "index.json").read_text())["samples_file"]]))
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    (folder / name).write_bytes(bytes(content))
    try:
        index = open_index(folder, write=False)
        with SampleReader(index) as reader:
            found = reader.read(list(range(len(index))))
    except RobustError:
        return
    assert len(found) == len(index) == 5
