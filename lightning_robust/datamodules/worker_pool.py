"""The worker processes of a loader, and the buffers that they fill."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from lightning_robust.datamodules.options import LoaderOptions
from lightning_robust.datamodules.ring import BufferRing
from lightning_robust.datamodules.tasks import LoaderPlan
from lightning_robust.datamodules.worker import BatchMaker, Made, Task, limit_threads
from lightning_robust.errors import RobustError

# besides the buffers of the tasks under way: the batch that the user holds, and the one he is about to get
_EXTRA_BUFFERS = 2


class WorkerPool:
    """Makes the batches of a plan in worker processes, which are started with the first pass.

    Args:
        maker: what makes one batch.
        batch_size: the most samples of a batch.
        num_workers: processes; 0 makes the batches in this one.
        options: how they are run.
    """

    def __init__(self, maker: BatchMaker, batch_size: int, num_workers: int, options: LoaderOptions) -> None:
        self._maker, self._batch_size = maker, batch_size
        self._num_workers, self._options = num_workers, options
        self._shape: tuple[int, ...] | None = None
        self._ring: BufferRing | None = None
        self._feed = _Feed()
        self._workers: DataLoader[Made | RobustError] | None = None
        self._running: Any = None

    def results(self, plan: LoaderPlan, epoch: int, first: int) -> Iterator[Made | RobustError]:
        """Batches of an epoch from number ``first`` on; an error comes as a result, and ends it."""
        if self._shape is None:
            self._shape = self._maker.image_shape()
        if self._num_workers == 0:
            return map(self._maker.__getitem__, plan.tasks(epoch, first, self._shape, None))
        if self._workers is None:
            self._workers = self._started(self._shape, plan.batches)
        self._feed.tasks = plan.tasks(epoch, first, self._shape, self._ring)
        results: Iterator[Made | RobustError] = iter(self._workers)
        self._running = results
        return results

    def image(self, made: Made) -> Tensor:
        """The images of a batch that was made: uint8, (B, C, H, W), in channels-last memory."""
        if isinstance(made.images, Tensor):
            image = made.images
        elif self._ring is not None:
            image = self._ring.lend(made.images, len(made.ids))
        image = image.permute(0, 3, 1, 2)
        return image.pin_memory() if self._options.pin_memory else image

    def close(self) -> None:
        """Stop the workers; a later pass starts new ones."""
        if self._running is not None:
            # left to the garbage collector, workers with tasks in hand would hold it up for seconds
            self._running._shutdown_workers()
        self._running = self._workers = self._ring = self._maker.buffers = None

    def _started(self, shape: tuple[int, ...], batches: int) -> DataLoader[Made | RobustError]:
        if self._options.recycle:
            slots = min(self._num_workers * self._options.prefetch_factor, batches) + _EXTRA_BUFFERS
            self._ring = BufferRing(slots, (self._batch_size, *shape))
            self._maker.buffers = self._ring.buffers
        return DataLoader(
            self._maker,  # type: ignore[arg-type]  # it has what torch uses of a Dataset
            sampler=self._feed,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self._num_workers,
            prefetch_factor=self._options.prefetch_factor,
            persistent_workers=self._options.persistent_workers,
            multiprocessing_context=self._options.start_method,
            worker_init_fn=limit_threads,
        )


class _Feed:
    """The sampler of the inner DataLoader; holds the tasks of the running pass."""

    tasks: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.tasks


def _as_it_is(made: Any) -> Any:
    return made
