from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lightning_robust.errors import InputError, RobustError, ShardError
from lightning_robust.functional import laplacian_sharpen
from lightning_robust.shards import (
    RemoteOptions,
    Sample,
    SampleReader,
    Sharpening,
    decode_image,
    finish_robustify,
    open_index,
    pack,
    robustify,
    robustify_set,
    robustify_units,
)
from lightning_robust.shards.checksums import check_checksums
from lightning_robust.shards.sources import image_folder


@pytest.fixture
def source(tmp_path, samples):
    pack(samples[:20], tmp_path / "source", samples_per_shard=6, classes="abcde")
    return tmp_path / "source"


@pytest.fixture
def photos(tmp_path, make_png):
    for number in range(6):
        folder = tmp_path / "photos" / ("cat", "dog/young")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(make_png(number))
    (tmp_path / "photos" / "cat" / "notes.txt").write_bytes(b"by hand")
    (tmp_path / "photos" / "cat" / "Thumbs.db").write_bytes(b"small originals")
    return tmp_path / "photos"


def _files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def _members(path: Path) -> list[tuple[tarfile.TarInfo, bytes, bytes]]:
    """Every member with its raw header and its bytes, as tarfile finds them."""
    raw = path.read_bytes()
    with tarfile.open(path) as archive:
        return [
            (info, raw[info.offset : info.offset_data], raw[info.offset_data : info.offset_data + info.size])
            for info in archive
        ]


def _published(data: bytes, alpha: float = 0.15) -> np.ndarray:
    planes = torch.from_numpy(decode_image(data)).permute(2, 0, 1)
    return laplacian_sharpen(planes, alpha).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_sharpened_and_all_else_stays(tmp_path, make_png, format):
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    with tarfile.open(tmp_path / "a" / "s.tar", "w", format=format) as archive:
        for number in rng.permutation(9).tolist():
            extensions = ["seg.png", "PNG", "cls", "json", "unknown"]
            for extension in rng.permutation(extensions).tolist():
                data = make_png(number) if extension == "PNG" else rng.bytes(int(rng.integers(0, 1500)))
                data = str(number).encode() if extension == "cls" else data
                info = tarfile.TarInfo(f"folder/{number}.{extension}")
                info.size, info.mode = len(data), int(rng.choice([0o600, 0o644]))
                info.mtime = 1e9 + number + (0.5 if format == tarfile.PAX_FORMAT else 0)
                info.uname = "someone"
                archive.addfile(info, io.BytesIO(data))
    robustify(tmp_path / "a", tmp_path / "b")
    before, after = _members(tmp_path / "a" / "s.tar"), _members(tmp_path / "b" / "s.tar")
    assert [info.name for info, *_ in after] == [info.name for info, *_ in before]
    for (old, old_header, old_data), (new, new_header, new_data) in zip(before, after, strict=True):
        if old.name.endswith(".PNG"):
            np.testing.assert_array_equal(decode_image(new_data), _published(old_data))
            assert (new.mtime, new.mode, new.uname) == (old.mtime, old.mode, old.uname)
        else:
            assert (new_header, new_data) == (old_header, old_data)


def test_the_result_is_a_set_like_the_source(tmp_path, source):
    said = robustify(source, tmp_path / "out", sharpening=Sharpening(encode="webp", lossless=True))
    old, new = open_index(source), open_index(tmp_path / "out")
    assert new.labels.tolist() == old.labels.tolist()
    assert (new.classes, new.counts.tolist()) == (old.classes, old.counts.tolist())
    assert [Path(path).name for path in new.paths] == [Path(path).name for path in old.paths]
    assert check_checksums(new) == 4
    scanned = open_index(tmp_path / "out", rebuild=True, write=False)
    assert new.table.tolist() == scanned.table.tolist()
    with SampleReader(old) as before, SampleReader(new) as after:
        for was, now in zip(before.read(range(20)), after.read(range(20)), strict=True):
            assert now[8:12] == b"WEBP"
            np.testing.assert_array_equal(decode_image(now), _published(was))
    with tarfile.open(new.paths[0]) as archive:
        assert archive.getnames()[:2] == ["00000.webp", "00000.cls"] or archive.getnames()[:2] == [
            "00000.cls",
            "00000.webp",
        ]
    document = json.loads((tmp_path / "out" / "index.json").read_bytes())
    assert document["sharpened"] == {"alpha": 0.15, "psnr": None, "neighbors": 4, "manifest": "robustify.json"}
    assert said == json.loads((tmp_path / "out" / "robustify.json").read_bytes())
    assert not (tmp_path / "out" / ".robustify").exists()


