"""What the ranks of a fit skipped, counted together where all of them meet."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist

from lightning_robust.datamodules.skipped import OnError, check_limit

# every rank has as many training batches, so that it is at the same one when it comes to the exchange
_BATCHES_BETWEEN = 100


class SkipMeeting(pl.Callback):
    """Lets each rank know what the others skipped, ends them at the limit together, and tells the loggers how many.

    The ranks meet after every hundredth batch and after each epoch. A sample that several of them skipped, in one epoch
    or another, counts once. One process alone looks after every batch. A callback, since all ranks come to its hooks in
    step, while a batch may be loaded or transferred by one of them alone.

    Args:
        on_error: ``"skip"``, or the number of samples to put up with.
        reasons: by sample, why this rank skipped it; those of the other ranks are added.
    """

    def __init__(self, on_error: OnError, reasons: dict[Any, str]) -> None:
        self._on_error = on_error
        self._reasons = reasons
        self._known_to_all: set[Any] = set()
        self._told = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - the hook's
        outputs: Any,  # noqa: ARG002 - the hook's
        batch: Any,  # noqa: ARG002 - the hook's
        batch_idx: int,
    ) -> None:
        """Meet, if it is time."""
        if trainer.world_size == 1 or (batch_idx + 1) % _BATCHES_BETWEEN == 0:
            self._meet(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - the hook's
        """Meet."""
        self._meet(trainer)

    def _meet(self, trainer: pl.Trainer) -> None:
        if trainer.world_size > 1:
            self._exchange(trainer.world_size)
        if len(self._reasons) != self._told:
            self._told = len(self._reasons)
            for logger in trainer.loggers:
                logger.log_metrics({"data/skipped": float(self._told)}, step=trainer.global_step)
        check_limit(self._reasons, self._on_error)

    def _exchange(self, world: int) -> None:
        own = {sample: reason for sample, reason in self._reasons.items() if sample not in self._known_to_all}
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, own)
        for found in everyone:
            for sample, reason in found.items():
                self._reasons.setdefault(sample, reason)
        self._known_to_all = set(self._reasons)
