"""Two gloo processes give what one process gives on the same global batch. One pair serves all callbacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.modules import CASES
from support.processes import own_environment

JOB = Path(__file__).with_name("ddp_job.py")


def run(out: Path, processes: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(JOB), str(out), str(processes)],
        capture_output=True,
        text=True,
        env=own_environment(),
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    run(folder / "pair.pt", 2)
    run(folder / "single.pt", 1)
    return folder


@pytest.mark.ddp
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_pair_equals_one_process(results, name):
    pair, single = (torch.load(results / f"{which}.pt", weights_only=True)[name] for which in ("pair", "single"))
    torch.testing.assert_close(pair, single, atol=2e-6, rtol=1e-4)


@pytest.mark.ddp
def test_every_process_raises_what_one_finds(results):
    assert "another process found an error" in (results / "pair.0.txt").read_text().lower()
    assert "divide them by 255" in (results / "pair.1.txt").read_text()
