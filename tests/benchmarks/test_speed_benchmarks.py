"""The speed benchmarks start, run at tiny sizes, and compare with the right thing."""

from __future__ import annotations

import importlib.util
import runpy
import statistics
import sys
from pathlib import Path

import cv2
import pytest
import torch

from lightning_robust.nn import ASAPPool2d

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads(), cv2.getNumThreads()

    def run(script, *arguments):
        """Exit status of a script."""
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        try:
            runpy.run_path(str(FOLDER / script), run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    yield run
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    for name in ("measure", "peers"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 16, 12), (2, 1, 32, 32)])
def test_the_fft_version_is_the_released_pooling(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours, peer = ASAPPool2d(2, variant="released")(x), load("peers").asap_pool_by_fft(x)
    torch.testing.assert_close(peer, ours, rtol=0, atol=1e-12)
    slopes = (torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, peer))
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-12)


def test_a_row_tells_a_gain_from_a_loss():
    measure = load("measure")
    times = {"ours": [1.0, 2.0, 4.0], "peer": [3.0, 6.0, 4.0]}
    faster = measure.Row("row", "ours", "peer", "faster", 2.5)
    share = measure.Row("row", "ours", "peer", "share", 0.3)
    assert measure.ratios(faster, times) == [3, 3, 1]
    assert measure.verdict(faster, times) == "meets, unsettled"
    assert measure.ratios(share, times) == [1 / 3, 1 / 3, 1]
    assert measure.verdict(share, times) == "**misses**"
    alike = {"ours": [1.0, 1.0, 1.0], "peer": [3.0, 3.0, 3.0]}
    assert measure.verdict(faster, alike) == "meets"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_a_call_allocates():
    peak = load("measure").peak_memory
    kept = torch.ones(1 << 20)
    assert peak(lambda: torch.ones(4 << 20) + 1) == pytest.approx(32, abs=4)
    assert peak(lambda: kept.add_(1)) < 4


@pytest.mark.parametrize("script", ["ops.py", "gpu.py"])
def test_help(start, script, capsys):
    assert start(script, "--help") == 0
    assert "--quick" in capsys.readouterr().out


def test_every_row_of_ops_runs(start, tmp_path):
    page = tmp_path / "speed.md"
    assert start("ops.py", "--quick", "--threads", "1", "--out", str(page)) == 0
    text = page.read_text()
    for row in ("sharpening, 8 bits", "ASAPPool2d released", "geometric mean", "JaFR training step", "epoch of"):
        assert row in text, row
    # centered rows alone make the geometric mean
    lines = [line for line in text.splitlines() if line.startswith("| ASAPPool2d, ") and "x faster" in line]
    *sizes, mean = (float(line.split("x faster")[0].split()[-1]) for line in lines)
    assert len(sizes) == 2
    assert mean == pytest.approx(statistics.geometric_mean(sizes), rel=0.01)


def test_every_row_of_gpu_runs_on_the_cpu(start, tmp_path):
    page = tmp_path / "gpu.md"
    assert start("gpu.py", "--quick", "--device", "cpu", "--out", str(page)) == 0
    for row in (
        "sharpening, uint8",
        "TF32",
        "bfloat16",
        "channels_last",
        "JaFR training step",
        "K 100, with a map",
        "bior2.2",
    ):
        assert row in page.read_text(), row


def test_gpu_without_a_device_says_so(start, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start("gpu.py") == 2
    assert "no CUDA device" in capsys.readouterr().out


def test_the_plan_mixes_as_a_permutation_where_the_window_holds_all_shards(start, capsys):
    assert start("scale.py", "--quick") == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    by_first = {row[0]: row for row in rows if len(row) == 4}
    assert float(by_first["| 128"][2]) == pytest.approx(1, abs=0.05)  # a closed form: chance
    # of 128 shards each of 8 machines needs 16 in 8 streams, and at most one more where two streams meet
    assert 16 / 128 <= float(by_first["| 8"][1].rstrip("%")) / 100 <= 17.5 / 128
