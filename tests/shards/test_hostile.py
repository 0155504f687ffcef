"""Shards and indexes made by someone who means harm: nothing in them runs, and damage is a sentence."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.errors import RobustError, ShardError
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
    samples = [
        Sample(
            f"{i}",
            np.full((2, 2, 3), 50 * i, np.uint8),
            i % 2,
            extra={"seg.png": np.full((2, 2), i, np.uint8), "boxes.json": {"number": i}},
        )
        for i in range(5)
    ]
    pack(samples, folder, samples_per_shard=2, classes=["x", "y"])
    return folder


def _read_all(folder):
    index = open_index(folder, members=["seg.png"], write=False)
    with SampleReader(index) as reader:
        masks = [reader.read_member("seg.png", sample) for sample in range(len(index))]
        return reader.read(list(range(len(index)))), masks, index.labels.tolist()


def _assert_refused_or_harmless(healthy, folder):
    report = verify_shards(folder)
    try:
        found = _read_all(folder)
    except RobustError:
        return
    assert found == _read_all(healthy)
    assert report.samples == 5


_TOKENS = st.builds(
    lambda token, times: token * times,
    st.sampled_from([b"[", b'{"a":', b"9", b"-", b'"', b"\0", b"\xff", b" "]),
    st.sampled_from([1, 30, 5_000, 200_000]),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_index_is_refused_or_harmless(healthy, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(healthy, folder)
    file = data.draw(st.sampled_from([folder / "index.json", *sorted(folder.glob("*.npy"))]), label="file")
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.just(0) | st.integers(0, len(content)))
        new = data.draw(st.binary(max_size=8) | st.binary(max_size=500) | _TOKENS)
        gone = data.draw(st.just(len(new)) | st.integers(0, 8) | st.integers(0, len(content)))
        content[place : place + gone] = new
    file.write_bytes(bytes(content))
    _assert_refused_or_harmless(healthy, folder)


class _Twice(dict):
    """Writes one of its keys twice, with two values."""

    def __init__(self, items, key, value):
        super().__init__(items)
        self.key, self.value = key, value

    def items(self):
        again = [(self.key, self.value)] if self.key in self else []
        return [*super().items(), *again]


# no number that could be right in another place
_VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        -1,
        77,
        2**63,
        10**30,
        0.5,
        float("inf"),
        "",
        "x",
        "../x.npy",
        "a\0.npy",
        [],
        {},
        [[]],
        {"a": 1},
    ]
)


def _places(value):
    """Every place in a JSON document: a list or dict, and a position or key in it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_an_index_of_other_types_is_refused_or_harmless(healthy, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("changed") / "set"
    shutil.copytree(healthy, folder)
    root = [json.loads((folder / "index.json").read_text())]
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(_places(root))
        inside, key = places[data.draw(st.integers(0, len(places) - 1))] if places else (root, None)
        change = data.draw(st.sampled_from(["replace", "delete", "repeat", "duplicate"]))
        if change == "replace" and places:
            inside[key] = copy.deepcopy(data.draw(_VALUES))
        elif change == "delete" and inside is not root:
            del inside[key]
        elif change == "repeat" and isinstance(inside, list) and inside is not root:
            inside.insert(key, inside[key])
        elif change == "duplicate" and places and isinstance(inside[key], dict) and inside[key]:
            again = data.draw(st.sampled_from(sorted(inside[key])))
            inside[key] = _Twice(inside[key], again, copy.deepcopy(data.draw(_VALUES)))
    (folder / "index.json").write_text(json.dumps(root[0], indent=1))
    _assert_refused_or_harmless(healthy, folder)


def _edited(**changes):
    return lambda document: json.dumps(document | changes).encode()


def _of_first(**changes):
    return lambda document: json.dumps(
        document | {"shardlist": [document["shardlist"][0] | changes, *document["shardlist"][1:]]}
    ).encode()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda _: b"[" * 200_000, "nested too deep"),
        (lambda _: b'{"a":' * 200_000, "nested too deep"),
        (lambda _: b'{"a": ' + b"1" * 5000 + b"}", "ValueError: Exceeds the limit"),
        (_edited(classes=5), "its classes are 5"),
        (_edited(classes={"a": 1}), "its classes are {'a': 1}"),
        (_edited(classes=[1, 2]), r"its classes are \[1, 2\]"),
        (_edited(classes=[]), "the set names 0 classes"),
        (_edited(members={"seg.png": "a\0.npy"}), "must be a .npy file beside it"),
        (_edited(samples_file=None), "must be a .npy file beside it"),
        (_of_first(nsamples=10**30), "of the shard 'shard-000000.tar' it says {'nsamples': 1000"),
        (_of_first(nsamples=True), "it says {'nsamples': True"),
        (_of_first(row=0.0), "'row': 0.0"),
        (_of_first(filesize=None), "'filesize': None"),
        (_of_first(url=None), "the url of a shard is None"),
        (_of_first(url="shard-000001.tar"), "lists the shard 'shard-000001.tar' twice"),
    ],
)
def test_a_hostile_index_is_a_sentence(healthy, tmp_path, edit, said):
    folder = shutil.copytree(healthy, tmp_path / "set")
    document = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_bytes(edit(document))
    with pytest.raises(ShardError, match=said):
        open_index(folder)
    assert not verify_shards(folder).ok


