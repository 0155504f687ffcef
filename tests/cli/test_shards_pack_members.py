"""The pack command packs masks and boxes that a list or a folder names."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from lightning_robust.cli.shards import main
from lightning_robust.datamodules import ShardLoader
from lightning_robust.shards import open_index

MEMBERS = ["--member", "seg.png=mask", "--member", "boxes.json=annotation"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(4):
        for folder, channels in (("images", (3,)), ("masks", ())):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(f"{folder}/{number}.png", np.full((8, 8, *channels), number, np.uint8))
        annotation = {"boxes": [[0, 0, 4, 4]], "labels": [number]}
        rows.append({"path": f"images/{number}.png", "mask": f"masks/{number}.png", "annotation": annotation})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def _masks(folder):
    index = open_index(folder, label_key=None, members=["seg.png"])
    loader = ShardLoader(index, batch_size=4, targets={"mask": "seg.png"}, purpose="evaluate")
    return next(iter(loader)).target


@pytest.mark.parametrize(
    "source", [["list.jsonl", *MEMBERS], ["images", "--masks", "masks"]], ids=["a list", "a folder"]
)
def test_packed_masks_are_targets(source, home, capsys):
    command = ["pack", source[0], "set", "--no-labels", *source[1:]]
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Would write 4 samples" in out
    assert ", no target." in out
    assert "member seg.png: 4" in out
    assert not (home / "set").exists()
    assert main(command) == 0
    expected = np.arange(4)[:, None, None] * np.ones((8, 8), np.int64)
    np.testing.assert_array_equal(_masks("set"), expected)
    assert main(["verify", "set", "--no-labels"]) == 0


def test_a_dry_run_reads_and_counts_what_is_broken(home, capsys):
    for number in (1, 3):
        (home / f"masks/{number}.png").write_bytes(b"")
    assert main(["pack", "list.jsonl", "set", "--no-labels", *MEMBERS, "--dry-run"]) == 1
    said = capsys.readouterr().err
    assert "line 2: the member 'seg.png' ('masks/1.png')" in said
    assert "Such faults are in 2 of 4 samples." in said
    assert not (home / "set").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["list.jsonl", *MEMBERS], "has no column 'label'"),
        (["list.jsonl", "--no-labels", *MEMBERS, "--member", "seg.png=path"], "seg.png=... is given twice"),
        (["list.jsonl", "--no-labels", "--masks", "masks"], "Lists take --member"),
        (["images", "--no-labels", *MEMBERS], "names a column of a list"),
        (["images", "--no-labels", "--masks", "nowhere"], "Give the folder of the masks"),
        (["images", "--no-labels", "--format", "cifar"], "a source of format cifar has labels"),
    ],
)
@pytest.mark.usefixtures("home")
def test_options_that_do_not_fit_the_source(argv, said, capsys):
    assert main(["pack", argv[0], "set", *argv[1:]]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--member", "seg.png"], ["--no-labels", "--label-column", "kind"]])
def test_wrong_command_lines(argv):
    with pytest.raises(SystemExit, match="2"):
        main(["pack", "list.jsonl", "set", *argv])
