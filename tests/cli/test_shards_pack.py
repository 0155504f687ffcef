"""The pack command finds out what it was given."""

from __future__ import annotations

import json
import shlex

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from lightning_robust.cli.shards import main
from lightning_robust.shards import open_index


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))


def _jsonl(home):
    _image(home / "a.png")
    (home / "list.jsonl").write_text(json.dumps({"path": "a.png", "label": "wasp"}))
    return home / "list.jsonl"


def _parquet(home):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra lightning-robust[parquet])")
    parquet = pytest.importorskip("pyarrow.parquet")
    _image(home / "a.png")
    parquet.write_table(arrow.table({"path": ["a.png"], "label": ["wasp"]}), home / "list.parquet")
    return home / "list.parquet"


def _svhn(home):
    for name, label in (("train", 10), ("test", 7)):
        savemat(
            home / f"{name}_32x32.mat", {"X": np.zeros((32, 32, 3, 1), np.uint8), "y": np.array([[label]], np.uint8)}
        )
    return home


def _svhn_file(home):
    return _svhn(home) / "test_32x32.mat"


def _tiny(home):
    (home / "wnids.txt").write_text("n01\n")
    (home / "words.txt").write_text("n01\tfrog\n")
    _image(home / "train/n01/images/n01_0.JPEG")
    _image(home / "val/images/val_0.JPEG")
    (home / "val/val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t7\t7\n")
    return home


DIGITS = tuple("0123456789")


@pytest.mark.parametrize(
    ("make", "options", "label", "classes"),
    [
        (_jsonl, [], 0, ("wasp",)),
        (_parquet, [], 0, ("wasp",)),
        (_svhn, [], 0, DIGITS),
        (_svhn, ["--split", "test"], 7, DIGITS),
        (_svhn_file, [], 7, DIGITS),
        (_tiny, [], 0, ("frog",)),
        (_tiny, ["--split", "test"], 0, ("frog",)),
    ],
)
def test_formats_are_recognized(make, options, label, classes, tmp_path):
    (tmp_path / "source").mkdir()
    source = make(tmp_path / "source")
    assert main(["pack", str(source), str(tmp_path / "set"), *options]) == 0
    index = open_index(tmp_path / "set")
    assert index.labels.tolist() == [label]
    assert index.classes == classes


def test_class_names_are_refused_where_the_source_has_its_own(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("zero\n")
    assert main(["pack", str(_svhn(tmp_path)), str(tmp_path / "set"), "--classes", str(tmp_path / "classes.txt")]) == 1
    assert "a source of format svhn has its own" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_splits_that_are_taken_for_classes_are_pointed_out(tmp_path, capsys):
    for split in ("train", "val"):
        _image(tmp_path / "photos" / split / "0.png")
    assert main(["pack", str(tmp_path / "photos"), str(tmp_path / "shards"), "--dry-run"]) == 0
    assert "train, val" in capsys.readouterr().err


def _cut_photos(home):
    rng = np.random.default_rng(0)
    for name in ("cat/a", "cat/b", "dog/c"):
        (home / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(home / "photos" / f"{name}.jpg"), rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    cut = home / "photos" / "cat" / "b.jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    return str(home / "photos")


def test_pack_says_what_decodes_the_images(tmp_path, capsys):
    photos, target = _cut_photos(tmp_path), tmp_path / "my set"
    assert main(["pack", photos, str(target)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"lightning-robust shards verify '{target}'")
    assert main(shlex.split(last.partition("lightning-robust shards ")[2])) == 1
    assert "Check the source, then pack it again." in capsys.readouterr().out
    assert main(["pack", photos, str(tmp_path / "plain"), "--no-labels"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("/plain --no-labels")


@pytest.mark.parametrize("options", [["--check"], ["--check", "--dry-run"], ["--check", "--shuffle-seed", "0"]])
def test_a_checked_pack_refuses_a_damaged_image(tmp_path, capsys, options):
    photos = _cut_photos(tmp_path)
    assert main(["pack", photos, str(tmp_path / "set"), *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"'{photos}/cat/b.jpg'" in said
    assert "Mend it or take it away." in said
    assert ("in 1 of 3 samples" in said) == ("--dry-run" in options)
    assert not list((tmp_path / "set").glob("*.tar"))
    (tmp_path / "photos" / "cat" / "b.jpg").unlink()
    assert main(["pack", photos, str(tmp_path / "set"), *options]) == 0
    captured = capsys.readouterr()
    assert "2 samples" in captured.out
    assert "verify" not in captured.out


def test_what_is_not_there_is_one_sentence(tmp_path, capsys, monkeypatch):
    _image(tmp_path / "photos" / "train" / "cat" / "0.png")
    (tmp_path / "list.txt").write_text("path,label\nphotos/train/cat/0.png,cat\n")
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "photos/trainn", "set"]) == 1
    assert "There is no 'photos/trainn'. Did you mean 'train'?" in capsys.readouterr().err
    assert main(["pack", "none/at/all", "set"]) == 1
    assert "There is no 'none/at/all'. Check the path." in capsys.readouterr().err
    assert main(["pack", "list.txt", "set"]) == 1
    assert "'list.txt' is a file whose name does not say what it is. For a list give --format csv" in (
        capsys.readouterr().err
    )
    assert main(["pack", "photos/train", "set", "--classes", "classes.txt"]) == 1
    assert (
        "--classes 'classes.txt' cannot be read (No such file or directory). Give a text file with one class name"
        in (capsys.readouterr().err)
    )
    assert not (tmp_path / "set").exists()
    assert main(["pack", "list.txt", "set", "--format", "csv"]) == 0
    assert "1 sample in 1 shard," in capsys.readouterr().out
