from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from lightning_robust.cli.shards import main
from lightning_robust.shards import Sample, pack


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli-verify") / "set"
    jpegs = [
        bytes(cv2.imencode(".jpg", np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))[1])
        for seed in range(5)
    ]
    samples = [Sample(f"{number:02d}", jpegs[number % 5], number % 2, "jpg") for number in range(8)]
    pack(samples, folder, samples_per_shard=4, classes=["odd", "näin 名前"])
    return folder


@pytest.fixture
def folder(healthy, tmp_path):
    return shutil.copytree(healthy, tmp_path / "set")


def _spoil(folder):
    """Break the JPEG marker of every image, which changes no size."""
    for path in folder.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"\xff\xd8", b"\xff\xff"))


def _verify(*arguments) -> int:
    return main(["verify", *map(str, arguments), "--workers", "1"])


def test_a_healthy_set_is_status_0(folder, capsys):
    assert _verify(folder) == 0
    captured = capsys.readouterr()
    assert "8 samples in 2 shards, 2 classes" in captured.out
    assert "class    1 näin 名前: 4" in captured.out
    assert "compared: 2 of 2 shards" in captured.out
    assert "warning: 3 images with the bytes of an earlier one" in captured.out
    assert "'05' in" in captured.out
    assert "faults: 0" in captured.out
    assert "Verifying" in captured.err


def test_duplicates_fail_on_request(folder, capsys):
    assert _verify(folder, "--fail-on-duplicates") == 1
    assert "found 3 duplicate images" in capsys.readouterr().err


def test_faults_are_status_1_and_listed_up_to_a_limit(folder, capsys, tmp_path):
    _spoil(folder)
    assert _verify(folder, "--max-faults", 3, "--json", tmp_path / "report.json") == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[-5] == "faults: 10"
    assert lines[-4].startswith(f"  {folder}/shard-000000.tar: '00': An image (")
    assert lines[-1] == "  ... and 7 more (--max-faults, --json)"
    assert "shards verify: found 10 faults in 2 places" in captured.err
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["ok"] is False
    assert len(document["faults"]) == 10
    assert document["faults"][4]["what"].startswith("has the sha256")
    assert document["histogram"] == {"0": 4, "1": 4}
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == ["report.json"]
    assert _verify(folder, "--max-faults", 0) == 1
    assert "00000" not in capsys.readouterr().out.partition("faults: ")[2]


def test_a_damaged_set_without_an_index(folder, capsys):
    for path in folder.glob("*index*"):
        path.unlink()
    for path in folder.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:3000])
    assert _verify(folder) == 1
    out = capsys.readouterr().out
    assert "note: 2 of the 2 shards" in out
    assert out.count("end-of-archive blocks") == 2


@pytest.mark.parametrize("wrong", [["--workers", "0"], ["--workers", "x"], ["--max-faults", "-1"], ["--nope"]])
def test_a_wrong_option_is_status_2(folder, wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(folder), *wrong])
    assert "usage: lightning-robust shards" in capsys.readouterr().err


def test_what_cannot_work_ends_before_the_work(folder, tmp_path, capsys):
    assert _verify(folder, "--json", tmp_path / "none" / "report.json") == 1
    captured = capsys.readouterr()
    assert "a folder that exists" in captured.err
    assert "Verifying" not in captured.err
    assert _verify(folder, "--json", tmp_path) == 1
    assert "a folder that exists" in capsys.readouterr().err
    assert _verify(tmp_path / "none.tar") == 1
    assert "is missing" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["verify", "--help"])
    assert "example:\n  lightning-robust shards verify " in capsys.readouterr().out
