from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from support.processes import own_environment
from torch.multiprocessing.spawn import ProcessException, ProcessRaisedException

from lightning_robust.datamodules import Robustification, robustification
from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import Sample, SampleReader, Sharpening, open_index, pack, robustify

SHARPENING = Sharpening(alpha=0.3, encode="jpeg", measure_every=3)


@pytest.fixture
def source(tmp_path):
    """Shards of 8, 8 and 4 images: two ranks have unequal shares."""
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    samples = [Sample(f"{number:03d}", image, number % 3) for number, image in enumerate(images)]
    pack(samples, tmp_path / "set", samples_per_shard=8)
    return tmp_path / "set"


@pytest.fixture
def whole(tmp_path, source):
    robustify(source, tmp_path / "whole", sharpening=SHARPENING)
    return _files(tmp_path / "whole")


def _files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def _shown(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def _trainer(*, devices=1, **options):
    return pl.Trainer(
        accelerator="cpu",
        devices=devices,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"strategy": "ddp_fork" if devices > 1 else "auto"} | options,
    )


def _predict(module, **options):
    return _trainer(**options).predict(module, return_predictions="devices" not in options)


def _spy(monkeypatch, folder, before=lambda rank, unit: None):
    """Note which rank sharpens what, one file for each time."""
    sharpen, folder = robustification.sharpen_unit, folder / "noted"
    folder.mkdir()

    def spied(unit, *rest):
        rank = int(os.environ.get("LOCAL_RANK", 0))
        before(rank, unit.name)
        sharpen(unit, *rest)
        with (folder / f"{rank} {unit.name}").open("x"):
            pass

    monkeypatch.setattr(robustification, "sharpen_unit", spied)
    return lambda: sorted(path.name for path in folder.iterdir())


def test_a_prediction_writes_what_robustify_writes(tmp_path, source, whole):
    module = Robustification(source, tmp_path / "out", sharpening=SHARPENING)
    assert _predict(module) == [8, 8, 4]
    assert _files(tmp_path / "out") == whole
    assert module.manifest["source"]["samples"] == 20
    with pytest.raises(InputError, match="holds a finished set"):
        _predict(Robustification(source, tmp_path / "out", sharpening=SHARPENING))


def test_image_folders_and_members_of_other_names(tmp_path, source):
    with SampleReader(open_index(source)) as reader:
        for name, image in zip(("few/0.png", "many/1.png", "many/2.png"), reader.read(range(3)), strict=True):
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / name).write_bytes(image)
    robustify(tmp_path / "photos", tmp_path / "one")
    assert _predict(Robustification(tmp_path / "photos", tmp_path / "out")) == [2, 1]
    assert _files(tmp_path / "out") == _files(tmp_path / "one")
    unlabeled = {"image_keys": ["png"], "label_key": None}
    robustify(source, tmp_path / "one-unlabeled", **unlabeled)
    _predict(Robustification(source, tmp_path / "unlabeled", **unlabeled))
    assert _files(tmp_path / "unlabeled") == _files(tmp_path / "one-unlabeled")


class _Killed(BaseException):
    pass


class _Kill(pl.Callback):
    def on_predict_batch_end(self, *_):
        raise _Killed


def test_a_job_that_was_killed_goes_on(tmp_path, source, whole, monkeypatch):
    noted = _spy(monkeypatch, tmp_path)
    with pytest.raises(_Killed):
        _predict(Robustification(source, tmp_path / "out", sharpening=SHARPENING), callbacks=[_Kill()])
    assert noted() == ["0 shard-000000.tar"]
    assert _shown(tmp_path / "out") == []
    with pytest.raises(InputError, match=r"unfinished job with another parameters \(alpha 0.3, now 0.15"):
        _predict(Robustification(source, tmp_path / "out"))
    assert _predict(Robustification(source, tmp_path / "out", sharpening=SHARPENING)) == [8, 4]
    assert _files(tmp_path / "out") == whole


def test_all_was_done_but_the_end(tmp_path, source, whole, monkeypatch):
    for share in ((1, 2), (2, 2)):
        robustify(source, tmp_path / "out", sharpening=SHARPENING, share=share)
    assert _shown(tmp_path / "out") == []
    noted = _spy(monkeypatch, tmp_path)
    assert _predict(Robustification(source, tmp_path / "out", sharpening=SHARPENING)) == [0]
    assert noted() == []
    assert _files(tmp_path / "out") == whole


