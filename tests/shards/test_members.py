"""Members beside image and label: written, indexed, carried along, and read by others."""

from __future__ import annotations

import gc
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset as wds

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import (
    RemoteOptions,
    Sample,
    SampleReader,
    Sharpening,
    folderindex,
    indexdocument,
    indexfile,
    merge_shards,
    open_index,
    pack,
    places,
    robustify,
    split_shards,
    tablefile,
    verify_shards,
)
from lightning_robust.shards.annotations import decode_mask


def _mask(number):
    return np.random.default_rng(number).integers(0, 300, (6, 8)).astype(np.uint16)


def _tags(number):
    return {"number": number, "tags": list(range(number % 3))}


def _samples(count, start=0, **changes):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for number in range(start, start + count):
        extra = {"seg.png": _mask(number), "tags.json": _tags(number)}
        yield Sample(f"k{number:03d}", pixels, **({"target": number % 4, "extra": extra} | changes))


def _read(index, extension):
    with SampleReader(index) as reader:
        return [reader.read_member(extension, sample) for sample in range(len(index))]


def _assert_masks(index, numbers):
    for data, number in zip(_read(index, "seg.png"), numbers, strict=True):
        np.testing.assert_array_equal(decode_mask(data), _mask(number))


@pytest.fixture
def folder(tmp_path):
    pack(_samples(20), tmp_path / "set", samples_per_shard=6)
    return tmp_path / "set"


def test_pack_indexes_what_it_wrote(folder, monkeypatch):
    monkeypatch.setattr("lightning_robust.shards.places.scan_shard", None)
    index = open_index(folder, members=["seg.png", ".TAGS.json"])
    assert all(isinstance(table, np.memmap) for table in index.members.values())
    _assert_masks(index, range(20))
    assert [json.loads(data) for data in _read(index, "tags.json")] == [_tags(number) for number in range(20)]
    document = json.loads((folder / "index.json").read_text())
    assert document["__kind__"] == "wids-shard-index-v1"
    assert set(document["members"]) == {"seg.png", "tags.json"}
    assert len(pickle.dumps(index)) < 2500
    same = pickle.loads(pickle.dumps(index))
    _assert_masks(same, range(20))
    # which members are read is no matter of the order of samples
    assert same.fingerprint == index.fingerprint == open_index(folder).fingerprint
    assert open_index(folder).members == {}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_other_readers_understand_the_shards(folder):
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    found = list(wds.WebDataset(shards, shardshuffle=False))
    gc.collect()  # webdataset leaves the files to the garbage collector
    assert [sample["__key__"] for sample in found] == [f"k{number:03d}" for number in range(20)]
    for number, sample in enumerate(found):
        assert json.loads(sample["tags.json"]) == _tags(number)
        assert sample["cls"] == str(number % 4).encode()
        np.testing.assert_array_equal(decode_mask(sample["seg.png"]), _mask(number))


def test_members_are_found_when_they_are_first_asked_for(folder, monkeypatch):
    path = folder / "index.json"
    document = json.loads(path.read_text())
    del document["members"]  # as an index that was made without looking for them
    path.write_text(json.dumps(document))
    for file in folder.glob("members-*.npy"):
        file.unlink()
    assert open_index(folder).members == {}
    assert "members" not in json.loads(path.read_text())
    _assert_masks(open_index(folder / "shard-00000[0-2].tar", members=["seg.png"]), range(18))
    # the fourth shard was not looked through
    _assert_masks(open_index(folder, members=["seg.png"]), range(20))
    monkeypatch.setattr("lightning_robust.shards.places.scan_shard", None)
    _assert_masks(open_index(folder, members=["seg.png"]), range(20))


def test_members_that_are_not_png_or_json_are_found_when_asked_for(tmp_path):
    pack(_samples(4, extra={"depth.bin": b"\x01\x02"}), tmp_path)
    assert json.loads((tmp_path / "index.json").read_text())["members"] == {}
    index = open_index(tmp_path, members=["depth.bin"])
    assert _read(index, "depth.bin") == [b"\x01\x02"] * 4


def test_an_index_keeps_few_kinds_of_members_unasked(tmp_path):
    samples = [Sample(f"k{i}", np.zeros((2, 2), np.uint8), 0, extra={f"m{i}.json": i}) for i in range(30)]
    pack(samples, tmp_path, samples_per_shard=7)
    assert len(json.loads((tmp_path / "index.json").read_text())["members"]) == 16
    open_index(tmp_path, members=["m29.json"])
    listed = json.loads((tmp_path / "index.json").read_text())["members"]
    assert len(listed) == 17
    assert "m29.json" in listed
    open_index(tmp_path, rebuild=True)
    assert len(json.loads((tmp_path / "index.json").read_text())["members"]) == 16