def test_the_manifest_tells_what_was_done(tmp_path, source):
    said = robustify(source, tmp_path / "out", sharpening=Sharpening(alpha=0.3))
    assert said["parameters"]["alpha"] == 0.3
    assert said["source"] == {"kind": "shards", "samples": 20, "fingerprint": open_index(source).fingerprint}
    assert [(entry["name"], entry["samples"], entry["sha256"]) for entry in said["shards"]] == [
        (path.name, count, hashlib.sha256(path.read_bytes()).hexdigest())
        for path, count in zip(sorted((tmp_path / "out").glob("*.tar")), (6, 6, 6, 2), strict=True)
    ]
    with SampleReader(open_index(source)) as reader:
        pairs = [(decode_image(data).astype(float), _published(data, 0.3)) for data in reader.read(range(20))]
    psnr = np.array([10 * np.log10(255**2 / np.square(a - b).mean()) for a, b in pairs])
    found = said["statistics"]["psnr"]
    assert found["count"] == 20
    assert found["mean"] == pytest.approx(psnr.mean(), abs=1e-3)
    assert [found[name] for name in ("q1", "median", "q3")] == pytest.approx(
        np.quantile(psnr, [0.25, 0.5, 0.75]), abs=1e-3
    )
    assert found["worst"]["key"] == f"{psnr.argmin():05d}"
    assert said["statistics"]["linf"]["max"] == max(np.abs(a - b).max() for a, b in pairs)


def test_lossy_results_are_measured_in_part_and_unchanged_ones_apart(tmp_path, samples):
    flat = Sample("flat", np.full((8, 8, 3), 7, np.uint8), 0)
    pack([*samples[:9], flat], tmp_path / "a")
    said = robustify(tmp_path / "a", tmp_path / "b", sharpening=Sharpening(encode="jpeg", measure_every=4))[
        "statistics"
    ]
    assert (said["psnr"]["count"], said["psnr"]["unchanged"]) == (9, 1)
    assert said["written_linf"]["count"] == 3
    assert "ssim" not in said


def test_a_worker_process_writes_the_same(tmp_path, samples):
    pack(samples[:12], tmp_path / "source")
    one = robustify(tmp_path / "source", tmp_path / "one")
    assert robustify(tmp_path / "source", tmp_path / "two", workers=2) == one
    assert _files(tmp_path / "two") == _files(tmp_path / "one")


def test_a_worker_that_was_killed_is_an_error_that_says_so(tmp_path, source, monkeypatch):
    class Broken:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, *_):
            future = Future()
            future.set_exception(BrokenProcessPool("gone"))
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(robustify_set, "ProcessPoolExecutor", Broken)
    with pytest.raises(RobustError, match=r"worker process was killed.*run the same command again"):
        robustify(source, tmp_path / "out", workers=2)


_KILLED = """
import os, signal, sys
from lightning_robust.shards import robustify, robustify_units
sharpen, done = robustify_units.sharpen_encoded, []
def killed(images, options):
    for result in sharpen(images, options):
        done.append(1)
        if len(done) == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        yield result
robustify_units.sharpen_encoded = killed
robustify(sys.argv[1], sys.argv[2])
"""


def _count_images(monkeypatch) -> list[str]:
    sharpen, done = robustify_units.sharpen_encoded, []

    def counted(images, options):
        def seen():
            for where, data in images:
                done.append(where)
                yield where, data

        yield from sharpen(seen(), options)

    monkeypatch.setattr(robustify_units, "sharpen_encoded", counted)
    return done


