"""BestEffortLoader: uint8 batches from shards that cannot be indexed, in one pass forwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal

from torch.utils.data import DataLoader

from lightning_robust.datamodules.epochs import EpochCursor, UnshuffledCursor
from lightning_robust.datamodules.options import (
    LoaderOptions,
    ShardBatch,
    as_size,
    check_arguments,
    checked_transform,
)
from lightning_robust.datamodules.sample_stream import SampleStream, Streamed
from lightning_robust.datamodules.skipped import OnError, SkippedSamples, check_on_error
from lightning_robust.datamodules.target_worker import check_sample_transform
from lightning_robust.datamodules.worker import SampleTransform, limit_threads
from lightning_robust.errors import InputError, RobustError, RobustWarning, UnsupportedError
from lightning_robust.shards import RemoteOptions
from lightning_robust.shards.paths import Shards
from lightning_robust.shards.stream import expand_streams, named

_STATE_VERSION = 1


class BestEffortLoader:
    """Streams uint8 batches to one rank from shards that have no index.

    For a source that cannot be sought or read beforehand: a store that forbids Range and is too large for the cache, or
    a named pipe. :class:`ShardLoader` is exact, and the better choice wherever the shards can be indexed.

    A training epoch is ``epoch_batches`` full batches on every rank. The shards are permuted for each epoch and each
    reader (rank x worker) has its own, which it reads over and over until its batches are made. Not promised: every
    sample once in an epoch, the same samples for another number of ranks or workers, and going on at the sample after
    a resume. An evaluation is one pass over all samples, in one process.

    Every pass is a new epoch; ``loader.sampler.set_epoch`` chooses one. One pass at a time: a new one ends the former.

    Args:
        shards: a path, URL, glob, brace pattern or folder, or a list of these.
        batch_size: samples per rank and batch.
        epoch_batches: batches per rank and training epoch.
        purpose: ``"train"`` or ``"evaluate"``.
        shuffle: give every training epoch its own order; False takes shards and samples as they come.
        shuffle_buffer: encoded samples that a reader holds to mix them.
        seed: seed of the order and of ``sample_transform``.
        rank: number of this process among those that share the data.
        world: number of such processes.
        num_workers: worker processes; 0 reads and decodes in this one.
        image_size: height and width (or one number for both): images are scaled to cover it and cropped at the center.
        sample_transform: Albumentations transform of (H, W, C) uint8 images, seeded by (seed, epoch, key).
        label_key: extension of the member that holds the class number; None for shards without labels.
        num_classes: if given, every label must be below it.
        on_error: ``"raise"``, or ``"skip"`` to leave out a training sample that cannot be decoded and count it in
            :attr:`skipped`, or a number: as ``"skip"``, until more samples than that were left out on this rank.
        options: how workers are run; ``recycle`` has no effect.
        remote: how shards at URLs are read.

    Raises:
        InputError: if an argument is not what it should be, or there are fewer shards than readers.
        UnsupportedError: if an evaluation is shared by several processes.

    Example::

        loader = BestEffortLoader("https://host/s-{000..099}.tar", batch_size=64, epoch_batches=1000, num_workers=4)
        for batch in loader:
            image = batch.image.float() / 255
    """

    # Lightning asks for it next to ``sampler``
    batch_sampler = None

    def __init__(
        self,
        shards: Shards,
        *,
        batch_size: int,
        epoch_batches: int | None = None,
        purpose: Literal["train", "evaluate"] = "train",
        shuffle: bool = True,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        image_size: int | tuple[int, int] | None = None,
        sample_transform: SampleTransform | None = None,
        label_key: str | None = "cls",
        num_classes: int | None = None,
        on_error: OnError = "raise",
        options: LoaderOptions = LoaderOptions(),
        remote: RemoteOptions = RemoteOptions(),
    ) -> None:
        check_arguments(batch_size, purpose, num_workers, rank, world)
        check_on_error(on_error, purpose)
        check_sample_transform(sample_transform, None)
        train = purpose == "train"
        _check_epoch(epoch_batches, shuffle_buffer, world, num_workers, train=train)
        self.shards = expand_streams(shards, remote)
        self.epoch_batches, self.rank = epoch_batches, rank
        self.num_workers, self.options = num_workers, options
        self._skipped = SkippedSamples(on_error, "skipped")
        _check_readers(len(self.shards), world, num_workers)
        self.sampler = EpochCursor() if train and shuffle else UnshuffledCursor()
        self._train, self._warned = train, False
        self._stream = SampleStream(
            shards=self.shards,
            remote=remote,
            batch_size=batch_size,
            batches=epoch_batches,
            rank=rank,
            world=world,
            shuffle_buffer=shuffle_buffer if train and shuffle else 0,
            seed=seed,
            image_size=as_size(image_size),
            sample_transform=checked_transform(sample_transform),
            label_key=label_key,
            num_classes=num_classes,
            skip=on_error != "raise",
        )
        self._workers: DataLoader[Streamed | RobustError] | None = None
        self._running: Any = None
        self._pass = 0

    @property
    def skipped(self) -> dict[str, str]:
        """Samples that were left out on this rank, with the reason."""
        return self._skipped.reasons

    @skipped.setter
    def skipped(self, reasons: dict[str, str]) -> None:
        self._skipped.reasons = reasons

    def __len__(self) -> int:
        if self.epoch_batches is None:
            raise TypeError("An evaluation of shards without an index has no known length.")
        return self.epoch_batches

    # A generator function: Lightning calls iter() once only to see whether it works, and set_epoch after the second.
    def __iter__(self) -> Iterator[ShardBatch]:
        self._pass += 1
        this_pass = self._pass
        epoch, first = self.sampler.begin()
        if self._train:
            self._warn(epoch, first)
        self._stream.position.copy_(self._stream.position.new_tensor([epoch, first]))
        if self._workers is None:
            self._workers = self._started_workers()
        self._running = iter(self._workers)
        try:
            for number, made in enumerate(self._running, first):
                if isinstance(made, RobustError):
                    self.close()
                    raise made
                self._skipped.take(made.skipped)
                image = made.images.permute(0, 3, 1, 2)
                if self.options.pin_memory:
                    image = image.pin_memory()
                # the batch counts as delivered before it is yielded: a checkpoint is written while the loop holds it
                self.sampler.advance(number + 1)
                yield ShardBatch(image, made.labels, None, epoch, number, self._train)
                if self._pass != this_pass:
                    raise UnsupportedError(
                        "This pass over a BestEffortLoader cannot go on, since another was begun or the loader was "
                        "closed: go through one at a time."
                    )
        finally:
            if self._pass == this_pass and not self.options.persistent_workers:
                self.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain data to go on from, counted in batches; the same on every rank."""
        epoch, batches = self.sampler.position()
        return {
            "version": _STATE_VERSION,
            "data": f"{len(self.shards)} shards from {named(self.shards[0])!r} on, read without an index,",
            "fingerprint": None,
            "epoch_batches": self.epoch_batches,
            "epoch": epoch,
            "batches": batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass make the batches that the epoch still lacks, of samples drawn anew.

        Raises:
            InputError: if the state is of a loader with an index, or of epochs of another length.
        """
        if "epoch_batches" not in state:
            raise InputError(
                f"The checkpoint was made on {state.get('data')} and counts samples, and the run reads shards without "
                "an index: resume with the index, or load the weights alone (load_from_checkpoint)."
            )
        if (found := state["epoch_batches"]) != self.epoch_batches or state["version"] != _STATE_VERSION:
            raise InputError(
                f"The checkpoint has epoch_batches={found} (version {state['version']}) and the run epoch_batches="
                f"{self.epoch_batches} (version {_STATE_VERSION}): resume with the same, or load the weights alone "
                "(load_from_checkpoint)."
            )
        self.sampler.resume(state["epoch"], state["batches"])

    def close(self) -> None:
        """Stop the workers, and with them a pass that is under way; a later pass starts new ones."""
        self._pass += 1
        if self._running is not None and self.num_workers:
            # left to the garbage collector, workers with tasks in hand would hold it up for seconds
            self._running._shutdown_workers()
        self._running = self._workers = None

    def _started_workers(self) -> DataLoader[Streamed | RobustError]:
        workers: dict[str, Any] = {}
        if self.num_workers:
            workers = {
                "prefetch_factor": self.options.prefetch_factor,
                "persistent_workers": self.options.persistent_workers,
                "multiprocessing_context": self.options.start_method,
                "worker_init_fn": limit_threads,
            }
        return DataLoader(self._stream, batch_size=None, collate_fn=_as_it_is, num_workers=self.num_workers, **workers)

    def _warn(self, epoch: int, first: int) -> None:
        if self.rank == 0 and not self._warned:
            warnings.warn(
                "Shards are read without an index. This run does not promise that an epoch holds every sample once "
                f"(it is {self.epoch_batches} batches on each rank, whatever the shards hold), nor the same samples "
                "for another number of ranks or workers, nor to go on at the sample after a resume (the rest of the "
                "epoch is drawn anew). Where the shards can be read beforehand, index them.",
                RobustWarning,
                stacklevel=3,
            )
        if self.rank == 0 and 0 < first < len(self):
            warnings.warn(
                f"The run goes on in epoch {epoch} after {first} of {len(self)} batches. Shards without an index "
                "cannot be sought, so that the rest of the epoch is drawn anew: it may hold samples that were seen.",
                RobustWarning,
                stacklevel=3,
            )
        self._warned = True


def _check_epoch(batches: int | None, shuffle_buffer: int, world: int, num_workers: int, *, train: bool) -> None:
    if shuffle_buffer < 1:
        raise InputError(f"shuffle_buffer={shuffle_buffer} holds no sample: give 1 or more, or shuffle=False.")
    if train and (batches is None or batches < 1):
        raise InputError(
            f"epoch_batches={batches}: give the number of batches of an epoch on each rank, 1 or more. Without an "
            "index nobody knows how many the shards hold."
        )
    if train:
        return
    if batches is not None:
        raise InputError(f"epoch_batches={batches} is of training; an evaluation reads all samples.")
    if world > 1 or num_workers > 1:
        raise UnsupportedError(
            f"An evaluation of shards without an index cannot be exact on {world} ranks with {num_workers} workers: "
            "evaluate in one process (devices=1, num_workers=0 or 1), or index the shards "
            "(`lightning-robust shards index`)."
        )


def _check_readers(shards: int, world: int, num_workers: int) -> None:
    readers = world * max(1, num_workers)
    if shards < readers:
        raise InputError(
            f"{shards} shards cannot be shared by {readers} readers (ranks: {world}, workers on each: {num_workers}), "
            "since without an index each needs a shard of its own: take fewer workers or ranks, or more and smaller "
            "shards."
        )


def _as_it_is(made: Any) -> Any:
    return made
