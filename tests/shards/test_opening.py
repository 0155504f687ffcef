from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import tarfile
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import SampleReader, open_index, pack, verify_shards
from lightning_robust.shards.checksums import check_checksums


@pytest.fixture
def folder(tmp_path, samples):
    pack(samples, tmp_path / "set", samples_per_shard=20)
    return tmp_path / "set"


def _forget_index(folder: Path) -> None:
    for path in folder.glob("*index*"):
        path.unlink()


def _reference_samples(paths) -> list[tuple[str, bytes, int]]:
    """Key, image and label in the order of Python's tarfile."""
    found = {}
    for path in paths:
        with tarfile.open(path) as archive:
            for info in archive:
                key, extension = info.name.split(".", 1)
                found.setdefault(key, {})[extension] = archive.extractfile(info).read()
    return [(key, sample["png"], int(sample["cls"])) for key, sample in found.items()]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=6), data=st.data())
def test_index_equals_tarfile_for_any_shard_sizes(counts, data, tmp_path_factory, make_png, write_tar):
    folder = tmp_path_factory.mktemp("set")
    number = 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            image = make_png(number, size=2 + number % 9)
            members += [(f"k{number}.png", image), (f"k{number}.cls", str(number * 7).encode())]
            number += 1
        write_tar(folder / f"s-{shard}.tar", members)
    index = open_index(str(folder))
    paths = [folder / f"s-{shard}.tar" for shard in range(len(counts))]
    reference = _reference_samples(paths)
    assert index.paths == tuple(map(str, paths))
    assert index.counts.tolist() == counts
    assert index.starts.tolist() == np.cumsum([0, *counts]).tolist()
    assert index.labels.tolist() == [label for _, _, label in reference]
    ids = data.draw(st.lists(st.integers(0, len(index) - 1), max_size=20))
    expected = [reference[sample][1] for sample in ids]
    shards, offsets, sizes = index.locate(ids)
    assert [paths[s].read_bytes()[o : o + n] for s, o, n in zip(shards, offsets, sizes, strict=True)] == expected
    for same in (index, open_index(str(folder)), pickle.loads(pickle.dumps(index))):
        with SampleReader(same) as reader:
            assert reader.read(ids) == expected
        assert same.fingerprint == index.fingerprint


def test_index_written_once_is_read_without_a_scan(folder, monkeypatch):
    _forget_index(folder)
    scanned = open_index(folder)
    monkeypatch.setattr("lightning_robust.shards.places.scan_shard", None)
    index = open_index(folder)
    assert index.table.tolist() == scanned.table.tolist()
    assert isinstance(index.table, np.memmap)
    assert index.fingerprint == scanned.fingerprint
    assert len(pickle.dumps(index)) < 2000


def test_index_is_the_public_form(folder):
    document = json.loads((folder / "index.json").read_text())
    assert (document["__kind__"], document["wids_version"]) == ("wids-shard-index-v1", 1)
    for entry in document["shardlist"]:
        assert entry["filesize"] == (folder / entry["url"]).stat().st_size
    assert [entry["nsamples"] for entry in document["shardlist"]] == [20, 20, 20, 4]


def test_patterns_name_the_same_shards(folder, monkeypatch):
    names = [str(folder / f"shard-{number:06d}.tar") for number in range(4)]
    monkeypatch.chdir(folder.parent)
    for shards in (
        folder,
        "set",
        "set/*.tar",
        "set/shard-{000000..000003}.tar",
        names,
        ["set/shard-00000[01].tar", *names[2:]],
    ):
        assert open_index(shards).paths == tuple(names)
    assert open_index(names[::-1]).labels[:4].tolist() == [0, 1, 2, 3]  # list order is kept: the short shard first
    assert open_index("set/shard-{000002,000000}.tar").paths == (names[2], names[0])


def test_numbers_are_sorted_by_value(tmp_path, write_tar, make_png):
    for number in (10, 9, 100, 1):
        write_tar(tmp_path / f"s{number}.tar", [(f"{number}.png", make_png()), (f"{number}.cls", b"%d" % number)])
    assert open_index(tmp_path).labels.tolist() == [1, 9, 10, 100]


