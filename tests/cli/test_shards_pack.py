"""The pack command finds out what it was given."""

from __future__ import annotations

import json

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