def test_sets_that_share_a_folder_keep_their_members(folder):
    pack(_samples(5, 100), folder, name="val")
    _assert_masks(open_index(folder / "shard-*.tar", members=["seg.png"]), range(20))
    _assert_masks(open_index(folder / "val-*.tar", members=["seg.png"]), range(100, 105))
    pack(_samples(3, 200, extra={}), folder, name="bare")
    mixed = open_index([folder / "bare-000000.tar", folder / "val-000000.tar"], members=["seg.png"])
    with pytest.raises(ShardError, match=r"sample 1 \('k201\.png'\) of shard .* has no member '\.seg\.png'"):
        mixed.locate_member("seg.png", 1)
    _assert_masks(mixed.select(range(3, 8)), range(100, 105))


def test_sets_in_several_folders(folder, tmp_path):
    pack(_samples(5, 50), tmp_path / "other")
    index = open_index([folder, tmp_path / "other"], members=["seg.png"])
    _assert_masks(index, [*range(20), *range(50, 55)])
    _assert_masks(pickle.loads(pickle.dumps(index)), [*range(20), *range(50, 55)])


def _scanned(monkeypatch):
    """Names of the shards that are scanned from now on."""
    names = []
    scan = places.scan_shard
    monkeypatch.setattr(
        places, "scan_shard", lambda path, *a, **k: (names.append(Path(path).name), scan(path, *a, **k))[1]
    )
    return names


def test_what_no_sample_has_is_sought_once(folder, tmp_path, monkeypatch):
    other = tmp_path / "other"
    pack(_samples(5, 50, extra={}), other)
    scanned = _scanned(monkeypatch)
    for extension in ("seg.png", "depth.bin"):
        if extension == "depth.bin":
            pack(_samples(1, 90, extra={extension: b"x"}), folder, name="deep")
        for expected in (["shard-000000.tar"], []):
            open_index([folder / "deep-*.tar" if "bin" in extension else folder, other], members=[extension])
            assert [name for name in scanned if "deep" not in name] == expected
            scanned.clear()
    assert json.loads((other / "index.json").read_text())["members"] == {"depth.bin": None, "seg.png": None}
    with pytest.raises(InputError, match="have nothing that"):
        open_index(other, members=["seg.png"])
    # what is packed beside them later is looked through, whatever was known before
    pack(_samples(2, 60), other, name="late")
    assert len(_read(open_index(other / "late-*.tar", members=["seg.png"]), "seg.png")) == 2
    assert not scanned


def test_members_packed_after_others_were_asked_for(tmp_path):
    pack(_samples(2, extra={"depth.bin": b"a"}), tmp_path, name="a")
    open_index(tmp_path / "a-*.tar", members=["depth.bin"])
    pack(_samples(2, 10, extra={"depth.bin": b"b"}), tmp_path, name="b")
    assert _read(open_index(tmp_path / "b-*.tar", members=["depth.bin"]), "depth.bin") == [b"b"] * 2


def test_members_asked_for_in_one_of_two_sets_only(tmp_path):
    for name in ("a", "b"):
        pack(_samples(2, 10 * (name == "b"), extra={"depth.bin": name.encode()}), tmp_path, name=name)
    open_index(tmp_path / "a-*.tar", members=["depth.bin"])
    assert _read(open_index(tmp_path / "b-*.tar", members=["depth.bin"]), "depth.bin") == [b"b"] * 2


@pytest.mark.parametrize("kind", ["index", "members"])
def test_a_reader_outruns_another_process_that_indexes(folder, monkeypatch, kind):
    load, others, busy = tablefile.load_rows, ["v", "w"], []

    def late(path, *arguments, **options):
        if not busy and others and Path(path).name.startswith(kind):
            busy.append(path)
            pack(_samples(3, 100 * len(others)), folder, name=others.pop())  # takes the file away
            assert not Path(busy.pop()).exists()
        return load(path, *arguments, **options)

    monkeypatch.setattr(indexfile if kind == "index" else folderindex, "load_rows", late)
    index = open_index(folder / "shard-*.tar", members=["seg.png"])
    _assert_masks(index, range(20))
    assert not others


def test_an_index_that_changes_without_end_is_given_up(folder, monkeypatch):
    parsed = []

    def parse(data, where):
        (folder / "index.json").write_bytes(data + b" ")
        parsed.append(where)
        return indexdocument.parse_index(data, where)

    for file in folder.glob("*.npy"):
        file.unlink()
    monkeypatch.setattr(indexfile, "parse_index", parse)
    with pytest.raises(ShardError, match="cannot be read"):
        open_index(folder)
    assert len(parsed) == 20


def test_parts_of_a_set_carry_their_members(folder):
    index = open_index(folder, members=["seg.png"])
    _assert_masks(index.select([3, 4, 11, 19]), [3, 4, 11, 19])
    _assert_masks(pickle.loads(pickle.dumps(index.with_labels([1]))), [1, 5, 9, 13, 17])


