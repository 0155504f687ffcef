"""Sharpening of whole shard sets as a Lightning prediction: the ranks share the shards out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from tqdm import tqdm

from lightning_robust.datamodules.together import together
from lightning_robust.shards.paths import Shards
from lightning_robust.shards.remote import RemoteOptions
from lightning_robust.shards.robustify_job import Job
from lightning_robust.shards.robustify_options import Sharpening
from lightning_robust.shards.robustify_set import finish_robustify, job_document, plan_robustify, sharpen_unit
from lightning_robust.shards.robustify_units import Unit

_DEFAULT = Sharpening()
_Result = TypeVar("_Result")


class Robustification(pl.LightningModule):
    """:func:`lightning_robust.shards.robustify` as a prediction, for as many processes as the Trainer starts.

    In a prediction step, every rank sharpens a shard of its own (of an image folder, the images of one subfolder). No
    shard is done twice; a rank for which none is left waits. When all are done, rank 0 writes index and manifest. The
    result has the same bytes as that of one process. A job that was killed goes on, with any number of ranks.

    After a step the ranks tell each other how it went, so that an error of one ends the run on all of them; what was
    finished is kept. A step lasts as long as the longest of its shards; therefore those with as many samples share one.
    It may last longer than the time-out of the process group: one rank waits for another as long as that shows signs of
    life. All machines must see source and destination under the same paths.

    Args:
        source: shards as :func:`lightning_robust.shards.open_index` takes them, or a folder of class folders of images.
        destination: a new folder.
        sharpening: how images are sharpened and written.
        image_keys: extensions of the image member; the first present is taken.
        label_key: extension of the class number; None for a set without labels.
        progress: show a bar on rank 0.
        remote: how shards at URLs are fetched.

    Raises:
        InputError: in ``predict``, as :func:`lightning_robust.shards.robustify`.
        ShardError: in ``predict``, a shard or an image is damaged.
        RobustError: in ``predict``, another process raised, or is gone.

    Example::

        trainer = Trainer(accelerator="cpu", strategy="ddp", devices=8, num_nodes=4)
        trainer.predict(Robustification("shards/val", "shards/val-sharp"), return_predictions=False)
    """

    def __init__(
        self,
        source: Shards,
        destination: str | os.PathLike[str],
        *,
        sharpening: Sharpening = _DEFAULT,
        image_keys: Sequence[str] = ("jpg", "jpeg", "png", "webp"),
        label_key: str | None = "cls",
        progress: bool = False,
        remote: RemoteOptions = RemoteOptions(),
    ) -> None:
        super().__init__()
        self.source, self.destination, self.sharpening = source, Path(destination).absolute(), sharpening
        self.image_keys, self.label_key, self.progress, self.remote = tuple(image_keys), label_key, progress, remote
        self.manifest: dict[str, Any] | None = None
        self._job = Job(self.destination)
        self._document: dict[str, Any] = {}
        self._units: list[Unit] = []
        self._bar: tqdm[Any] | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning names it
        """List what is left to do; the ranks look for it together, and agree on it."""
        self._together(lambda _: self._plan())
        # one rank makes the folder: to another, half of what is in it would look like somebody else's
        self._together(lambda _: self._begin())
        left = self._together(lambda _: self._left())
        self._units = [self._units[position] for position in sorted(itertools.chain.from_iterable(left))]

    def predict_dataloader(self) -> range:
        """Positions of this rank's units; every rank has as many, and those behind the last unit stand for none.

        Not a ``DataLoader``, so that Lightning does not share it out once more.
        """
        world = self.trainer.world_size
        rounds = max(1, -(-len(self._units) // world))
        return range(self.global_rank, rounds * world, world)

    def on_predict_start(self) -> None:
        """Show the bar."""
        total = sum(unit.samples for unit in self._units)
        shown = self.progress and self.trainer.is_global_zero
        self._bar = tqdm(total=total, desc="Sharpening", unit=" images", disable=not shown)

    def predict_step(self, batch: int) -> int:
        """Sharpen the unit at a position, if there is one; returns how many images it holds."""
        done = self._together(lambda stay: self._sharpen(batch, stay))
        own = done[self.global_rank]
        if self._bar is not None:
            self._bar.update(sum(done) - own)
        return own

    def on_predict_end(self) -> None:
        """Write index and manifest on rank 0, while the others wait."""
        self._close_bar()
        first, *_ = self._together(lambda _: self._finish())
        self.manifest = first

    def _plan(self) -> None:
        plan = plan_robustify(
            self.source, self.destination, image_keys=self.image_keys, label_key=self.label_key, remote=self.remote
        )
        self._document = job_document(plan, self.sharpening)
        self._units = sorted(plan.units, key=lambda unit: -unit.samples)

    def _begin(self) -> None:
        if self.trainer.is_global_zero:
            self._job.begin(self._document)

    def _left(self) -> list[int]:
        self._job.begin(self._document)
        share = range(self.global_rank, len(self._units), self.trainer.world_size)
        return [position for position in share if not self._job.is_done(self._units[position].name)]

    def _sharpen(self, position: int, stay: Callable[[], None]) -> int:
        if position >= len(self._units):
            return 0
        unit = self._units[position]

        def advance() -> None:
            stay()
            if self._bar is not None:
                self._bar.update()

        sharpen_unit(unit, self.sharpening, self._job, advance)
        return unit.samples

    def _finish(self) -> dict[str, Any] | None:
        return finish_robustify(self.destination) if self.trainer.is_global_zero else None

    def _together(self, work: Callable[[Callable[[], None]], _Result]) -> list[_Result]:
        try:
            return together(work, self.trainer.world_size)
        except Exception:  # of any kind, and raised again: an open bar would be drawn over its message
            self._close_bar()
            raise

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
