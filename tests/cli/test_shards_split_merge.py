from __future__ import annotations

import numpy as np
import pytest

from lightning_robust.cli.shards import main
from lightning_robust.shards import open_index, pack
from lightning_robust.shards.sources import ArraySamples


@pytest.fixture
def home(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    pack(ArraySamples(images, np.arange(20) % 2), tmp_path / "all", classes=("cat", "dog"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_split_and_merge(home, capsys):
    split = ["split", "all", "parts", "--fractions", "train=4/5", "val=0.2", "--stratify", "--samples-per-shard", "10"]
    before = _tree(home)
    assert main([*split, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Would write 16 samples to 2 shards: parts/train-000000.tar" in out
    assert "Would write 4 samples to 1 shard: parts/val-000000.tar" in out
    assert "class    1 dog: 2" in out
    assert _tree(home) == before
    assert main(split) == 0
    assert "val:\n4 samples in 1 shard," in capsys.readouterr().out
    assert open_index("parts/train-*.tar").counts.tolist() == [10, 6]
    assert main([*split, "--dry-run"]) == 1
    assert "--overwrite" in capsys.readouterr().err

    merge = ["merge", "parts/train-*.tar", "all", "--out", "both"]
    before = _tree(home)
    assert main([*merge, "--dry-run"]) == 1
    assert "--rename-keys" in capsys.readouterr().err.splitlines()[-1]
    assert main([*merge, "--rename-keys", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "parts: 16 samples, keys parts/..." in out
    assert "Would write 36 samples to 1 shard: both/shard-000000.tar" in out
    assert _tree(home) == before
    assert main([*merge, "--rename-keys"]) == 0
    assert "36 samples in 1 shard," in capsys.readouterr().out
    assert len(open_index("both")) == 36


@pytest.mark.parametrize("fraction", ["train", "train=", "train=x", "train=1/0"])
def test_fractions_that_are_none(home, fraction, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["split", "all", "parts", "--fractions", fraction])
    assert "is not of the form NAME=SHARE" in capsys.readouterr().err


def test_a_part_named_twice(home, capsys):
    assert main(["split", "all", "parts", "--fractions", "a=0.5", "a=0.5"]) == 1
    assert "named twice" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["split", "merge"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"example:\n  lightning-robust shards {command} " in capsys.readouterr().out