def test_a_table_whose_bytes_changed_is_refused_and_made_anew_when_asked(healthy, tmp_path):
    folder = shutil.copytree(healthy, tmp_path / "set")
    file = folder / json.loads((folder / "index.json").read_text())["samples_file"]
    table = np.load(file)
    table["label"][3] = 0  # a label like any other
    np.save(file, table)
    with pytest.raises(ShardError, match=r"holds other bytes than its name says.*--rebuild"):
        open_index(folder)
    assert open_index(folder, rebuild=True).labels.tolist() == [0, 1, 0, 1, 0]
    assert _read_all(folder) == _read_all(healthy)


def test_rebuilding_some_shards_replaces_a_damaged_table_of_all(healthy, tmp_path):
    folder = shutil.copytree(healthy, tmp_path / "set")
    table = next(folder.glob("members-*.npy"))
    table.write_bytes(b"x" * 20 + table.read_bytes()[20:])
    first = min(folder.glob("*.tar"))
    open_index(str(first), members=["seg.png"], rebuild=True)
    assert open_index(folder, members=["seg.png"]).labels.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("kind", ["index", "members"])
@pytest.mark.parametrize("link", [True, False])
def test_files_that_an_index_names_must_be_files_of_its_bytes(healthy, tmp_path, kind, link):
    folder = shutil.copytree(healthy, tmp_path / "set")
    document = json.loads((folder / "index.json").read_text())
    file = folder / (document["samples_file"] if kind == "index" else document["members"]["seg.png"])
    elsewhere = file.rename(tmp_path / file.name)
    elsewhere.write_bytes(elsewhere.read_bytes()[:-1] + b"\1")
    file.symlink_to(elsewhere) if link else os.mkfifo(file)
    with pytest.raises(ShardError, match="holds other bytes than its name says" if link else "it is no regular file"):
        open_index(folder, members=["seg.png"])
    assert open_index(folder, members=["seg.png"], rebuild=True).labels.tolist() == [0, 1, 0, 1, 0]
    assert all(path.is_file() and not path.is_symlink() for path in folder.glob("*.npy"))


def test_a_folder_of_links_opens(healthy, tmp_path):
    farm = tmp_path / "farm"
    farm.mkdir()
    for file in healthy.iterdir():
        (farm / file.name).symlink_to(file)
    assert _read_all(farm) == _read_all(healthy)
    assert open_index(farm, members=["seg.png"]).labels.tolist() == [0, 1, 0, 1, 0]


def test_a_shard_may_be_a_link(healthy, tmp_path):
    folder = shutil.copytree(healthy, tmp_path / "set")
    for shard in folder.glob("*.tar"):
        shard.symlink_to(shard.rename(tmp_path / f"blob-{shard.name}"))
    assert _read_all(folder) == _read_all(healthy)
    assert verify_shards(folder).ok
