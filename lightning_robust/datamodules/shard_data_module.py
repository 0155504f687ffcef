"""ShardDataModule: WebDataset shards in, float batches on the device out, exact and resumable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_robust.datamodules.best_effort import BestEffortLoader
from lightning_robust.datamodules.building import evaluation_loader, train_loader
from lightning_robust.datamodules.loader import ShardLoader
from lightning_robust.datamodules.options import LoaderOptions, ShardBatch, as_size, checked_transform
from lightning_robust.datamodules.own_trainer import OwnTrainerDataModule
from lightning_robust.datamodules.sets import SetName, check_keep_labels, check_unindexed, open_set, sets_of
from lightning_robust.datamodules.skip_meeting import SkipMeeting
from lightning_robust.datamodules.skipped import OnError
from lightning_robust.datamodules.targets import parse_targets
from lightning_robust.datamodules.transfer import augment_targets, check_batch_transform, unit_float
from lightning_robust.errors import InputError
from lightning_robust.seeds import derive_int
from lightning_robust.shards import RemoteOptions, ShardIndex


class ShardDataModule(OwnTrainerDataModule):
    """Feeds WebDataset shards to a Trainer.

    Training gives every rank the same number of full batches, in a new and reproducible order every epoch. Evaluation
    sees every sample exactly once, at any number of ranks and workers, with the same number of batches on each rank.
    A run that was killed goes on at the very sample. Batches are uint8 until they are on the device; there they become
    floats in [0, 1] and, in training, go through ``batch_transform``. The ids of the batch that was transferred last
    are in :attr:`batch_ids`; training samples that were skipped, on any rank, are in :attr:`skipped`, with the reason.
    For the sets named in ``unindexed`` none of this is exact: see :class:`BestEffortLoader`.

    Args:
        train: shards of the training set: a path, URL, glob, brace pattern or folder, or a list of these.
        val: shards of the validation set.
        test: shards of the test set.
        predict: shards of the set to predict.
        batch_size: samples per rank and training batch.
        eval_batch_size: samples per rank and evaluation batch, at most; None takes ``batch_size``.
        num_workers: worker processes per loader; 0 decodes in the training process.
        image_size: height and width, or one number for both; images are scaled to cover it and cropped at the center.
            None takes images as they are, which must then have one size.
        seed: seed of the order and of all augmentation.
        shuffle_window: shards that are mixed with each other.
        balance: ``"class"`` to draw all classes equally often in a training epoch, whose length stays the same.
        mix: weights with which training draws from several sources, by pattern: ``{"cars": 0.7, "bikes/*.tar": 0.3}``.
        streams: places of the training order that are read side by side; as many as machines, or a multiple, let each
            machine fetch its own part of the shards alone.
        sample_transform: Albumentations transform of single training images, (H, W, C) uint8, in the workers.
        batch_transform: Kornia augmentation of training batches, or any module from images to images, on the device.
        batch_format: ``"tuple"`` for ``(image, target)``, or the bare image where there are no labels; ``"dict"`` for
            ``image``, ``target`` and ``index``, or with ``targets`` their names in place of ``target``.
        num_classes: if given, every label must be below it.
        label_key: extension of the member that holds the class number; None for shards without labels.
        on_error: what to do with a training sample that does not decode: ``"raise"``, or ``"skip"`` to take the next
            good one instead and count it in :attr:`skipped`, or a number: as ``"skip"``, until more than that were
            skipped. Several ranks add up what they skipped after every 100 batches and each epoch; one that skips too
            many by itself ends at once. The loggers get the count as ``data/skipped``. Evaluation always raises.
        loader: how workers are run.
        remote: how shards at URLs are fetched, and where their local copies are.
        keep_labels: classes to keep of a set, ``{"train": [0, 3], "val": [0, 3]}``; sets not named keep all.
        renumber_labels: number the kept classes 0, 1, ..., in ascending order of their labels.
        unindexed: sets that cannot be indexed and are streamed as they come, by best effort: ``("train",)``. Their
            batches have no ids; an evaluation set among them must be read by one process.
        epoch_batches: batches per rank and training epoch, if the training set is unindexed.
        shuffle_buffer: encoded samples that each reader of an unindexed training set holds to mix them.
        targets: what batches have in place of the class number, by name: the extension of a member (``"seg.png"``, a
            mask; ``"meta.json"``), or a mapping with ``member``, ``kind`` (``"mask"``, ``"boxes"``, ``"multilabel"``,
            ``"json"``, ``"class"``), ``classes`` and ``ignore``. One target is the target; several are a dict.

    Raises:
        InputError: if an argument is not what it should be, or a label is outside the classes.
        ShardError: from ``prepare_data`` or ``setup``, if a shard is missing or damaged.

    Example:
        >>> data = ShardDataModule(train="cifar10/train-*.tar", val="cifar10/val-*.tar", batch_size=128)
        >>> data.batch_size, data.shards["test"]  # no shard is opened before prepare_data and setup
        (128, None)
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        image_size: int | tuple[int, int] | None = None,
        seed: int = 0,
        shuffle_window: int = 16,
        balance: Literal["class"] | None = None,
        mix: dict[str, float] | None = None,
        streams: int = 1,
        sample_transform: Callable[..., Any] | None = None,
        batch_transform: nn.Module | None = None,
        batch_format: Literal["tuple", "dict"] = "tuple",
        num_classes: int | None = None,
        label_key: str | None = "cls",
        on_error: OnError = "raise",
        loader: LoaderOptions = LoaderOptions(),
        remote: RemoteOptions = RemoteOptions(),
        keep_labels: dict[SetName, list[int]] | None = None,
        renumber_labels: bool = False,
        unindexed: tuple[SetName, ...] = (),
        epoch_batches: int | None = None,
        shuffle_buffer: int = 1000,
        targets: dict[str, str | dict[str, str | int]] | None = None,
    ) -> None:
        super().__init__()
        if batch_format not in ("tuple", "dict"):
            raise InputError(f"batch_format={batch_format!r} is unknown: give 'tuple' or 'dict'.")
        check_unindexed(unindexed, epoch_batches, balance, mix, streams, targets)
        self.shards: dict[SetName, str | list[str] | None]
        self.shards = {"train": train, "val": val, "test": test, "predict": predict}
        given = [name for name, shards in self.shards.items() if shards is not None]
        check_keep_labels(keep_labels or {}, renumber=renumber_labels, given=given, unindexed=unindexed)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.image_size = as_size(image_size)
        self.seed = seed
        self.shuffle_window = shuffle_window
        self.balance: Literal["class"] | None = balance
        self.mix, self.streams = mix, streams
        self.sample_transform = checked_transform(sample_transform)
        self.batch_transform = batch_transform
        self.batch_format = batch_format
        self.num_classes = num_classes
        self.label_key = label_key
        self.on_error: OnError = on_error
        self.loader = loader
        self.remote = remote
        self.keep_labels = dict(keep_labels or {})
        self.renumber_labels = renumber_labels
        self.unindexed = tuple(unindexed)
        self.epoch_batches = epoch_batches
        self.shuffle_buffer = shuffle_buffer
        self.targets = targets
        self._targets = parse_targets(targets, label_key)
        check_batch_transform(batch_transform, self._targets)
        self.batch_ids: Tensor | None = None
        self.skipped: dict[Any, str] = {}
        self._skip_meeting: SkipMeeting | None = None
        self._indexes: dict[SetName, ShardIndex] = {}
        self._loaders: dict[SetName, ShardLoader | BestEffortLoader] = {}
        self._resume_from: dict[str, Any] | None = None

    def index(self, name: SetName) -> ShardIndex:
        """Index of one of the sets, opened on first use.

        Raises:
            InputError: if no shards were given for it, it is unindexed, or a label is not below ``num_classes``.
            ShardError: if a shard is missing or damaged.
        """
        if name not in self._indexes:
            self._indexes[name] = self._open(name)
        return self._indexes[name]

    def named(self, name: SetName) -> str | list[str]:
        """What the shards of a set were named by.

        Raises:
            InputError: if none were given.
        """
        shards = self.shards[name]
        if shards is None:
            raise InputError(f"No {name} shards were given: ShardDataModule({name}='folder/*.tar').")
        return shards

    def share(self) -> tuple[int, int]:
        """Rank and number of the processes that share the data (tensor-parallel ones read the same)."""
        share = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (0, 1) if share is None else (share["rank"], share["num_replicas"])

    def prepare_data(self) -> None:
        """Index the shards that have no index yet; Lightning calls this in one process of each node."""
        for name in self._needed(None):
            if name not in self.unindexed:
                self._open(name, progress=True)

    def attached(self) -> None:
        """Show Lightning no validation loader in a fit of a module that would not use one."""
        if not is_overridden("validation_step", self.trainer.lightning_module):
            self._hide_missing_validation()

    def setup(self, stage: str) -> None:
        """Open the indexes that a stage needs."""
        self._hide_missing_validation()
        if self._fitting and self.on_error != "raise":
            self._skip_meeting = SkipMeeting(self.on_error, self.skipped)
            self.trainer.callbacks.append(self._skip_meeting)
        for name in self._needed(stage):
            if name not in self.unindexed:
                self.index(name)

    def train_dataloader(self) -> ShardLoader | BestEffortLoader:
        """Shuffled full batches; in a fixed order under ``overfit_batches``."""
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        former = self._loaders.get("train")
        loader = self._loaders["train"] = train_loader(self, shuffle=not overfit, former=former)
        loader.skipped = self.skipped
        resume_from, self._resume_from = self._resume_from, None
        if resume_from is not None:
            loader.load_state_dict(resume_from)
        return loader

    def val_dataloader(self) -> ShardLoader | BestEffortLoader:
        """Every validation sample once."""
        return self._evaluation("val")

    def test_dataloader(self) -> ShardLoader | BestEffortLoader:
        """Every test sample once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> ShardLoader | BestEffortLoader:
        """Every sample to predict once."""
        return self._evaluation("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch, make its images floats, and augment it if it is a training batch."""
        if not isinstance(batch, ShardBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        target = batch.target
        if isinstance(target, Tensor):
            target = target.to(device, non_blocking=True)
        elif target is not None:
            target = super().transfer_batch_to_device(target, device, dataloader_idx)
        with torch.no_grad():
            image = unit_float(batch.image, device)
            if batch.training and self.batch_transform is not None:
                seed = derive_int(self.seed, "batch transform", batch.epoch, batch.number, self.share()[0])
                image, target = augment_targets(self.batch_transform, image, target, self._targets, seed=seed)
            if self.trainer is not None:
                # the Trainer's own conversion came before, and passes integers by
                image = self.trainer.precision_plugin.convert_input(image)
        self.batch_ids = None if batch.ids is None else batch.ids.to(device, non_blocking=True)
        if self.batch_format == "dict":
            named = {"target": target} if self._targets is None else self._targets.named(target)
            parts = {"image": image, **named, "index": self.batch_ids}
            return {name: part for name, part in parts.items() if part is not None}
        return image if target is None else (image, target)

    def state_dict(self) -> dict[str, Any]:
        """What the training order depends on; where in it a run is, Lightning asks of the loader."""
        loader = self._loaders.get("train")
        return {} if loader is None else {"train": loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next fit go on where the checkpoint was written.

        Lightning hands the state of a loader back in mid-epoch, but not to one that was made before the loops were
        restored, as ``trainer.estimated_stepping_batches`` in ``configure_optimizers`` does. This one comes earlier.

        Raises:
            InputError: naming both sets of shards, or the settings that differ.
        """
        state = state_dict.get("train")
        if state is None or not self._fitting or self.shards["train"] is None:
            return
        # a run that has not begun may begin with another batch size, as the Tuner lets it when it looks for one
        if state.get("consumed") or state.get("epoch"):
            self._resume_from = state
            self.train_dataloader()  # refuses a state that does not fit before anything is trained
            self._resume_from = state

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Stop the workers."""
        self.__dict__.pop("val_dataloader", None)
        self._resume_from = None
        if self._skip_meeting is not None and self._skip_meeting in self.trainer.callbacks:
            self.trainer.callbacks.remove(self._skip_meeting)
        for loader in self._loaders.values():
            loader.close()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        """Stop the workers; Lightning calls this in place of ``teardown`` when a run raises."""
        self.teardown("")

    def _hide_missing_validation(self) -> None:
        self.__dict__.pop("val_dataloader", None)
        if self._fitting and self.shards["val"] is None:
            # Lightning warns of an empty list of loaders; a hook that is None counts as not there
            self.__dict__["val_dataloader"] = None

    @property
    def _fitting(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == "fit"

    def _needed(self, stage: str | None) -> tuple[SetName, ...]:
        return tuple(name for name in sets_of(stage, self.trainer) if self.shards[name] is not None)

    def _open(self, name: SetName, *, progress: bool = False) -> ShardIndex:
        if name in self.unindexed:
            raise InputError(f"The {name} shards have no index, as unindexed={self.unindexed!r} says.")
        return open_set(
            name,
            self.named(name),
            label_key=self.label_key,
            num_classes=self.num_classes,
            keep_labels=self.keep_labels.get(name),
            renumber=self.renumber_labels,
            members=() if self._targets is None else self._targets.members,
            remote=self.remote,
            progress=progress,
        )

    def _evaluation(self, name: SetName) -> ShardLoader | BestEffortLoader:
        self._loaders[name] = evaluation_loader(self, name)
        return self._loaders[name]