def test_masks_survive_split_merge_and_robustify(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "scan_shard", None)  # all that is written is indexed by its writer
    parts = split_shards(folder, tmp_path / "parts", {"a": 0.5, "b": 0.5})
    assert all(len(index) for index in parts.values())
    merge_shards([parts["b"].paths[0], parts["a"].paths[0]], tmp_path / "merged", samples_per_shard=7)
    sharp = tmp_path / "sharp"
    robustify(tmp_path / "merged", sharp, sharpening=Sharpening(alpha=0.2))
    index = open_index(sharp, members=["seg.png", "tags.json"])
    numbers = [json.loads(data)["number"] for data in _read(index, "tags.json")]
    assert numbers == [int(index.member(sample)[1:4]) for sample in range(len(index))]
    _assert_masks(index, numbers)
    assert sorted(numbers) == list(range(20)) != numbers
    _assert_masks(open_index(tmp_path / "merged", members=["seg.png"]), numbers)


@pytest.mark.parametrize("encode", ["same", "jpeg"])
def test_robustify_tells_where_all_members_went(folder, tmp_path, encode):
    extra = {"depth.bin": b"deep", "tags.json": [1], "a.png": np.zeros((6, 8), np.uint8)}
    pack(_samples(3, 50, extra=extra), folder, name="deep")
    kinds = ["depth.bin", "seg.png", "tags.json"]
    open_index(folder, members=kinds)
    robustify(folder, tmp_path / "out", sharpening=Sharpening(alpha=0.2, encode=encode), workers=1)
    listed = json.loads((tmp_path / "out" / "index.json").read_text())
    assert set(listed["members"]) == {*kinds, "a.png"}
    keys = tuple(listed["fields"]["image"])
    written = open_index(tmp_path / "out", members=kinds, write=False, image_keys=keys)
    scanned = open_index(tmp_path / "out", members=kinds, write=False, image_keys=keys, rebuild=True)
    for kind in kinds:
        np.testing.assert_array_equal(written.members[kind], scanned.members[kind])
    assert verify_shards(tmp_path / "out", image_keys=keys).ok
    old, new = (open_index(where / "deep-*.tar", members=["depth.bin"]) for where in (folder, tmp_path / "out"))
    assert _read(old, "depth.bin") == _read(new, "depth.bin") == [b"deep"] * 3


def test_a_published_index_brings_only_the_members_asked_for(folder, web, tmp_path):
    url = web.add_folder(folder, "a")
    remote = RemoteOptions(cache_dir=tmp_path / "cache")
    open_index(url, remote=remote)
    assert not any("members-" in path for path in web.gets)
    index = open_index(url, remote=remote, members=["seg.png"])
    assert not any(path.endswith(".tar") for path in web.gets)
    assert [count for path, count in web.gets.items() if "members-" in path] == [1]
    _assert_masks(index, range(20))
    damaged = json.loads((folder / "index.json").read_text())["members"]["tags.json"]
    web.files[f"/a/{damaged}"] = web.files[f"/a/{damaged}"][:-1] + b"x"
    with pytest.raises(ShardError, match="holds other bytes than its name says"):
        open_index(url, remote=remote, members=["tags.json"])


def test_what_is_not_there_is_named(folder):
    with pytest.raises(InputError, match=r"No sample .* has a member '\.mask\.png'.*\.seg\.png, \.tags\.json"):
        open_index(folder, members=["mask.png"])
    index = open_index(folder, members=["seg.png"])
    with pytest.raises(InputError, match=r"open it with open_index\(\.\.\., members=\['tags\.json'\]\)"):
        index.locate_member("tags.json", 0)
    with SampleReader(index) as reader, pytest.raises(ShardError, match=r"it has [0-9]+ bytes, expected 1 to 3 "):
        reader.read_member("seg.png", 0, max_bytes=3)


@pytest.mark.parametrize("place", [(2**62, 2**62), (2**63 - 1, 1), (600, 0), (10**6, 5)])
def test_an_index_that_points_elsewhere_is_refused(folder, place):
    index = open_index(folder, members=["seg.png"])
    index.members["seg.png"] = table = np.array(index.members["seg.png"])
    table[3] = place
    with SampleReader(index) as reader, pytest.raises(ShardError, match=r"places the member '\.seg\.png' of sample 3"):
        reader.read_member("seg.png", 3)


def test_a_damaged_index_of_members_is_named(folder):
    file = folder / json.loads((folder / "index.json").read_text())["members"]["seg.png"]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ShardError, match=r"samples file .*members-.* cannot be read"):
        open_index(folder, members=["seg.png"])
    assert len(open_index(folder)) == 20
    document = json.loads((folder / "index.json").read_text())
    for members in ({"seg.png": "../out.npy"}, ["seg.png"]):
        (folder / "index.json").write_text(json.dumps(document | {"members": members}))
        with pytest.raises(ShardError, match=r"it must be a \.npy file beside it|expected files by extension"):
            open_index(folder)


