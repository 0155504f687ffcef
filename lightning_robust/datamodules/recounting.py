"""Let a Trainer that resumes with another batch size count its epoch anew."""

from __future__ import annotations

import functools
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_robust.datamodules.loader import ShardLoader
from lightning_robust.datamodules.resuming import Recount


def recount_in(trainer: Any, loader: ShardLoader, pending: Recount | None) -> None:
    """Let a Trainer resume with another batch size, and count the epoch that it goes on with in batches of that size.

    By its own count the epoch would end too early, or never come to its validation.

    Args:
        trainer: the Trainer.
        loader: its training loader.
        pending: what a loader still had to say in whose place it comes, as when a Trainer reloads it for an epoch.
    """
    loader.any_batch_size, loader.recount = True, pending
    # a Trainer tells the epoch when it has restored its counts and not used them yet
    loader.sampler.when_set = functools.partial(_recount, trainer, loader)


def _recount(trainer: Any, loader: ShardLoader) -> None:
    change, loader.recount = loader.recount, None
    if change is None:
        return
    progress, most = trainer.fit_loop.epoch_loop.batch_progress, trainer.num_training_batches
    # a limit of the Trainer counts batches too: an epoch that was not at its end gets one more
    now = most if progress.is_last_batch else min(change.now, most - 1)
    rank_zero_info(
        f"The run goes on with another global batch size: {change.before} batches that were done count as {now} of "
        f"{most}."
    )
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress.current, name, getattr(progress.current, name) + now - change.before)