def test_a_job_that_was_killed_goes_on_to_the_same_bytes(tmp_path, source, monkeypatch):
    arguments = [sys.executable, "-c", _KILLED, str(source), str(tmp_path / "out")]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    with pytest.raises(ShardError, match="No shard matches"):
        open_index(tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    with pytest.raises(InputError, match=r"unfinished job with another parameters \(alpha 0.15, now 0.2\)"):
        robustify(source, tmp_path / "out", sharpening=Sharpening(alpha=0.2))
    done = _count_images(monkeypatch)
    robustify(source, tmp_path / "out")
    assert len(done) == 20 - 12
    robustify(source, tmp_path / "whole")
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_shards_that_are_put_in_place_are_no_set_before_the_last(tmp_path, source, monkeypatch, moved):
    robustify(source, tmp_path / "whole")
    put_in_place, done = robustify_set.Job.put_in_place, []

    def killed(self, path):
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(path)
        put_in_place(self, path)

    monkeypatch.setattr(robustify_set.Job, "put_in_place", killed)
    with pytest.raises(KeyboardInterrupt):
        robustify(source, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(ShardError, match=r"missing|No shard matches"):
        open_index(tmp_path / "out")
    with pytest.raises(RobustError, match=r"sharpened already|No shard matches|missing"):
        robustify(tmp_path / "out", tmp_path / "again")
    images = _count_images(monkeypatch)
    robustify(source, tmp_path / "out")
    assert images == []
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


def test_another_source_does_not_go_on(tmp_path, source, samples):
    robustify(source, tmp_path / "out", share=(1, 2))
    pack(samples[:19], tmp_path / "other", samples_per_shard=6)
    with pytest.raises(InputError, match="unfinished job with another source"):
        robustify(tmp_path / "other", tmp_path / "out")


def test_a_finished_shard_that_was_cut_is_written_again(tmp_path, source, monkeypatch):
    robustify(source, tmp_path / "whole")
    robustify(source, tmp_path / "out", share=(1, 4))
    cut = tmp_path / "out" / ".robustify" / "files" / "shard-000000.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    images = _count_images(monkeypatch)
    robustify(source, tmp_path / "out")
    assert len(images) == 20
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


def test_shares_are_put_together_when_all_are_done(tmp_path, source):
    robustify(source, tmp_path / "whole")
    for k in (3, 1):
        assert robustify(source, tmp_path / "out", share=(k, 3)) is None
    with pytest.raises(InputError, match=r"1 of 4 parts .* not done, the first is 'shard-000001.tar'"):
        finish_robustify(tmp_path / "out")
    with pytest.raises(ShardError, match="No shard matches"):
        open_index(tmp_path / "out")
    robustify(source, tmp_path / "out", share=(2, 3))
    finish_robustify(tmp_path / "out")
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")
    with pytest.raises(InputError, match="no unfinished job"):
        finish_robustify(source.parent / "nothing")
    for share in ((0, 3), (4, 3)):
        with pytest.raises(InputError, match="expected a share from 1/3 to 3/3"):
            robustify(source, tmp_path / "new", share=share)


@pytest.mark.parametrize("left", ["robustify.json", "index.json"])
def test_a_sharpened_set_is_refused(tmp_path, source, left):
    robustify(source, tmp_path / "out")
    for name in {"robustify.json", "index.json"} - {left}:
        (tmp_path / "out" / name).unlink()
    with pytest.raises(InputError, match=f"sharpened already.*{left} says.*original"):
        robustify(tmp_path / "out" / "shard-000000.tar", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_mark_outlives_a_new_index(tmp_path, source):
    robustify(source, tmp_path / "out")
    (tmp_path / "out" / "robustify.json").unlink()
    open_index(tmp_path / "out", rebuild=True)
    with pytest.raises(InputError, match="sharpened already"):
        robustify(tmp_path / "out", tmp_path / "again")


def test_shards_at_a_url(tmp_path, source, web):
    remote = RemoteOptions(cache_dir=str(tmp_path / "cache"), backoff=0)
    robustify(web.add_folder(source, "a"), tmp_path / "out", remote=remote)
    robustify(source, tmp_path / "near")
    assert _files(tmp_path / "out").keys() == _files(tmp_path / "near").keys()
    for name, data in _files(tmp_path / "near").items():
        assert name == "robustify.json" or _files(tmp_path / "out")[name] == data
    with pytest.raises(InputError, match="sharpened already, as the key 'sharpened' of its index"):
        robustify(web.add_folder(tmp_path / "out", "b"), tmp_path / "again", remote=remote)


def test_a_broken_image_is_named_and_nothing_looks_whole(tmp_path, samples):
    jpeg = bytes(cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1])
    broken = Sample("bad", jpeg[:200] + b"\xff\xd9", 0, "jpg")
    pack([*samples[:9], broken], tmp_path / "a", samples_per_shard=4)
    with pytest.raises(ShardError, match=r"image of sample 'bad' of shard '.*shard-000002\.tar'.* cannot be decoded"):
        robustify(tmp_path / "a", tmp_path / "b")
    assert not [path for path in (tmp_path / "b").iterdir() if not path.name.startswith(".")]
    assert sorted(path.name for path in (tmp_path / "b" / ".robustify" / "files").iterdir()) == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]


def test_a_shard_that_is_not_as_its_index_says(tmp_path, make_png):
    large, small = Sample("large", make_png(1, size=24), 0), Sample("small", make_png(2, size=4), 1)
    pack([large, small], tmp_path / "a")
    pack([small, large], tmp_path / "b")
    shutil.copy(tmp_path / "b" / "shard-000000.tar", tmp_path / "a")
    with pytest.raises(
        ShardError, match=r"shard-000000\.tar'.*(holds 1 images where the index says 2|cannot be decoded)"
    ):
        robustify(tmp_path / "a", tmp_path / "out")
    assert not list((tmp_path / "out" / ".robustify" / "files").iterdir())


def test_a_full_disk_leaves_no_part(tmp_path, source, monkeypatch):
    sync, synced = os.fsync, []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) > 5:  # the job, the first shard, and the three files of its record
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        robustify(source, tmp_path / "b")
    assert [path.name for path in (tmp_path / "b" / ".robustify" / "files").iterdir()] == ["shard-000000.tar"]
    monkeypatch.undo()
    robustify(source, tmp_path / "b")
    robustify(source, tmp_path / "whole")
    assert _files(tmp_path / "b") == _files(tmp_path / "whole")


