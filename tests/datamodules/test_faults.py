"""Processes that die or lag: a run ends with an error or waits, and never hangs."""

from __future__ import annotations

import os
import signal
import time

import pytest
import pytorch_lightning as pl
import torch
from support.nets import MeanColors
from torch.multiprocessing.spawn import ProcessException

from lightning_robust.datamodules import ShardDataModule, ShardLoader
from lightning_robust.shards import open_index

pytestmark = pytest.mark.ddp


class Killed(MeanColors):
    def on_train_batch_start(self, batch, batch_idx):
        if self.global_rank == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Slow(MeanColors):
    def on_train_batch_start(self, batch, batch_idx):
        end = time.perf_counter() + 0.1 * self.global_rank
        while time.perf_counter() < end:  # as a rank on a busy machine
            pass

    def on_train_end(self):
        weights = torch.cat([p.detach().flatten() for p in self.parameters()])
        torch.save((self.global_step, weights), f"{self.trainer.default_root_dir}/rank-{self.global_rank}.pt")


def _fit(net, shards, path):
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        strategy="ddp_fork",
        devices=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
    )
    trainer.fit(net, ShardDataModule(train=shards, batch_size=5, num_workers=0))


def test_a_killed_worker_is_an_error(shards):
    loader = ShardLoader(open_index(shards), batch_size=5, num_workers=1)
    batches = iter(loader)
    next(batches)
    loader._pool._running._workers[0].kill()
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed|exited)"):
        list(batches)


def test_a_killed_rank_ends_the_others(shards, tmp_path):
    # whichever is seen first: the death, or the connection that went with it
    with pytest.raises(ProcessException, match=r"SIGKILL|[Cc]onnection"):
        _fit(Killed(), shards, tmp_path)


def test_a_slow_rank_is_waited_for(shards, tmp_path):
    _fit(Slow(), shards, tmp_path)
    (steps, weights), (other_steps, other_weights) = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert steps == other_steps == 70 // 10
    assert torch.equal(weights, other_weights)
