from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from lightning_robust.cli.shards import main
from lightning_robust.shards import Sample, pack
from lightning_robust.shards.contact_sheet import contact_sheet


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    samples = [Sample(f"{n:02d}", np.full((8, 8 + n, 3), (10 * n, 0, 90), np.uint8), n % 2) for n in range(20)]
    return pack(samples, tmp_path_factory.mktemp("cli-head") / "set", samples_per_shard=6, classes=["näin 名前", "b"])


@pytest.fixture
def folder(index):
    return str(Path(index.paths[0]).parent)


def test_the_first_samples_are_drawn_and_listed(index, folder, tmp_path, capsys):
    assert main(["head", folder, "-n", "5", "--out", str(tmp_path / "sheet.png"), "--cell", "32"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["sample", "key", "label", "width", "x", "height", "bytes"]
    assert rows[1][:7] == ["0", "00", "0", "näin", "名前", "8", "x"]
    assert rows[4][:7] == ["3", "03", "1", "b", "11", "x", "8"]
    assert rows[6][0] == "wrote"
    assert len(rows) == 7
    written = cv2.imread(str(tmp_path / "sheet.png"))[:, :, ::-1]
    np.testing.assert_array_equal(written, contact_sheet(index, range(5), cell=32))
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def _drawn(folder, tmp_path, capsys, *options) -> list[int]:
    assert main(["head", folder, "--out", str(tmp_path / "x.png"), "--dry-run", *options]) == 0
    return [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()[1:-1]]


def test_a_dry_run_needs_no_file(folder, capsys):
    assert main(["head", folder, "-n", "4", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[-1].startswith("Would write ")
    assert lines[-1].endswith(" pixels.")


def test_random_samples_are_reproducible(folder, tmp_path, capsys):
    first = _drawn(folder, tmp_path, capsys, "-n", "6", "--random", "1")
    assert len(set(first)) == 6
    assert first == _drawn(folder, tmp_path, capsys, "-n", "6", "--random", "1")
    assert first != _drawn(folder, tmp_path, capsys, "-n", "6", "--random", "2")
    assert sorted(_drawn(folder, tmp_path, capsys, "-n", "99", "--random", "1")) == list(range(20))
    assert _drawn(folder, tmp_path, capsys) == list(range(16))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_replaced_unasked(folder, tmp_path, capsys):
    target = tmp_path / "sheet.png"
    target.write_bytes(b"mine")
    assert main(["head", folder, "--out", str(target)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_bytes() == b"mine"
    assert main(["head", folder, "--out", str(target), "--cell", "16", "--overwrite"]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "sheet.jpg"], "must end in .png"),
        (["--out", "none/sheet.png"], "its folder does not exist"),
        (["--out", "sheet.png", "--cell", "9000"], "cells of 16 to 2048"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(folder, tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    assert main(["head", folder, *options]) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_sample_is_listed_and_writes_no_sheet(tmp_path, capsys):
    index = pack([Sample("a", bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3)))[1]), 0, "jpg")], tmp_path / "set")
    with Path(index.paths[0]).open("r+b") as file:
        file.seek(int(index.table["offset"][0]))
        file.write(b"garbage")
    assert main(["head", str(tmp_path / "set"), "--out", str(tmp_path / "sheet.png")]) == 1
    captured = capsys.readouterr()
    assert "unknown" in captured.out
    assert "sample 0 ('a.jpg')" in captured.err
    assert not (tmp_path / "sheet.png").exists()


def test_a_wrong_option_is_status_2(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["head", folder, "--out", "sheet.png", "-n", "0"])
    with pytest.raises(SystemExit, match="2"):
        main(["head", folder])
    assert "--out FILE is needed, or --dry-run" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["head", "--help"])
    assert "example:\n  lightning-robust shards head " in capsys.readouterr().out


def test_a_terminal_of_another_encoding(folder, tmp_path):
    code = "import sys\nfrom lightning_robust.cli.shards import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "head", folder, "-n", "2", "--out", str(tmp_path / "sheet.png")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert "0 n\\xe4in \\u540d\\u524d" in done.stdout