def test_destinations_that_are_not_free(tmp_path, source):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_bytes(b"")
    for place in (tmp_path / "full", source):
        before = _files(place)
        with pytest.raises(InputError, match="not empty"):
            robustify(source, place)
        assert _files(place) == before
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        robustify(source, tmp_path / "file")
    robustify(source, tmp_path / "out")
    with pytest.raises(InputError, match="finished set"):
        robustify(source, tmp_path / "out")


def test_a_second_image_in_a_sample_is_not_taken_for_the_first(tmp_path, write_tar, make_png):
    (tmp_path / "a").mkdir()
    jpeg = bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1])
    write_tar(tmp_path / "a" / "s.tar", [("x.jpg", jpeg), ("x.png", make_png()), ("x.cls", b"0")])
    for encode in ("png", "webp"):
        with pytest.raises(InputError, match=rf"'x'.*'\.png' besides its image, which would become '\.{encode}'"):
            robustify(tmp_path / "a", tmp_path / "b", sharpening=Sharpening(encode=encode))
        shutil.rmtree(tmp_path / "b")
    robustify(tmp_path / "a", tmp_path / "b")


def test_members_of_other_names(tmp_path, write_tar, make_png):
    (tmp_path / "a").mkdir()
    write_tar(tmp_path / "a" / "s.tar", [("x.left.png", make_png(1)), ("x.right.png", make_png(2))])
    options = {"image_keys": ["left.png"], "label_key": None}
    robustify(tmp_path / "a", tmp_path / "b", sharpening=Sharpening(encode="webp", lossless=True), **options)
    (left, _, data), (right, _, kept) = _members(tmp_path / "b" / "s.tar")
    assert (left.name, right.name, kept) == ("x.left.webp", "x.right.png", make_png(2))
    np.testing.assert_array_equal(decode_image(data), _published(make_png(1)))
    index = open_index(tmp_path / "b", image_keys=["left.webp"], label_key=None, write=False)
    assert SampleReader(index).read([0]) == [data]


def test_two_shards_of_one_name(tmp_path, source, samples):
    pack(samples[30:34], tmp_path / "more")
    with pytest.raises(InputError, match=r"Two shards have the name 'shard-000000\.tar'"):
        robustify([source, tmp_path / "more"], tmp_path / "out")


def test_image_folders(tmp_path, photos, make_png):
    said = robustify(photos, tmp_path / "out")
    written = _files(tmp_path / "out")
    assert written.keys() - {"robustify.json"} == _files(photos).keys() - {"cat/Thumbs.db"}
    for path, data in _files(photos).items():
        if path.endswith(".png"):
            np.testing.assert_array_equal(decode_image(written[path]), _published(data))
    assert written["cat/notes.txt"] == b"by hand"
    cat, dog = said["folder"]
    lines = [f"{hashlib.sha256(written[f'dog/young/{n}.png']).hexdigest()}  {n}.png\n" for n in (1, 3, 5)]
    assert dog == {
        "name": "dog/young",
        "samples": 3,
        "files": 3,
        "size": sum(len(written[f"dog/young/{n}.png"]) for n in (1, 3, 5)),
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }
    assert (cat["samples"], cat["files"]) == (3, 4)
    (tmp_path / "out" / "cat" / "notes.txt").unlink()
    assert len(image_folder(tmp_path / "out")) == 6
    with pytest.raises(InputError, match="sharpened already"):
        robustify(tmp_path / "out", tmp_path / "again")


def test_image_folders_go_on_where_they_stopped(tmp_path, photos, monkeypatch):
    robustify(photos, tmp_path / "whole", sharpening=Sharpening(encode="jpeg"))
    assert "cat/0.jpg" in _files(tmp_path / "whole")
    robustify(photos, tmp_path / "out", sharpening=Sharpening(encode="jpeg"), share=(1, 2))
    images = _count_images(monkeypatch)
    robustify(photos, tmp_path / "out", sharpening=Sharpening(encode="jpeg"))
    assert len(images) == 3
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


def test_image_folders_that_cannot_be_done(tmp_path, photos, make_png):
    for inside in (photos / "below", photos.parent):
        with pytest.raises(InputError, match=r"lie in one another|not empty"):
            robustify(photos, inside)
    (photos / "cat" / "0.jpg").write_bytes(bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1]))
    with pytest.raises(InputError, match=r"would be named '0\.png'"):
        robustify(photos, tmp_path / "out", sharpening=Sharpening(encode="png"))
    (photos / "cat" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(ShardError, match=r"cat/0\.jpg.*cannot be decoded"):
        robustify(photos, tmp_path / "out2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither shards"):
        robustify(tmp_path / "empty", tmp_path / "out3")
