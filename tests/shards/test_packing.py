from __future__ import annotations

import multiprocessing
import os
import signal
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import Sample, SampleReader, decode_image, open_index, pack
from lightning_robust.shards.checksums import check_checksums

NO_FIXTURE_CHECK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_tarfile_reads_what_was_packed(tmp_path, samples):
    index = pack(samples, tmp_path, samples_per_shard=20)
    read = {}
    for path in index.paths:
        with tarfile.open(path) as archive:
            read |= {info.name: archive.extractfile(info).read() for info in archive}
    expected = {f"{sample.key}.png": sample.image for sample in samples}
    expected |= {f"{sample.key}.cls": str(sample.target).encode() for sample in samples}
    assert read == expected


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_what_was_packed(tmp_path, samples):
    index = pack(samples, tmp_path, samples_per_shard=20)
    read = list(webdataset.WebDataset(list(index.paths), shardshuffle=False))
    assert [(s["__key__"], s["png"], int(s["cls"])) for s in read] == [(s.key, s.image, s.target) for s in samples]


def test_arrays_survive_without_loss(tmp_path):
    rng = np.random.default_rng(0)
    color, gray = rng.integers(0, 256, (9, 5, 3), dtype=np.uint8), rng.integers(0, 256, (9, 5), dtype=np.uint8)
    index = pack([Sample("a", color, 0), Sample("b", gray, 1)], tmp_path)
    with SampleReader(index) as reader:
        first, second = reader.read([0, 1])
    np.testing.assert_array_equal(decode_image(first), color)
    np.testing.assert_array_equal(decode_image(second), np.repeat(gray[..., None], 3, axis=2))


def test_encoded_images_keep_bytes_and_extension(tmp_path):
    jpeg = bytes(cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1])
    index = pack([Sample("a", jpeg, 0, "JPEG")], tmp_path)
    with tarfile.open(index.paths[0]) as archive:
        assert archive.getnames() == ["a.cls", "a.jpeg"]
    assert SampleReader(index).read([0]) == [jpeg]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_the_extension_is_that_of_the_bytes(tmp_path, extension):
    encoded = bytes(cv2.imencode(f".{extension}", np.zeros((4, 4, 3), np.uint8))[1])
    index = pack([Sample("a", encoded, 0)], tmp_path / "set")
    with tarfile.open(index.paths[0]) as archive:
        assert archive.getnames() == ["a.cls", f"a.{extension}"]
    for other in {"jpg", "jpeg", "png", "webp"} - ({"jpg", "jpeg"} if extension == "jpg" else {extension}):
        with pytest.raises(InputError, match=f"'a' has the extension '{other}', and its bytes .* {extension} file"):
            pack([Sample("a", encoded, 0, other)], tmp_path / "other")