def test_a_set_without_class_numbers(tmp_path):
    index = pack(_samples(6, target=None), tmp_path)
    assert not index.has_labels
    _assert_masks(index, range(6))
    _assert_masks(open_index(tmp_path, label_key=None, members=["seg.png"]), range(6))
    with pytest.raises(ShardError, match=r"lacks a label.*label_key=None"):
        open_index(tmp_path)
    mixed = [*_samples(1), *_samples(1, 1, target=None)]
    with pytest.raises(InputError, match="'k001' has no target, and the first sample has one"):
        pack(mixed, tmp_path / "mixed")
    with pytest.raises(InputError, match="'k000' has a target, and the first sample has none"):
        pack(mixed[::-1], tmp_path / "mixed")


def test_verify_finds_members_that_do_not_decode(tmp_path):
    color = bytes(cv2.imencode(".png", np.zeros((3, 3, 3), np.uint8))[1])
    mask = bytes(cv2.imencode(".png", np.zeros((3, 3), np.uint8))[1])
    extras = [
        {"depth.png": color, "seg.png": mask, "a.json": [1], "notes.txt": b"{"},
        {"seg.png": mask[:-20]},
        {"depth.png": color[:-20]},
        {"a.json": b"{"},
    ]
    pack([Sample(f"k{i}", np.full((2, 2), i, np.uint8), 0, extra=extra) for i, extra in enumerate(extras)], tmp_path)
    report = verify_shards(tmp_path, workers=1)
    assert [fault.key for fault in report.faults] == ["k1", "k2", "k3"]
    assert [fault.what.split("'")[1] for fault in report.faults] == [".seg.png", ".depth.png", ".a.json"]


def _renamed_table(folder, extension, change):
    """Change a table, under a name without a hash."""
    document = json.loads((folder / "index.json").read_text())
    table = np.load(folder / document["members"][extension])
    change(table)
    np.save(folder / f"{extension}.npy", table)
    document["members"][extension] = f"{extension}.npy"
    (folder / "index.json").write_text(json.dumps(document))


def test_verify_compares_the_places_of_members(folder, web, tmp_path):
    assert verify_shards(folder).ok

    def rotate(table):
        table[6:12] = np.roll(table[6:12], 1)

    _renamed_table(folder, "seg.png", rotate)
    (fault,) = verify_shards(folder, workers=1).faults
    assert (Path(fault.shard).name, fault.key) == ("shard-000001.tar", "k006")
    assert "places the member '.seg.png' elsewhere (so for 6 samples" in fault.what

    def forget(table):
        table[0] = 0

    _renamed_table(folder, "tags.json", forget)
    assert [fault.key for fault in verify_shards(folder).faults] == ["k000", "k006"]


def test_verify_compares_members_at_a_url(folder, web, tmp_path):
    url, remote = web.add_folder(folder, "a"), RemoteOptions(cache_dir=tmp_path / "cache")
    assert verify_shards(url, remote=remote).ok
    assert len([path for path in web.gets if "members-" in path]) == 2


def test_verify_knows_image_and_label_among_the_members(tmp_path):
    extra = {"b.png": np.zeros((2, 2), np.uint8)}
    pack([Sample("a", np.zeros((2, 2, 3), np.uint8), 0, extra=extra)], tmp_path)
    open_index(tmp_path, members=["cls", "png", "b.png"])
    assert verify_shards(tmp_path).ok
    open_index(tmp_path, rebuild=True)
    assert verify_shards(tmp_path).ok


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"png": b"x"}, "not be taken for its image"),
        ({"cls": b"1"}, "not be taken for its image or class number"),
        ({"Seg.png": b"x"}, "small letters"),
        ({"../x": b"x"}, "small letters"),
        ({"a" * 96: b"x"}, "has 101 characters"),
        ({"seg.png": np.zeros((2, 2, 3), np.uint8)}, r"is uint8 \(2, 2, 3\): expected bytes"),
        ({"seg.png": np.zeros((2, 2), np.int64)}, r"is int64 \(2, 2\)"),
        ({"seg.txt": "text"}, "is str: expected bytes"),
        ({"a.json": {"x": float("nan")}}, "cannot be written as JSON"),
        ({"a.json": {"x": object()}}, "cannot be written as JSON"),
    ],
)
def test_extra_members_that_cannot_be_packed(tmp_path, extra, said):
    with pytest.raises(InputError, match=said):
        pack([Sample("k000", np.zeros((2, 2), np.uint8), 0, extra=extra)], tmp_path)