def test_two_sets_share_a_folder(folder, samples, monkeypatch):
    train = open_index(folder / "shard-*.tar")
    pickled = pickle.dumps(train)
    pack(samples[:7], folder, name="val")
    val = open_index(folder / "val-*.tar")
    monkeypatch.setattr("lightning_robust.shards.places.scan_shard", None)
    assert len(open_index(folder / "shard-*.tar")) == 64
    assert len(val) == 7
    assert len(open_index([folder / "val-000000.tar", folder / "shard-000003.tar"])) == 11
    late = pickle.loads(pickle.dumps(train))  # its file is gone by now: the table travels instead
    assert late.table.tolist() == train.table.tolist()
    with pytest.raises(ShardError, match="samples file"):
        pickle.loads(pickled)


def test_folders_are_concatenated(folder, tmp_path, samples):
    pack(samples[:5], tmp_path / "more")
    index = open_index([folder, tmp_path / "more"])
    assert len(index) == 69
    assert index.labels.tolist() == [n % 5 for n in range(64)] + [0, 1, 2, 3, 4]
    with SampleReader(index) as reader:
        assert reader.read([64, 3]) == [samples[0].image, samples[3].image]
    assert pickle.loads(pickle.dumps(index)).locate([68])[0].tolist() == [4]


def test_folders_with_other_class_names_are_refused(tmp_path, samples):
    pack(samples, tmp_path / "a", classes="abcde")
    pack(samples, tmp_path / "b", classes="vwxyz")
    with pytest.raises(InputError, match="disagree"):
        open_index([tmp_path / "a", tmp_path / "b"])


def test_one_class_list_for_labels(folder):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": ["a", "b", "c", "d"]}))
    with pytest.raises(ShardError, match=r"sample 4 .*'00004.png'.* is 4; the set names 4 classes"):
        open_index(folder)


def test_set_without_labels(tmp_path, write_tar, make_png):
    write_tar(tmp_path / "a.tar", [("a.png", make_png()), ("b.jpg", make_png())])
    with pytest.raises(ShardError, match=r"sample 'a' lacks a label \(\.cls\); it holds png"):
        open_index(tmp_path)
    index = open_index(tmp_path, label_key=None)
    assert index.labels is None
    assert len(index) == 2
    with pytest.raises(ShardError, match="lacks a label"):  # the index for other members does not serve
        open_index(tmp_path)


