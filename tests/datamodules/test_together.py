from __future__ import annotations

import os
import signal
import threading

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_robust.datamodules.together import together
from lightning_robust.errors import RobustError


def test_one_process_works_by_itself():
    def work(stay):
        stay()
        return threading.current_thread()

    assert together(work, 1) == [threading.current_thread()]
    with pytest.raises(OSError, match="disk"):
        together(lambda _: (_ for _ in ()).throw(OSError("disk")), 1)


def _join(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)


def _one_is_killed(rank, folder):
    _join(rank, folder)

    def endless(stay):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            while True:
                stay()
        finally:
            (folder / "ended").touch()

    try:
        together(endless, 2)
    except RobustError as error:
        (folder / "said").write_text(str(error))


@pytest.mark.ddp
def test_a_killed_process_is_noticed_by_one_that_works(tmp_path):
    # no launcher that would end the other
    context = mp.get_context("fork")
    processes = [context.Process(target=_one_is_killed, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    assert (tmp_path / "said").read_text().startswith("Another process is gone")
    assert (tmp_path / "ended").exists()


def _two_minds(rank, folder):
    _join(rank, folder)
    assert together(lambda _: rank * 10, 2) == [0, 10]
    errors = (KeyError, OSError) if rank else (RobustError, ZeroDivisionError)
    for expected, fails in zip(errors, ([1], [0, 1]), strict=True):
        with pytest.raises(expected):
            together(lambda _, expected=expected, fails=fails: _fail(expected, rank in fails), 2)


def _fail(expected, now):
    if now:
        raise expected


@pytest.mark.ddp
def test_each_gets_what_all_returned_or_an_error_of_its_own(tmp_path):
    mp.start_processes(_two_minds, (tmp_path,), nprocs=2, start_method="fork")
