"""ShardLoader: uint8 batches from shards, by plan, for any training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch

from lightning_robust.datamodules.epochs import EpochCursor, UnshuffledCursor
from lightning_robust.datamodules.options import (
    LoaderOptions,
    ShardBatch,
    as_size,
    check_arguments,
    checked_transform,
)
from lightning_robust.datamodules.readahead import ReadAhead
from lightning_robust.datamodules.resuming import STATE_VERSION, Recount, check_form, check_order, resumed_position
from lightning_robust.datamodules.scheme import make_scheme
from lightning_robust.datamodules.skipped import OnError, SkippedSamples, check_on_error
from lightning_robust.datamodules.target_values import unpack_targets
from lightning_robust.datamodules.target_worker import make_maker
from lightning_robust.datamodules.targets import Targets, TargetSettings, parse_targets
from lightning_robust.datamodules.tasks import LoaderPlan
from lightning_robust.datamodules.worker import Made, SampleTransform
from lightning_robust.datamodules.worker_pool import WorkerPool
from lightning_robust.errors import InputError, RobustError, UnsupportedError
from lightning_robust.shards import ShardIndex


class ShardLoader:
    """Streams uint8 batches of a shard set to one rank.

    In training (``purpose="train"``) every rank gets the same number of full batches, in an order of its own for each
    epoch. In evaluation every sample is in one batch of one rank, and every rank has the same number of batches. Which
    samples are in a batch depends on the shards, the seed, the epoch and the global batch size alone.

    Every pass is a new epoch; ``loader.sampler.set_epoch`` chooses one. One pass at a time: a new one ends the former.

    Args:
        index: the shards, from :func:`lightning_robust.shards.open_index`, or a part of them, from its ``select`` or
            ``with_labels``.
        batch_size: samples per rank and batch; the most of them in evaluation.
        purpose: ``"train"`` or ``"evaluate"``.
        shuffle: give every training epoch its own order; False takes the samples as they lie in the shards.
        seed: seed of the order and of ``sample_transform``.
        shuffle_window: shards that are mixed with each other.
        balance: ``"class"`` to draw all classes equally often in a training epoch, whose length stays the same.
        mix: weights with which training draws from several sources, by pattern: ``{"cars": 0.7, "bikes/*.tar": 0.3}``.
        streams: places of the training order that are read side by side. With as many as machines, or a multiple, each
            machine needs its own part of the shards alone; every global batch takes as much from each.
        rank: number of this process among those that share the data.
        world: number of such processes.
        num_workers: worker processes; 0 decodes in this one.
        image_size: height and width (or one number for both): images are scaled to cover it and cropped at the center.
        sample_transform: Albumentations transform of (H, W, C) uint8 images, seeded by (seed, epoch, sample id);
            if balanced or mixed, by how often the sample was drawn before in place of the epoch.
        on_error: ``"raise"``, or ``"skip"`` to replace a training sample that cannot be decoded by the next good one
            and count it in :attr:`skipped`, or a number: as ``"skip"``, until this rank skipped more samples than that.
        targets: what batches have in place of the class number, by name: the extension of a member (``"seg.png"``, a
            mask; ``"meta.json"``), or a mapping with ``member``, ``kind`` (``"mask"``, ``"boxes"``, ``"multilabel"``,
            ``"json"``, ``"class"``), ``classes`` and ``ignore``. The index must be opened with these ``members``.
        options: how workers are run.

    Attributes:
        any_batch_size: set it to let :meth:`load_state_dict` take a state with another global batch size, and go on
            with the samples that its epoch has left. For loops that end an epoch with the loader: a Trainer counts
            batches itself, and :class:`ShardDataModule` corrects its count.
        recount: what the load changed in the number of batches done, for a Trainer to take over; None if nothing.

    Raises:
        InputError: if the data cannot be split exactly, or an argument is not what it should be.

    Example::

        for batch in ShardLoader(open_index("shards/"), batch_size=64, num_workers=2):
            image = batch.image.float() / 255
    """

    # Lightning asks for it next to ``sampler``
    batch_sampler = None

    def __init__(
        self,
        index: ShardIndex,
        *,
        batch_size: int,
        purpose: Literal["train", "evaluate"] = "train",
        shuffle: bool = True,
        seed: int = 0,
        shuffle_window: int = 16,
        balance: Literal["class"] | None = None,
        mix: Mapping[str, float] | None = None,
        streams: int = 1,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        image_size: int | tuple[int, int] | None = None,
        sample_transform: SampleTransform | None = None,
        on_error: OnError = "raise",
        targets: TargetSettings | Targets | None = None,
        options: LoaderOptions = LoaderOptions(),
    ) -> None:
        check_arguments(batch_size, purpose, num_workers, rank, world)
        check_on_error(on_error, purpose)
        self._targets = parse_targets(targets)
        self.index = index
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.num_workers, self.options = num_workers, options
        self._skipped = SkippedSamples(on_error, "skipped and replaced by the next good one")
        self._plan = LoaderPlan(
            counts=index.counts,
            batch_size=batch_size,
            rank=rank,
            world=world,
            train=purpose == "train",
            shuffle=purpose == "train" and shuffle,
            seed=seed,
            window=shuffle_window,
            scheme=make_scheme(index, balance=balance, mix=mix, purpose=purpose, shuffle=shuffle),
            streams=streams,
        )
        self.sampler = EpochCursor() if self._plan.shuffle else UnshuffledCursor()
        maker = make_maker(
            index,
            self._targets,
            seed=seed,
            image_size=as_size(image_size),
            sample_transform=checked_transform(sample_transform),
            on_error=on_error,
        )
        self._pool = WorkerPool(maker, batch_size, num_workers, options)
        self.any_batch_size = False
        self.recount: Recount | None = None
        self._ahead: ReadAhead | None = None
        self._pass = 0

    @property
    def skipped(self) -> dict[int, str]:
        """Samples that were skipped on this rank, with the reason."""
        return self._skipped.reasons

    @skipped.setter
    def skipped(self, reasons: dict[int, str]) -> None:
        self._skipped.reasons = reasons

    def __len__(self) -> int:
        return self._plan.batches

    # A generator function: Lightning calls iter() once only to see whether it works, and set_epoch after the second.
    def __iter__(self) -> Iterator[ShardBatch]:
        self._pass += 1
        this_pass = self._pass
        epoch, consumed = self.sampler.begin()
        plan = self._plan.entered(consumed)
        first = plan.done(consumed)
        labels = self.index.labels
        results = self._pool.results(plan, epoch, first)
        # after the workers were forked: a fork does not go well with threads
        self._begin_ahead(plan, epoch)
        try:
            for number in range(first, len(self)):
                if self._ahead is not None:
                    self._ahead.reach(number)
                made = self._received(results)
                ids = torch.tensor(made.ids)
                target = None if labels is None else torch.from_numpy(labels[made.ids].astype(np.int64))
                if self._targets is not None:
                    target = unpack_targets(self._targets, made.targets, target)
                # the batch counts as delivered before it is yielded: a checkpoint is written while the loop holds it
                self.sampler.advance(plan.delivered(number))
                yield ShardBatch(self._pool.image(made), target, ids, epoch, number, self._plan.train)
                if self._pass != this_pass:
                    raise UnsupportedError(
                        "This pass over a ShardLoader cannot go on, since another was begun or the loader was closed: "
                        "go through one at a time."
                    )
        finally:
            if self._pass == this_pass and not self.options.persistent_workers:
                self.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain data to go on from; the same on every rank."""
        epoch, consumed = self.sampler.position()
        return {
            "version": STATE_VERSION,
            "data": self._describe(),
            "fingerprint": self.index.fingerprint,
            "order": self._plan.settings(),
            "epoch": epoch,
            "consumed": consumed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass go on after the last batch that was delivered.

        Raises:
            InputError: as :meth:`check_state`.
        """
        self.check_state(state)
        consumed, self.recount = resumed_position(state, self._plan)
        self.sampler.resume(state["epoch"], consumed)

    def check_state(self, state: dict[str, Any]) -> None:
        """Check that a state can be gone on from with these shards and settings.

        Raises:
            InputError: if the state belongs to other shards or to another order of batches.
        """
        if state.get("fingerprint", self.index.fingerprint) != self.index.fingerprint:
            raise InputError(
                f"The checkpoint was made on {state.get('data')} and the run reads {self._describe()}: resume on the "
                "same shards, and the same samples of them, or load the weights alone (load_from_checkpoint) to start "
                "anew on others."
            )
        check_form(state)
        check_order(state, self._plan, any_batch_size=self.any_batch_size)

    def close(self) -> None:
        """Stop the workers, and with them a pass that is under way; a later pass starts new ones."""
        self._pass += 1
        self.recount = None
        self._pool.close()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _begin_ahead(self, plan: LoaderPlan, epoch: int) -> None:
        if self.index.remote is None:
            return
        if self._ahead is None:
            depth = self.num_workers * self.options.prefetch_factor
            self._ahead = ReadAhead(self.index.remote, depth)
        self._ahead.begin(plan, epoch)

    def _received(self, results: Iterator[Made | RobustError]) -> Made:
        try:
            made = next(results)
        except BaseException:
            self.close()
            raise
        if isinstance(made, RobustError):
            self.close()
            raise made
        self._skipped.take(made.skipped)
        return made

    def _describe(self) -> str:
        index = self.index
        selection = f" ({index.selection})" if index.selection else ""
        return f"{len(index)} samples{selection} in {len(index.paths)} shards from {index.named(0)!r} on"
