"""Make the loaders of a ShardDataModule from its settings, as they stand when the Trainer asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_robust.datamodules.best_effort import BestEffortLoader
from lightning_robust.datamodules.loader import ShardLoader
from lightning_robust.datamodules.recounting import recount_in
from lightning_robust.datamodules.sets import SetName
from lightning_robust.datamodules.targets import parse_targets

if TYPE_CHECKING:
    from lightning_robust.datamodules.shard_data_module import ShardDataModule


def train_loader(
    data: ShardDataModule, *, shuffle: bool, former: ShardLoader | BestEffortLoader | None
) -> ShardLoader | BestEffortLoader:
    """Loader of the training set.

    Args:
        data: the data module.
        shuffle: whether every epoch has its own order.
        former: the loader that it takes the place of.
    """
    settings: dict[str, Any] = {
        "batch_size": data.batch_size,
        "purpose": "train",
        "shuffle": shuffle,
        "sample_transform": data.sample_transform,
        "on_error": data.on_error,
    }
    if "train" not in data.unindexed:
        drawn = {"balance": data.balance, "mix": data.mix, "streams": data.streams} if shuffle else {}
        loader = _exact(data, "train", **settings, **drawn)
        if data.trainer is not None:
            recount_in(data.trainer, loader, former.recount if isinstance(former, ShardLoader) else None)
        return loader
    return _best_effort(data, "train", epoch_batches=data.epoch_batches, shuffle_buffer=data.shuffle_buffer, **settings)


def evaluation_loader(data: ShardDataModule, name: SetName) -> ShardLoader | BestEffortLoader:
    """Loader of a set that is gone through once.

    Args:
        data: the data module.
        name: of the set.
    """
    size = data.batch_size if data.eval_batch_size is None else data.eval_batch_size
    settings: dict[str, Any] = {"batch_size": size, "purpose": "evaluate"}
    if name not in data.unindexed:
        return _exact(data, name, **settings)
    if data.share()[1] == 1:
        settings["num_workers"] = min(1, data.num_workers)
    return _best_effort(data, name, **settings)


def _exact(data: ShardDataModule, name: SetName, **settings: Any) -> ShardLoader:
    own = {"shuffle_window": data.shuffle_window, "targets": parse_targets(data.targets, data.label_key)}
    return ShardLoader(data.index(name), **(_common(data) | own | settings))


def _best_effort(data: ShardDataModule, name: SetName, **settings: Any) -> BestEffortLoader:
    return BestEffortLoader(
        data.named(name),
        label_key=data.label_key,
        num_classes=data.num_classes,
        remote=data.remote,
        **(_common(data) | settings),
    )


def _common(data: ShardDataModule) -> dict[str, Any]:
    rank, world = data.share()
    return {
        "seed": data.seed,
        "rank": rank,
        "world": world,
        "num_workers": data.num_workers,
        "image_size": data.image_size,
        "options": data.loader,
    }
