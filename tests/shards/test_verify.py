"""Every fault is found and named, by faults put into a small set one by one."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import tarfile
import zlib
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_robust.errors import InputError, ShardError, UnsupportedError
from lightning_robust.shards import FetchError, RemoteOptions, Sample, open_index, pack, verify_shards
from lightning_robust.shards.verify import _repeats
from lightning_robust.shards.verify_records import DIGEST_DTYPE

CLASSES = ("ant", "bee", "cat")


def _jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", pixels)[1])


def _bomb() -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "set"
    samples = [Sample(f"{number:02d}", _jpeg(number), number % 3, "jpg") for number in range(18)]
    pack(samples, folder, samples_per_shard=6, classes=CLASSES)
    return folder


@pytest.fixture
def folder(healthy, tmp_path):
    return shutil.copytree(healthy, tmp_path / "set")


def _members(path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]


def _without_index(folder):
    for path in folder.glob("*index*"):
        path.unlink()


def _change(path, write_tar, change):
    """Rewrite a shard with other members."""
    members = dict(_members(path))
    change(members)
    write_tar(path, members.items())


def _faults(report) -> list[tuple[str, str | None, str]]:
    return [(fault.shard.rpartition("/")[2], fault.key, fault.what) for fault in report.faults]


def test_a_healthy_set_passes(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = verify_shards(folder)
    assert report.ok
    assert (report.samples, report.shards, report.checksums, report.duplicates) == (18, 3, 3, 0)
    assert report.histogram == {0: 6, 1: 6, 2: 6}
    assert report.classes == CLASSES
    assert report.notes == ()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert verify_shards(folder / "shard-000001.tar").samples == 6


def test_without_an_index_the_shards_are_read_and_the_report_says_so(folder):
    _without_index(folder)
    report = verify_shards(folder)
    assert report.ok
    assert (report.samples, report.checksums) == (18, 0)
    (note,) = report.notes
    assert "3 of the 3 shards" in note
    assert "nothing to be compared with" in note


def _replace(name, data):
    return lambda members: members.update({name: data})


def _rename(old, new):
    def change(members):
        renamed = [(new if name == old else name, data) for name, data in members.items()]
        members.clear()
        members.update(renamed)

    return change


MEMBER_FAULTS = {
    "cut JPEG": (_replace("08.jpg", _jpeg(8)[:-200]), "08", r"An image \(\d+ bytes\) cannot be decoded"),
    "garbage": (_replace("08.jpg", b"<html>" * 50), "08", r"cannot be decoded: no JPEG, PNG or WebP"),
    "bomb": (_replace("08.jpg", _bomb()), "08", r"claims 60000 x 50000 pixels; the limit is"),
    "empty image": (_replace("08.jpg", b""), "08", r"the image '08.jpg' is empty"),
    "no image": (lambda members: members.pop("08.jpg"), "08", r"lacks an image .*it holds cls"),
    "no label": (lambda members: members.pop("08.cls"), "08", r"lacks a label .*it holds jpg"),
    "label is no number": (_replace("08.cls", b"cat"), "08", r"holds b'cat', not a class number"),
}


@pytest.mark.parametrize("name", MEMBER_FAULTS)
def test_a_fault_of_a_sample_is_the_only_one_and_is_named(folder, write_tar, name):
    change, key, said = MEMBER_FAULTS[name]
    _change(folder / "shard-000001.tar", write_tar, change)
    _without_index(folder)
    report = verify_shards(folder)
    ((shard, found, what),) = _faults(report)
    assert (shard, found) == ("shard-000001.tar", key)
    assert re.search(said, what)
    assert report.samples == 18
    assert not report.ok


def test_samples_without_an_image_are_no_duplicates(folder, write_tar):
    for name in ("07.jpg", "08.jpg", "09.jpg"):
        _change(folder / "shard-000001.tar", write_tar, lambda members, name=name: members.pop(name))
    report = verify_shards(folder)
    assert report.duplicates == 0
    assert report.samples == 18


def test_labels_outside_the_classes(folder, write_tar):
    path = folder / "shard-000000.tar"
    _change(path, write_tar, _replace("02.cls", b"3"))
    faults = _faults(verify_shards(folder))
    assert ("shard-000000.tar", "02", "the label is 3; the index names 3 classes, 0 to 2.") in faults
    assert any(key == "02" and "the index has another label" in what for _, key, what in faults)
    assert verify_shards(folder).histogram == {0: 6, 1: 6, 2: 5, 3: 1}


@pytest.mark.parametrize("adjacent", [True, False])
def test_a_key_that_occurs_twice_in_a_shard(folder, write_tar, adjacent):
    path = folder / "shard-000001.tar"
    members = _members(path)
    again = [(name.replace("11", "06" if not adjacent else "10"), data) for name, data in members]
    write_tar(path, again)
    _without_index(folder)
    report = verify_shards(folder)
    faults = _faults(report)
    if adjacent:
        assert [(shard, key) for shard, key, _ in faults] == [("shard-000001.tar", "10")] * 2
        assert [what[:33] for *_, what in faults] == [f"the sample holds two members '.{x}" for x in ("cl", "jp")]
    else:
        assert faults == [("shard-000001.tar", "06", faults[0][2])]
        assert "the key occurs again" in faults[0][2]
        assert report.samples == 18


def test_a_key_of_two_shards_is_a_fault_in_one_folder_and_a_note_across_two(folder, tmp_path):
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000003.tar")
    report = verify_shards(folder)
    ((shard, key, what),) = _faults(report)
    assert (shard, key) == ("shard-000003.tar", "00")
    assert "shard-000000.tar' too (as do 6 keys of this shard in all)" in what
    (tmp_path / "other").mkdir()
    (folder / "shard-000003.tar").rename(tmp_path / "other" / "a.tar")
    report = verify_shards([folder, tmp_path / "other"])
    assert report.ok
    assert "6 keys occur in more than one folder" in report.notes[-1]
    assert report.duplicates == 6


def test_duplicate_images_are_counted_and_the_first_few_named(folder, tmp_path):
    samples = [Sample(f"{number:02d}", _jpeg(number % 7), number % 3, "jpg") for number in range(20)]
    pack(samples, tmp_path / "twice", samples_per_shard=6)
    report = verify_shards(tmp_path / "twice")
    assert report.ok
    assert report.duplicates == 13
    named = [(pair.first_key, pair.key, pair.first_shard[-10:], pair.shard[-10:]) for pair in report.examples]
    assert named[:2] == [("00", "07", "000000.tar", "000001.tar"), ("01", "08", "000000.tar", "000001.tar")]
    assert len(named) == 5


CUTS = {
    "in a member": (600, 0, r"should end at byte"),
    "after a member": (1024, 0, r"without the end-of-archive blocks"),
    "after a sample": (1024 + 512 + 1024, 1, r"without the end-of-archive blocks"),
    "in a header": (1024 + 100, 0, r"without the end-of-archive blocks"),
    "to nothing": (0, 0, r"is empty"),
    "to less than a header": (100, 0, r"is not a tar file"),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_shard_that_was_cut_is_read_up_to_the_cut(folder, name):
    path = folder / "shard-000001.tar"
    kept, whole, said = CUTS[name]
    if name == "in a member":
        said, kept = r"'06.jpg' should end at byte", 1024 + 512 + 100
    path.write_bytes(path.read_bytes()[:kept])
    report = verify_shards(folder)
    faults = _faults(report)
    assert {shard for shard, *_ in faults} == {"shard-000001.tar"}
    assert any(re.search(said, what) for *_, what in faults)
    assert any(what.startswith(f"has {kept} bytes; the index says") for *_, what in faults)
    assert any(f"holds {whole} samples before the damage; the index says 6" in what for *_, what in faults)
    assert len(faults) == 3
    assert report.samples == 12 + whole
    _without_index(folder)
    assert len(verify_shards(folder).faults) == 1


def test_missing_shards(folder):
    (folder / "shard-000001.tar").unlink()
    assert _faults(verify_shards(folder)) == [
        ("shard-000001.tar", None, "is missing: the index lists it with 6 samples.")
    ]
    report = verify_shards(f"{folder}/shard-{{000000..000003}}.tar")
    assert [(shard, what[:10]) for shard, _, what in _faults(report)] == [
        ("shard-000001.tar", "is missing"),
        ("shard-000003.tar", "is missing"),
    ]
    assert (report.shards, report.samples) == (4, 12)


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/shard-{000000,00000[1-9]}.tar"])
def test_what_lies_there_and_is_no_file_keeps_no_other_shard_from_being_read(folder, pattern):
    (folder / "shard-000001.tar").unlink()
    (folder / "shard-000001.tar").symlink_to("nowhere")
    (folder / "shard-000003.tar").mkdir()
    report = verify_shards(f"{folder}{pattern}")
    assert (report.samples, report.shards) == (12, 4)
    assert [shard for shard, *_ in _faults(report)] == ["shard-000001.tar", "shard-000003.tar"]
    assert all(fault.what.startswith("is missing") for fault in report.faults)


def test_a_byte_that_changed_in_the_padding_is_found_by_the_checksum_alone(folder):
    path = folder / "shard-000002.tar"
    data = bytearray(path.read_bytes())
    data[1023] ^= 1  # between the label and the next header
    path.write_bytes(data)
    ((shard, key, what),) = _faults(verify_shards(folder))
    assert (shard, key) == ("shard-000002.tar", None)
    assert what.startswith("has the sha256 ")


def test_an_index_that_is_damaged_or_stale(folder):
    document = json.loads((folder / "index.json").read_text())
    table_file = folder / document["samples_file"]
    table = np.load(table_file)
    table["offset"][7:9] += 512
    np.save(table_file, table)
    ((shard, key, damaged), (moved_in, moved, what)) = _faults(verify_shards(folder))
    assert (shard, key) == ("set", None)
    assert "holds other bytes than its name says" in damaged
    assert (moved_in, moved) == ("shard-000001.tar", "07")
    assert "the index places the image elsewhere (so for 2 samples of this shard)" in what

    np.save(table_file, table[:4])
    report = verify_shards(folder)
    (_, (shard, key, what)) = _faults(report)
    assert "expected" in what
    assert (report.samples, report.checksums) == (18, 3)  # counts and checksums are in the other file

    (folder / "index.json").write_text("{")
    report = verify_shards(folder)
    ((shard, key, what),) = _faults(report)
    assert "is not a shard index" in what
    assert (report.samples, report.checksums, len(report.notes)) == (18, 0, 1)


def test_counts_of_a_foreign_index(folder):
    document = json.loads((folder / "index.json").read_text())
    listed = [{key: entry[key] for key in ("url", "nsamples")} for entry in document["shardlist"]]
    listed[1]["nsamples"] = 9
    foreign = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": listed}
    (folder / "index.json").write_text(json.dumps(foreign))
    assert _faults(verify_shards(folder)) == [("shard-000001.tar", None, "holds 6 samples; the index says 9.")]


def test_folders_that_disagree_on_the_classes(folder, tmp_path):
    pack([Sample("x", _jpeg(99), 0, "jpg")], tmp_path / "other", classes=("one",))
    ((_, _, what),) = _faults(verify_shards([folder, tmp_path / "other"]))
    assert "disagree on the names of the classes" in what


def _spoil(folder, write_tar):
    _change(folder / "shard-000000.tar", write_tar, _replace("01.jpg", b"garbage"))
    _change(folder / "shard-000000.tar", write_tar, _replace("04.cls", b"x"))
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    (folder / "shard-000002.tar").write_bytes(b"<html>")
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000003.tar")
    _without_index(folder)


def test_all_faults_of_several_shards_in_one_run_with_any_number_of_processes(folder, write_tar):
    _spoil(folder, write_tar)
    report = verify_shards(folder)
    assert [(shard, key) for shard, key, _ in _faults(report)] == [
        ("shard-000000.tar", "01"),
        ("shard-000000.tar", "04"),
        ("shard-000001.tar", None),
        ("shard-000002.tar", None),
        ("shard-000003.tar", "01"),
        ("shard-000003.tar", "04"),
        ("shard-000003.tar", "00"),
    ]
    assert verify_shards(folder, workers=2) == report


def test_a_worker_that_is_killed_is_an_error(folder, monkeypatch):
    class Pool:
        def __init__(self, workers, **settings):
            pass

        def map(self, function, tasks):
            raise BrokenProcessPool
            yield

        def shutdown(self, **settings):
            pass

    monkeypatch.setattr("lightning_robust.shards.verify.ProcessPoolExecutor", Pool)
    with pytest.raises(ShardError, match="fewer workers"):
        verify_shards(folder, workers=2)


def test_a_set_without_labels(tmp_path, write_tar):
    write_tar(tmp_path / "a.tar", [("a.jpg", _jpeg(0)), ("b.jpg", _jpeg(1)), ("README", b"not of a sample")])
    report = verify_shards(tmp_path / "a.tar", label_key=None)
    assert report.ok
    assert (report.samples, report.histogram) == (2, {})
    assert len(verify_shards(tmp_path / "a.tar").faults) == 2


def test_a_shard_without_samples(tmp_path, write_tar):
    write_tar(tmp_path / "a.tar", [("README", b"text")])
    ((_, _, what),) = _faults(verify_shards(tmp_path / "a.tar"))
    assert what == "holds no samples."


def test_names_that_are_not_text(tmp_path, write_tar):
    name = b"\xff\x1b[31m".decode("utf-8", "surrogateescape")
    write_tar(tmp_path / "a.tar", [(f"{name}.jpg", b"garbage"), (f"{name}.cls", b"1")], format=tarfile.GNU_FORMAT)
    ((_, key, _),) = _faults(verify_shards(tmp_path / "a.tar"))
    assert key == name


def test_what_cannot_be_started(folder, tmp_path):
    with pytest.raises(InputError, match="workers=0"):
        verify_shards(folder, workers=0)
    with pytest.raises(ShardError, match="is missing"):
        verify_shards(tmp_path / "none.tar")
    with pytest.raises(InputError, match="named twice"):
        verify_shards([folder, folder])
    with pytest.raises(UnsupportedError):
        verify_shards("pipe:cat a.tar")


def test_shards_at_urls(folder, web, tmp_path):
    remote = RemoteOptions(cache_dir=str(tmp_path / "cache"), backoff=0, attempts=2, timeout=5)
    url = web.add_folder(folder, "a")
    report = verify_shards(url, remote=remote)
    assert report.ok
    assert (report.samples, report.checksums) == (18, 3)
    shutil.rmtree(tmp_path / "cache" / "shards")
    web.files["/a/shard-000000.tar"] = web.files["/a/shard-000000.tar"][:-1] + b"x"
    del web.files["/a/shard-000001.tar"]
    report = verify_shards(url, remote=remote)
    assert [shard for shard, *_ in _faults(report)] == ["shard-000000.tar", "shard-000001.tar"]
    assert report.faults[0].what.startswith("has the sha256")
    assert "404" in report.faults[1].what
    assert report.samples == 6


def test_shards_at_urls_without_an_index_and_a_store_that_is_gone(folder, web, tmp_path):
    remote = RemoteOptions(cache_dir=str(tmp_path / "cache"), backoff=0, attempts=2, timeout=5)
    url = web.add_folder(folder, "a")
    del web.files["/a/index.json"]
    whole = web.files["/a/shard-000002.tar"]
    web.files["/a/shard-000002.tar"] = whole[:3000]
    braces = url + "shard-{000000..000002}.tar"
    report = verify_shards(braces, remote=remote)
    assert [shard for shard, *_ in _faults(report)] == ["shard-000002.tar"]
    assert "cache" not in report.faults[0].what
    assert report.notes
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 2  # the damaged copy does not stay
    web.files["/a/shard-000002.tar"] = whole
    assert verify_shards(braces, remote=remote).ok
    web.files["/a/index.json"], web.faults["/a/index.json"] = b"", [503] * 9
    with pytest.raises(FetchError):
        verify_shards(braces, remote=remote)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken=st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=3))
def test_exactly_the_broken_samples_are_named(tmp_path, broken):
    expected = []
    for shard, positions in enumerate(broken):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for number in range(5):
                key = f"{shard}{number}"
                for extension, data in (("cls", b"0"), ("jpg", b"xx" if number in positions else _jpeg(number))):
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        expected += [(f"{shard}.tar", f"{shard}{number}") for number in sorted(positions)]
    report = verify_shards([tmp_path / f"{shard}.tar" for shard in range(len(broken))])
    assert [(shard, key) for shard, key, _ in _faults(report)] == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.integers(0, 10_239), position=st.integers(0, 20_479), value=st.integers(0, 255))
def test_damage_of_any_kind_is_reported_and_never_raised(healthy, tmp_path, kept, position, value):
    data = bytearray((healthy / "shard-000000.tar").read_bytes())
    (tmp_path / "b.tar").write_bytes(data[:kept])
    assert not verify_shards(tmp_path / "b.tar").ok
    data[position] = value
    (tmp_path / "b.tar").write_bytes(data)
    report = verify_shards(tmp_path / "b.tar")
    try:
        open_index(tmp_path / "b.tar", write=False)
    except ShardError:
        assert not report.ok


@given(values=st.lists(st.integers(0, 4), max_size=30))
def test_repeats_equal_a_search_by_hand(values):
    digests = np.array([(value // 2, value % 2) for value in values], dtype=DIGEST_DTYPE)
    expected = [(values.index(value), at) for at, value in enumerate(values) if value in values[:at]]
    firsts, agains = _repeats(digests)
    assert list(zip(firsts.tolist(), agains.tolist(), strict=True)) == expected