@NO_FIXTURE_CHECK
@given(count=st.integers(1, 64), per_shard=st.integers(1, 70), max_bytes=st.none() | st.integers(1, 9000))
def test_shards_keep_their_limits_and_nothing_is_lost(count, per_shard, max_bytes, samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    index = pack(samples[:count], folder, samples_per_shard=per_shard, max_bytes=max_bytes)
    assert len(index) == count
    assert index.labels.tolist() == [sample.target for sample in samples[:count]]
    assert index.counts.max() <= per_shard
    if max_bytes is None:
        assert len(index.paths) == -(-count // per_shard)
    else:
        for path, samples_in_it in zip(index.paths, index.counts, strict=True):
            with tarfile.open(path) as archive:
                content = sum(512 + -(-info.size // 512) * 512 for info in archive)
            assert content <= max_bytes or samples_in_it == 1


def test_same_samples_same_bytes(tmp_path, samples):
    for name in ("a", "b"):
        pack(samples, tmp_path / name, samples_per_shard=20, shuffle_seed=3)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


class _Counting(Sequence):
    """Counts how many of its items are alive at once."""

    def __init__(self, items):
        self.items = items
        self.asked = []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        self.asked.append(position)
        return self.items[position]


def test_shuffle_is_a_permutation_that_the_seed_decides(tmp_path, samples):
    orders = {}
    for seed in (None, 0, 1):
        source = _Counting(samples)
        pack(source, tmp_path / str(seed), shuffle_seed=seed)
        orders[seed] = [position for position in source.asked if position < 64]
        assert Counter(orders[seed]) == Counter(range(64))
    assert orders[None] == list(range(64))
    assert orders[0] != orders[1] != orders[None] != orders[0]
    pack(iter(samples), tmp_path / "iterator", shuffle_seed=1)
    assert _files(tmp_path / "iterator") == _files(tmp_path / "1")


def test_existing_shards_are_replaced_only_on_request(tmp_path, samples):
    pack(samples, tmp_path, samples_per_shard=10)
    pack(samples[:5], tmp_path, name="val")
    before = _files(tmp_path)
    with pytest.raises(InputError, match=r"holds 7 shards named 'shard' already.*overwrite"):
        pack(samples, tmp_path)
    assert _files(tmp_path) == before
    pack(samples[:12], tmp_path, samples_per_shard=6, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [
        "shard-000000.tar",
        "shard-000001.tar",
        "val-000000.tar",
    ]
    assert open_index(tmp_path).counts.tolist() == [6, 6, 5]


def test_classes_belong_to_the_folder(tmp_path, samples):
    assert pack(samples, tmp_path, classes="abcde").classes == ("a", "b", "c", "d", "e")
    with pytest.raises(InputError, match="other class names"):
        pack(samples, tmp_path, name="val", classes="fghij")
    assert pack(samples, tmp_path, name="val").classes == ("a", "b", "c", "d", "e")
    with pytest.raises(InputError, match=r"target of sample 'x' is 5, expected 0 to 4 \(5 classes\)"):
        pack([Sample("x", samples[0].image, 5)], tmp_path, name="test")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "a.b"}, "cut it at a dot"),
        ({"key": "../a"}, "must be made of"),
        ({"key": "/a"}, "must be made of"),
        ({"key": ""}, "must be made of"),
        ({"key": "a\n"}, "must be made of"),
        ({"key": "k" * 91}, "at most 90"),
        ({"key": "00000"}, "'00000' occurs twice"),
        ({"target": -1}, "is -1, expected 0 or more"),
        ({"image": b"no image"}, "'x' is not an image"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, r"array float32 \(4, 4, 3\), expected uint8"),
        ({"image": np.zeros((4, 4, 4), np.uint8)}, "expected uint8"),
        ({"extension": "gif"}, "'gif', expected one of jpg, jpeg, png, webp"),
    ],
)
def test_bad_samples_leave_nothing(tmp_path, samples, change, said):
    bad = Sample(**({"key": "x", "image": samples[0].image, "target": 0} | change))
    with pytest.raises(InputError, match=said):
        pack([*samples, bad], tmp_path, samples_per_shard=8)
    assert _files(tmp_path) == {}
    assert not list(tmp_path.glob(".pack-*"))


@pytest.mark.parametrize(
    "options", [{"samples_per_shard": 0}, {"max_bytes": 0}, {"name": "a/b"}, {"name": "a%d"}, {"name": ""}]
)
def test_bad_options_write_nothing(tmp_path, samples, options):
    with pytest.raises(InputError):
        pack(samples, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_no_samples(tmp_path):
    with pytest.raises(InputError, match="no samples to pack"):
        pack([], tmp_path)


def test_a_source_that_fails_leaves_the_old_set_whole(tmp_path, samples):
    pack(samples, tmp_path, samples_per_shard=10)
    before = _files(tmp_path)

    def failing():
        yield from samples[:35]
        raise RuntimeError("the disk of the source is gone")

    with pytest.raises(RuntimeError, match="source is gone"):
        pack(failing(), tmp_path, samples_per_shard=10, overwrite=True)
    assert _files(tmp_path) == before
    assert not list(tmp_path.glob(".pack-*"))


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_pack_killed_while_its_shards_are_put_in_place_is_noticed(tmp_path, samples, moved, monkeypatch):
    replace, done = Path.replace, []

    def killed(self, target):
        if self.suffix == ".tar":
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(samples, tmp_path, samples_per_shard=16)
    monkeypatch.undo()
    with pytest.raises(ShardError, match=r"missing|No shard matches"):
        open_index(tmp_path)


def _pack_and_die(folder, samples):
    def source():
        yield from samples[:50]
        os.kill(os.getpid(), signal.SIGKILL)

    pack(source(), folder, samples_per_shard=10)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_pack_that_was_killed_leaves_no_shard_and_the_next_cleans_up(tmp_path, samples):
    process = multiprocessing.get_context("fork").Process(target=_pack_and_die, args=(tmp_path, samples))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".pack-*"))) == 1
    with pytest.raises(ShardError, match="No shard matches"):
        open_index(tmp_path)
    assert len(pack(samples, tmp_path)) == 64
    assert not list(tmp_path.glob(".pack-*"))


def test_checksums_find_damage_that_a_header_walk_cannot(tmp_path, samples):
    index = pack(samples, tmp_path, samples_per_shard=40)
    assert check_checksums(index) == 2
    _, offsets, sizes = index.locate([3])
    with open(index.paths[0], "r+b") as file:  # noqa: PTH123
        file.seek(int(offsets[0] + sizes[0]) - 9)
        file.write(b"\xff")
    index = open_index(tmp_path)
    with pytest.raises(ShardError, match=r"shard-000000\.tar' has the SHA-256"):
        check_checksums(index)