def test_the_bar_counts_images_and_ends_with_an_error(tmp_path, source, monkeypatch, capsys):
    def broken(rank, unit):
        if unit == "shard-000001.tar":
            raise ShardError("It is damaged.")

    with monkeypatch.context() as patched:
        _spy(patched, tmp_path, broken)
        with pytest.raises(ShardError, match="It is damaged"):
            _predict(Robustification(source, tmp_path / "out", progress=True))
    shown = capsys.readouterr().err
    assert "8/20" in shown
    assert shown.endswith("\n")
    _predict(Robustification(source, tmp_path / "out", progress=True))
    assert "12/12" in capsys.readouterr().err


@pytest.mark.ddp
def test_an_error_of_one_rank_ends_both_and_the_next_run_goes_on(tmp_path, source, whole, monkeypatch):
    def full(rank, unit):
        if rank == 1:
            raise OSError(28, "No space left on device")

    class Noted(Robustification):
        def _together(self, work):
            try:
                return super()._together(work)
            except Exception as error:
                (tmp_path / f"{self.global_rank}.txt").write_text(f"{type(error).__name__}: {error}")
                raise

    with monkeypatch.context() as patched:
        noted = _spy(patched, tmp_path, full)
        with pytest.raises(ProcessRaisedException, match="No space left"):
            _predict(Noted(source, tmp_path / "out", sharpening=SHARPENING), devices=2)
    assert noted() == ["0 shard-000000.tar"]
    said = "[Errno 28] No space left on device"
    assert (tmp_path / "0.txt").read_text() == f"RobustError: Process 1 of 2 stopped: {said}"
    assert (tmp_path / "1.txt").read_text() == f"OSError: {said}"
    assert _shown(tmp_path / "out") == []
    _predict(Robustification(source, tmp_path / "out", sharpening=SHARPENING), devices=2)
    assert _files(tmp_path / "out") == whole


@pytest.mark.ddp
def test_a_killed_rank_ends_the_other_and_no_shard_is_done_twice(tmp_path, source, whole, monkeypatch):
    def killed(rank, unit):
        if unit == "shard-000001.tar" and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    noted = _spy(monkeypatch, tmp_path, killed)
    module = Robustification(source, tmp_path / "out", sharpening=SHARPENING)
    # whichever is seen first: the death, or the connection that went with it
    with pytest.raises(ProcessException, match=r"SIGKILL|Another process is gone"):
        _predict(module, devices=2)
    assert _shown(tmp_path / "out") == []
    _predict(module, devices=2)
    ranks, shards = zip(*(name.split() for name in noted()), strict=True)
    assert set(ranks) == {"0", "1"}
    assert len(set(shards)) == len(shards)
    assert _files(tmp_path / "out") == whole


@pytest.mark.ddp
def test_a_unit_and_an_end_that_last_longer_than_the_time_out(tmp_path, source, whole, monkeypatch):
    limit, finish = timedelta(seconds=4), robustification.finish_robustify

    def last(rank=0, unit="shard-000002.tar"):
        if unit == "shard-000002.tar":
            threading.Event().wait(1.2 * limit.total_seconds())

    def slow_finish(destination):
        last()
        return finish(destination)

    noted = _spy(monkeypatch, tmp_path, last)
    monkeypatch.setattr(robustification, "finish_robustify", slow_finish)
    module = Robustification(source, tmp_path / "out", sharpening=SHARPENING)
    strategy = DDPStrategy(start_method="fork", timeout=limit)
    _predict(module, devices=2, strategy=strategy)
    assert len(noted()) == 3
    assert _files(tmp_path / "out") == whole


@pytest.mark.ddp
def test_two_processes_of_the_command_write_what_one_writes(tmp_path, source, whole):
    options = ["--alpha", "0.3", "--encode", "jpeg", "--measure-every", "3", "--devices", "2"]
    command = [sys.executable, "-m", "lightning_robust.cli.main", "shards", "robustify"]
    done = subprocess.run(
        [*command, str(source), str(tmp_path / "out"), *options],
        capture_output=True,
        text=True,
        env=own_environment(),
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert _files(tmp_path / "out") == whole
    assert done.stdout.count("20 sharpened images in") == 1
    # nothing but the bar, which one process shows
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1].startswith("Sharpening: 100%")
    assert all(line.startswith("Sharpening:") for line in lines)
