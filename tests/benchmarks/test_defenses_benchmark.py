"""The speed benchmark of the defenses runs at tiny sizes, and its loops deflect."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()

    def run(*arguments, name="__main__"):
        monkeypatch.setattr(sys, "argv", ["defenses.py", *arguments])
        return runpy.run_path(str(FOLDER / "defenses.py"), run_name=name)

    yield run
    torch.set_num_threads(threads)
    sys.modules.pop("measure", None)


def test_every_row_without_a_zoo_runs(script, tmp_path, capsys):
    page = tmp_path / "speed.md"
    script("--quick", "--out", str(page))
    text = page.read_text()
    for row in ("K = 100, no map", "K = 100, with a map", "NumPy's generator", "wavelet denoising, 2x3x64x64"):
        assert row in text, row
    assert "needs --zoo" in capsys.readouterr().err


@pytest.mark.parametrize("loop", ["loop_by_random", "loop_by_generator"])
def test_the_loops_replace_pixels_by_neighbors(script, loop):
    deflect = script(name="benchmark")[loop]
    place = np.stack(np.meshgrid(np.arange(20.0), np.arange(30.0), indexing="ij"), axis=-1)[None]
    deflected = deflect(place, 200, 3, None)
    moved = np.abs(deflected - place).max(-1)
    assert 100 < (moved > 0).sum() <= 200
    assert moved.max() == 3
    spared = deflect(place, 200, 3, np.ones((1, 20, 30)))
    np.testing.assert_array_equal(spared, place)
