"""Streaming of shards, exact and resumable where they are indexed: loaders for any loop, a data module for Lightning.

``ShardDataModule`` is loaded on first use, so that neither a plain loop nor a spawned worker imports Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_robust.datamodules.best_effort import BestEffortLoader
from lightning_robust.datamodules.loader import ShardLoader
from lightning_robust.datamodules.options import LoaderOptions, ShardBatch

if TYPE_CHECKING:
    from lightning_robust.datamodules.shard_data_module import ShardDataModule

__all__ = ["BestEffortLoader", "LoaderOptions", "ShardBatch", "ShardDataModule", "ShardLoader"]


def __getattr__(name: str) -> object:
    if name == "ShardDataModule":
        from lightning_robust.datamodules.shard_data_module import ShardDataModule

        return ShardDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
