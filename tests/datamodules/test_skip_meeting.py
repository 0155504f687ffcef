from __future__ import annotations

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.loggers import CSVLogger
from support.nets import MeanColors
from torch.multiprocessing.spawn import ProcessException

from lightning_robust.datamodules import ShardDataModule, ShardLoader, skip_meeting
from lightning_robust.datamodules.skipped import check_limit
from lightning_robust.errors import RobustWarning, ShardError
from lightning_robust.shards import Sample, open_index, pack

pytestmark = pytest.mark.filterwarnings("ignore:A sample was skipped")


@pytest.fixture
def damaged(images, tmp_path):
    """A set with, and the ids of, one bad sample in the first batch of each of two ranks."""
    folder = tmp_path / "set"
    pack([Sample(f"{i:03d}", image, i % 5) for i, image in enumerate(images)], folder, samples_per_shard=13)
    index = open_index(folder)
    bad = [int(next(iter(ShardLoader(index, batch_size=5, rank=rank, world=2))).ids[0]) for rank in range(2)]
    for sample in bad:
        (shard,), (offset,), (size,) = index.locate([sample])
        with Path(index.paths[shard]).open("r+b") as file:
            file.seek(offset)
            file.write(b"x" * size)
    return str(folder), sorted(bad)


class Net(MeanColors):
    def on_train_end(self):
        _say(self.trainer.default_root_dir, sorted(self.trainer.datamodule.skipped))


def _say(folder, what):
    rank = dist.get_rank() if dist.is_initialized() else 0
    Path(folder, f"{rank}.txt").write_text(str(what))


def _fit(folder, path, *, on_error, devices=2):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_epochs=2,
        default_root_dir=path,
        logger=CSVLogger(path / "log", name="", version=""),
        log_every_n_steps=1000,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = ShardDataModule(train=folder, batch_size=10 // devices, num_workers=0, on_error=on_error)
    trainer.fit(Net(), data)
    return trainer, data


def _said(path):
    return [(path / f"{rank}.txt").read_text() for rank in range(2)]


def _logged(path):
    rows = csv.DictReader((path / "log" / "metrics.csv").read_text().splitlines())
    return [(int(row["step"]), float(row["data/skipped"])) for row in rows if row["data/skipped"]]


@pytest.mark.ddp
@pytest.mark.parametrize(("between", "step"), [(100, 7), (3, 3)])
def test_ranks_count_what_they_skipped_together_and_each_sample_once(damaged, tmp_path, monkeypatch, between, step):
    folder, bad = damaged
    monkeypatch.setattr(skip_meeting, "_BATCHES_BETWEEN", between)
    _fit(folder, tmp_path, on_error=2)
    assert _said(tmp_path) == [str(bad), str(bad)]
    assert _logged(tmp_path) == [(step, 2.0)]


@pytest.mark.ddp
def test_the_limit_holds_for_all_ranks_together_and_ends_them_at_one_batch(damaged, tmp_path, monkeypatch):
    folder, _ = damaged

    def noted(reasons, on_error):
        try:
            check_limit(reasons, on_error)
        except ShardError as error:
            _say(tmp_path, error)
            dist.barrier()  # the launcher ends a rank when the other has ended with an error
            raise

    monkeypatch.setattr(skip_meeting, "_BATCHES_BETWEEN", 3)
    monkeypatch.setattr(skip_meeting, "check_limit", noted)
    with pytest.raises(ProcessException, match="2 samples cannot be read and on_error=1"):
        _fit(folder, tmp_path, on_error=1)
    for said in _said(tmp_path):
        assert said.startswith("2 samples cannot be read and on_error=1 puts up with 1")


def test_one_process_tells_its_loggers_at_once_and_leaves_the_trainer_as_it_was(damaged, tmp_path):
    folder, bad = damaged
    with pytest.warns(RobustWarning, match="A sample was skipped"):
        trainer, data = _fit(folder, tmp_path, on_error="skip", devices=1)
    assert sorted(data.skipped) == bad
    assert _logged(tmp_path) == [(1, 2.0)]
    assert not any(isinstance(callback, skip_meeting.SkipMeeting) for callback in trainer.callbacks)