def test_image_key_order_decides(tmp_path, write_tar, make_png):
    images = [make_png(seed) for seed in (1, 2)]
    write_tar(tmp_path / "a.tar", [("a.cls", b"1"), ("a.JPG", images[0]), ("a.seg.png", b"x"), ("a.png", images[1])])
    for keys, expected in ((("jpg", "png"), images[0]), (("png", "jpg"), images[1])):
        with SampleReader(open_index(tmp_path, image_keys=keys)) as reader:
            assert reader.read([0]) == [expected]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.png", b"x"), ("a.cls", b"1"), ("b.png", b"x"), ("b.cls", b"1"), ("a.txt", b"")], "'a' occurs again"),
        ([("a.png", b"x"), ("b.png", b"x"), ("a.cls", b"1"), ("b.cls", b"1")], "'a' lacks a label"),
        ([("a.png", b"x"), ("a.cls", b"1"), ("a.png", b"y")], r"two members '\.png'"),
        ([("a.txt", b"x"), ("a.cls", b"1")], r"lacks an image \(\.jpg, \.jpeg, \.png, \.webp\); it holds cls, txt"),
        ([("a.png", b""), ("a.cls", b"1")], "is empty"),
        ([("a.png", b"x"), ("a.cls", b"cat")], "holds b'cat', not a class number"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "not a class number"),
        ([("a.png", b"x"), ("a.cls", b"1" * 19)], "not a class number"),
        ([("a.png", b"x"), ("a.cls", b"1" + b" " * 90)], "not a class number"),
        ([("README", b"x"), (".hidden.png", b"x")], "holds no samples"),
        ([], "holds no samples"),
    ],
)
def test_samples_that_are_not_whole(tmp_path, write_tar, members, said):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ShardError, match=said):
        open_index(tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_all_zero_shard_holds_nothing(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(ShardError, match=r"a\.tar.*10240 bytes.*no samples"):
        open_index(tmp_path)


def test_keys_are_unique_over_the_set(tmp_path, write_tar, make_png):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [("000.png", make_png()), ("000.cls", b"1")])
    with pytest.raises(ShardError, match=r"b\.tar.*'000' occurs again \(first in .*a\.tar"):
        open_index(tmp_path)


def test_a_cut_shard_is_told_with_both_sizes(folder):
    path = folder / "shard-000001.tar"
    size = path.stat().st_size
    os.truncate(path, size - 512)
    with pytest.raises(
        ShardError, match=rf"000001.* has {size - 512} bytes; the index says {size} bytes with 20 samples"
    ):
        open_index(folder)


def test_rebuild_accepts_a_replaced_shard_and_forgets_a_lost_one(folder, samples, tmp_path):
    pack(samples[:3], tmp_path / "new")
    shutil.copy(tmp_path / "new" / "shard-000000.tar", folder / "shard-000001.tar")
    (folder / "shard-000002.tar").unlink()
    (folder / "shard-000000.tar").unlink()
    index = open_index(folder, rebuild=True)
    assert index.counts.tolist() == [3, 4]
    assert open_index(folder).fingerprint == index.fingerprint
    assert len(list(folder.glob("index-*.npy"))) == 1


@pytest.mark.parametrize("shards", ["", "/*.tar", "/shard-{000000..000003}.tar", "/shard-00000?.tar"])
def test_a_lost_shard_is_missed_by_every_pattern(folder, shards):
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002\.tar' is missing"):
        open_index(str(folder) + shards)


def test_other_tools_index_is_checked_against_and_kept(folder):
    document = json.loads((folder / "index.json").read_text())
    _forget_index(folder)
    for entry in document["shardlist"]:
        del entry["row"], entry["sha256"]
        entry["md5sum"] = "0"
    document = {key: document[key] for key in ("__kind__", "wids_version", "shardlist")} | {"name": "theirs"}
    document["shardlist"][3]["url"] = "/data/" + document["shardlist"][3]["url"]
    (folder / "index.json").write_text(json.dumps(document))
    assert len(open_index(folder)) == 64
    written = json.loads((folder / "index.json").read_text())
    assert written["name"] == "theirs"
    assert all(entry["md5sum"] == "0" for entry in written["shardlist"])
    document["shardlist"][1]["nsamples"] = 21
    (folder / "index.json").write_text(json.dumps(document))
    with pytest.raises(ShardError, match=r"000001\.tar' holds 20 samples; the index says 21"):
        open_index(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"samples_file": "none.npy"},
        {"__kind__": "other"},
        {"shardlist": [{"url": "shard-000000.tar"}]},
        {"shardlist": [{"url": "shard-000000.tar", "nsamples": -1}]},
        {"shardlist": [{"url": "shard-000000.tar", "nsamples": 20, "row": 4}]},
        {"shardlist": [{"url": "shard-000000.tar", "nsamples": 20, "row": 0}]},
        {"shardlist": 7},
    ],
)
def test_hostile_index(folder, change):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ShardError, match=r"index|samples file"):
        open_index(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", "\0\1", '{"__kind__": 3}'])
def test_an_index_that_is_none(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(ShardError, match="not a shard index"):
        open_index(folder)


@pytest.mark.parametrize("name", ["../evil.npy", "/etc/evil.npy", "index.pkl", 3])
def test_samples_file_stays_in_its_folder(folder, name):
    path = folder / "index.json"
    document = json.loads(path.read_text())
    shutil.copy(folder / document["samples_file"], folder.parent / "evil.npy")
    shutil.copy(folder / document["samples_file"], folder / "index.pkl")
    path.write_text(json.dumps(document | {"samples_file": name}))
    with pytest.raises(ShardError, match=r"must be a \.npy file beside it"):
        open_index(folder)


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrapped", [False, True])
def test_nothing_is_unpickled(folder, wrapped):
    name = json.loads((folder / "index.json").read_text())["samples_file"]
    payload = _Payload(folder / "executed")
    if wrapped:
        np.save(folder / name, np.array([payload], dtype=object), allow_pickle=True)
    else:
        (folder / name).write_bytes(pickle.dumps(payload))
    with pytest.raises(ShardError, match="samples file"):
        open_index(folder)
    assert not (folder / "executed").exists()


def test_folder_that_cannot_be_written_is_indexed_in_memory(folder, monkeypatch, caplog):
    _forget_index(folder)

    def refuse(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("lightning_robust.shards.indexfile.replace_file", refuse)
    with caplog.at_level(logging.INFO, "lightning_robust.shards.opening"):
        index = open_index(folder)
    assert "held in memory" in caplog.text
    assert len(pickle.loads(pickle.dumps(index))) == 64


@pytest.mark.parametrize("name", ["shard-000001.tar", "index.json"])
def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch, name):
    opened, read = os.open, Path.read_bytes

    def refuse(path):
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))

    # tests may run as root, whom no mode of a file stops
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: (refuse(path), opened(path, *rest, **more))[1])
    monkeypatch.setattr(Path, "read_bytes", lambda path: (refuse(path), read(path))[1])
    said = rf"{name}' cannot be (opened|read): Permission denied"
    if name.endswith(".tar"):
        with SampleReader(open_index(folder)) as reader, pytest.raises(ShardError, match=said):
            reader.read([20])
        with pytest.raises(ShardError, match=said):
            check_checksums(open_index(folder))
    with pytest.raises(ShardError, match=said):
        open_index(folder, rebuild=True)
    (fault,) = verify_shards(folder).faults
    assert "Permission denied" in fault.what


