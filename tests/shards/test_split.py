from __future__ import annotations

import errno
import json
import os
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import RemoteOptions, Sample, SampleReader, open_index, pack, split_shards
from lightning_robust.shards.copying import stored_samples
from lightning_robust.shards.robustify_set import plan_robustify

SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HALVES = {"train": 0.75, "val": 0.25}


def read(*paths) -> list[tuple[str, bytes]]:
    """Members of shards in order, by Python's tarfile."""
    members = []
    for path in paths:
        with tarfile.open(path) as archive:
            members += [(info.name, archive.extractfile(info).read()) for info in archive if info.isfile()]
    return members


def keys(*paths) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name, _ in read(*paths)))


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def packed(tmp_path, samples):
    return pack(samples, tmp_path / "all", samples_per_shard=20, classes="abcde")


@SLOW
@given(
    count=st.integers(10, 64),
    per_shard=st.integers(1, 40),
    share=st.fractions(0.1, 0.9),
    stratify=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_sample_goes_to_one_part(count, per_shard, share, stratify, seed, samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    source = pack(samples[:count], folder / "all", samples_per_shard=20)
    fractions = {"a": share, "b": 1 - share}
    drawn = {"seed": seed, "stratify": stratify, "samples_per_shard": per_shard}
    parts = split_shards(folder / "all", folder / "parts", fractions, **drawn)
    whole = read(*source.paths)
    found = {name: read(*index.paths) for name, index in parts.items()}
    assert sorted(found["a"] + found["b"]) == sorted(whole)
    for name, members in found.items():
        assert members == [member for member in whole if member in members], "in the order of the source"
        assert abs(len(parts[name]) - count * fractions[name]) < 1
        assert parts[name].counts.max() <= per_shard
        histogram = Counter(parts[name].labels.tolist())
        for label, size in Counter(source.labels.tolist()).items() if stratify else ():
            assert abs(histogram[label] - size * fractions[name]) < 1


def test_all_members_go_along(tmp_path, write_tar, make_png):
    """Unknown ones too, with long names and names that are not ASCII; what is of no sample stays behind."""
    long, umlaut = "deep/" * 60 + "n" * 90, "größe/größe"
    samples = [
        [
            (f"{key}.PNG", make_png(number)),
            (f"{key}.cls", b"1"),
            (f"{key}.seg.npy", b"\x93NUMPY" * 300),
            (f"{key}.txt", b""),
        ]
        for number, key in enumerate((long, umlaut, "plain", "d/e.f/g"))
    ]
    members = [(".hidden", b"x"), *samples[0], ("README", b"no sample"), *samples[1], *samples[2], *samples[3]]
    (tmp_path / "all").mkdir()
    write_tar(tmp_path / "all" / "s.tar", members, format=tarfile.GNU_FORMAT)
    parts = split_shards(tmp_path / "all", tmp_path / "parts", {"a": 0.5, "b": 0.5}, seed=1)
    found = read(*parts["a"].paths, *parts["b"].paths)
    assert sorted(found) == sorted(member for sample in samples for member in sample)
    for sample in samples:
        start = found.index(sample[0])
        assert found[start : start + 4] == sample, "adjacent and in order"


def test_the_seed_decides(tmp_path, packed):
    drawn = {}
    for number, seed in enumerate((0, 0, 1)):
        parts = split_shards(tmp_path / "all", tmp_path / str(number), HALVES, seed=seed)
        drawn[number] = keys(*parts["val"].paths)
    assert files(tmp_path / "0") == files(tmp_path / "1"), "the same bytes"
    assert drawn[0] != drawn[2]
    assert drawn[0] != [f"{number:05d}" for number in range(16)], "a draw, not the first"


def test_parts_are_sets(tmp_path, packed):
    parts = split_shards(
        tmp_path / "all", tmp_path / "parts", HALVES, stratify=True, samples_per_shard=20, max_bytes=9000
    )
    assert parts["val"].classes == packed.classes
    again = open_index(str(tmp_path / "parts" / "val-*.tar"))
    assert again.fingerprint == parts["val"].fingerprint
    assert open_index(tmp_path / "parts").counts.sum() == 64
    for path in parts["train"].paths:
        assert Path(path).stat().st_size <= 9000 + 1024
    with SampleReader(parts["val"]) as reader, SampleReader(packed) as source:
        ids = [int(key) for key in keys(*parts["val"].paths)]
        assert reader.read(range(16)) == source.read(ids)
    assert json.loads((tmp_path / "parts" / "index.json").read_text())["shardlist"][0]["sha256"]
    assert not list((tmp_path / "all").glob(".*.part"))


def test_a_set_without_labels(tmp_path, write_tar, make_png):
    (tmp_path / "all").mkdir()
    write_tar(tmp_path / "all" / "s.tar", [(f"{number}.png", make_png(number)) for number in range(8)])
    parts = split_shards(tmp_path / "all", tmp_path / "parts", HALVES, label_key=None)
    assert {name: len(index) for name, index in parts.items()} == {"train": 6, "val": 2}
    with pytest.raises(InputError, match="without labels cannot be stratified"):
        split_shards(tmp_path / "all", tmp_path / "more", HALVES, label_key=None, stratify=True)


def test_a_set_at_a_url(tmp_path, packed, web):
    remote = RemoteOptions(cache_dir=tmp_path / "cache", cache_bytes=1)
    parts = split_shards(web.add_folder(tmp_path / "all", "all"), tmp_path / "parts", HALVES, remote=remote)
    local = split_shards(tmp_path / "all", tmp_path / "local", HALVES)
    assert read(*parts["val"].paths) == read(*local["val"].paths)


@pytest.mark.parametrize(
    ("fractions", "said"),
    [
        ({}, "are none and sum to 0"),
        ({"a": 0.5, "b": 0.4}, "a=0.5, b=0.4 and sum to 0.9; expected positive ones that sum to 1"),
        ({"a": 1.5, "b": -0.5}, "expected positive ones"),
        ({"a": 1.0, "b": 0}, "expected positive ones"),
        ({"a": float("nan"), "b": 1}, "must be numbers"),
        ({"a": 0.999, "b": 0.001}, "part 'b' with the fraction 0.001 of 64 samples would be empty"),
        ({"a.*": 0.5, "b": 0.5}, r"name 'a\.\*' must be made of letters"),
    ],
)
def test_bad_fractions_write_nothing(tmp_path, packed, fractions, said):
    with pytest.raises(InputError, match=said):
        split_shards(tmp_path / "all", tmp_path / "parts", fractions)
    assert not (tmp_path / "parts").exists()


def test_thirds_as_floats_are_taken(tmp_path, packed):
    parts = split_shards(tmp_path / "all", tmp_path / "parts", dict.fromkeys("abc", 1 / 3))
    assert sorted(len(index) for index in parts.values()) == [21, 21, 22]


def test_existing_shards_are_replaced_only_on_request(tmp_path, packed):
    split_shards(tmp_path / "all", tmp_path / "parts", HALVES, samples_per_shard=10)
    before = files(tmp_path / "parts")
    with pytest.raises(InputError, match=r"holds 2 shards named 'val' already.*--overwrite"):
        split_shards(tmp_path / "all", tmp_path / "parts", {"rest": 0.9, "val": 0.1})
    assert files(tmp_path / "parts") == before
    split_shards(tmp_path / "all", tmp_path / "parts", HALVES, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.tar")) == ["train-000000.tar", "val-000000.tar"]
    with pytest.raises(InputError, match=r"holds a shard of the source.*Choose another folder"):
        split_shards(tmp_path / "all", tmp_path / "all", HALVES)


@pytest.mark.parametrize("moved", [0, 1])
def test_a_split_that_was_killed_shows_no_smaller_set(tmp_path, packed, moved, monkeypatch):
    replace_, done = Path.replace, []

    def killed(self, target):
        if self.suffix == ".tar":
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(self)
        return replace_(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        split_shards(tmp_path / "all", tmp_path / "parts", HALVES)
    monkeypatch.undo()
    for shards in (tmp_path / "parts", str(tmp_path / "parts" / "val-*.tar")):
        with pytest.raises(ShardError, match=r"missing|No shard matches"):
            open_index(shards)


def test_a_source_that_fails_half_way_leaves_nothing(tmp_path, packed):
    path = Path(packed.paths[2])
    path.write_bytes(path.read_bytes()[:-20_000].ljust(path.stat().st_size, b"\0"))
    with pytest.raises(ShardError, match=r"shard-000002\.tar"):
        split_shards(tmp_path / "all", tmp_path / "parts", HALVES)
    assert files(tmp_path / "parts") == {}
    assert not list((tmp_path / "parts").glob(".pack-*"))


def test_a_full_disk_leaves_nothing(tmp_path, packed, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        split_shards(tmp_path / "all", tmp_path / "parts", HALVES, samples_per_shard=5)
    assert files(tmp_path / "parts") == {}
    assert not list((tmp_path / "parts").glob(".pack-*"))


@pytest.mark.parametrize(
    ("counts", "said"), [([20, 21, 19], "fewer samples than the 21"), ([20, 19, 21], "more samples")]
)
def test_a_shard_with_other_samples_than_the_index_says(packed, counts, said):
    index = replace(packed, counts=np.array([*counts, 4]))
    with pytest.raises(ShardError, match=f"shard-000001.*{said}"):
        list(stored_samples(index))


def test_parts_of_a_sharpened_set_are_marked(tmp_path, packed):
    document = json.loads((tmp_path / "all" / "index.json").read_text())
    (tmp_path / "all" / "index.json").write_text(json.dumps({**document, "sharpened": {"alpha": 0.15}}))
    split_shards(tmp_path / "all", tmp_path / "parts", HALVES)
    with pytest.raises(InputError, match="is sharpened already"):
        plan_robustify(tmp_path / "parts", tmp_path / "twice")
    with pytest.raises(InputError, match="were not sharpened as these are"):
        pack([Sample("x", np.zeros((4, 4, 3), np.uint8), 0)], tmp_path / "parts", name="more")
