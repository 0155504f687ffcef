"""``lightning-robust shards robustify --devices``: the Trainer whose processes share the shards out."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import cv2
import pytorch_lightning as pl

from lightning_robust.datamodules import Robustification
from lightning_robust.errors import InputError, RobustError


def predict(module: Robustification, *, devices: int, num_nodes: int) -> dict[str, Any] | None:
    """Sharpen a set with processes of the CPU under DDP.

    Args:
        module: what is sharpened.
        devices: processes on each machine.
        num_nodes: machines.

    Returns:
        The manifest on rank 0, None on the others.

    Raises:
        InputError: torchrun or SLURM started another number of processes.
        RobustError, OSError: on the first process of each machine; the others end with it.
    """
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    cv2.setNumThreads(0)
    with warnings.catch_warnings():
        # Lightning's own use of torch
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy="ddp",
            devices=devices,
            num_nodes=num_nodes,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _check_launcher(trainer)
        try:
            trainer.predict(module, return_predictions=False)
        except (RobustError, OSError):
            if trainer.local_rank == 0:
                raise
            # The first process says the same. Lightning would kill it, perhaps before it does, if this one failed.
            raise SystemExit(0) from None
    return module.manifest if trainer.is_global_zero else None


def _check_launcher(trainer: pl.Trainer) -> None:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    try:
        if environment is not None:
            environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    except ValueError as error:
        raise InputError(f"--devices and --num-nodes do not fit what was started. {error}") from None
