"""Where a loader is: the epoch and the samples that were delivered in it."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import SequentialSampler


class EpochCursor:
    """Counts epochs; the ``sampler`` of a loader, since that is what Lightning calls ``set_epoch`` on.

    Every pass over the loader is a new epoch, unless ``set_epoch`` says which.

    Attributes:
        when_set: called when an epoch was set.
    """

    def __init__(self) -> None:
        self.when_set: Callable[[], None] | None = None
        self._started = -1
        self._consumed = 0
        self._wanted: int | None = None
        self._resumed: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self._wanted = epoch
        if self.when_set is not None:
            self.when_set()

    def resume(self, epoch: int, consumed: int) -> None:
        """Let the next pass go on in the middle of an epoch, unless ``set_epoch`` names another epoch."""
        self._resumed = (epoch, consumed)

    def begin(self) -> tuple[int, int]:
        """Start a pass: its epoch, and the samples of it that were delivered before."""
        self._started, self._consumed = self.position(next_pass=True)
        self._wanted = self._resumed = None
        return self._started, self._consumed

    def advance(self, consumed: int) -> None:
        """Note how many samples of the epoch were delivered, on all ranks together."""
        self._consumed = consumed

    def position(self, *, next_pass: bool = False) -> tuple[int, int]:
        """Epoch and delivered samples, of the running pass or of the one that would start now."""
        if self._resumed is not None and self._wanted in (None, self._resumed[0]):
            return self._resumed
        if self._wanted is not None:
            return self._wanted, 0
        if next_pass or self._started < 0:
            return self._started + 1, 0
        return self._started, self._consumed


class UnshuffledCursor(EpochCursor, SequentialSampler):
    """The cursor of a loader that does not shuffle.

    With ``overfit_batches`` Lightning warns about every loader whose sampler is not a ``SequentialSampler``.
    """