def test_a_failure_other_than_permission_is_not_hidden(folder, monkeypatch):
    _forget_index(folder)

    def fail(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_robust.shards.indexfile.replace_file", fail)
    with pytest.raises(OSError, match="No space"):
        open_index(folder)


def test_write_false_leaves_the_folder_alone(folder):
    _forget_index(folder)
    before = sorted(folder.iterdir())
    assert len(open_index(folder, write=False)) == 64
    assert sorted(folder.iterdir()) == before


def test_nothing_and_twice(tmp_path, folder):
    with pytest.raises(
        ShardError, match=r"No shard matches .*none-\*\.tar.*`lightning-robust shards pack` makes shards"
    ):
        open_index(str(tmp_path / "none-*.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match="No shard matches"):
        open_index(tmp_path / "empty")
    with pytest.raises(InputError, match="No shards were named"):
        open_index([])
    with pytest.raises(InputError, match="named twice"):
        open_index([folder, folder / "shard-000001.tar"])


def test_ids_outside_the_set(folder):
    index = open_index(folder)
    for ids in ([64], [-1, 3]):
        with pytest.raises(InputError, match="the set holds 0 to 63"):
            index.locate(ids)
    assert [len(part) for part in index.locate([])] == [0, 0, 0]


def test_fingerprint_depends_on_order_and_content(folder, samples, tmp_path):
    first, second = folder / "shard-000000.tar", folder / "shard-000001.tar"
    prints = {open_index(shards).fingerprint for shards in (folder, [first, second], [second, first])}
    assert len(prints) == 3
    copied = tmp_path / "elsewhere"
    shutil.copytree(folder, copied)
    assert open_index(copied).fingerprint == open_index(folder).fingerprint


def test_an_index_is_immutable(folder):
    index = open_index(folder)
    with pytest.raises(FrozenInstanceError):
        index.paths = ()
    with pytest.raises(ValueError, match="read-only"):
        index.labels[0] = 3
