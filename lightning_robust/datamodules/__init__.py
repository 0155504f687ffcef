"""Streaming of shards, exact and resumable where they are indexed: loaders for any loop, a data module for Lightning.

What imports Lightning is loaded on first use, so that neither a plain loop nor a spawned worker does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lightning_robust.datamodules.best_effort import BestEffortLoader
from lightning_robust.datamodules.loader import ShardLoader
from lightning_robust.datamodules.options import LoaderOptions, ShardBatch

if TYPE_CHECKING:
    from lightning_robust.datamodules.robustification import Robustification
    from lightning_robust.datamodules.shard_data_module import ShardDataModule

__all__ = ["BestEffortLoader", "LoaderOptions", "Robustification", "ShardBatch", "ShardDataModule", "ShardLoader"]

_HOMES = {"Robustification": "robustification", "ShardDataModule": "shard_data_module"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
