"""What every source of samples has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.writing import Sample


class SampleSource(Sequence[Sample]):
    """A sequence of samples that are made when they are asked for.

    Args:
        targets: class number of each sample; None in a set without class numbers.
        classes: names of the classes, if there are any.

    Raises:
        InputError: there are no samples, or a target is not a class.
    """

    def __init__(self, targets: npt.ArrayLike | None, classes: Sequence[str] | None) -> None:
        self.targets: npt.NDArray[np.int64] | None = None
        self.classes = None if classes is None else tuple(classes)
        if targets is None:
            return
        self.targets = np.asarray(targets, dtype=np.int64)
        if self.targets.ndim != 1 or len(self.targets) == 0:
            raise InputError(f"Targets of shape {self.targets.shape} were found, expected one for each of 1 or more.")
        limit = np.inf if classes is None else len(classes)
        wrong = np.flatnonzero((self.targets < 0) | (self.targets >= limit))
        if wrong.size:
            allowed = "0 or more" if classes is None else f"0 to {len(classes) - 1} ({len(classes)} classes)"
            raise InputError(
                f"The target of {self.describe(int(wrong[0]))} is {self.targets[wrong[0]]}, expected {allowed}; "
                f"so it is with {wrong.size} of {len(self.targets)} samples."
            )

    @abstractmethod
    def make(self, position: int) -> Sample:
        """Make the sample at a position in [0, len(self))."""

    @property
    def labeled(self) -> bool:
        """Whether the samples have class numbers."""
        return self.targets is not None

    def target(self, position: int) -> int | None:
        """Class number of a sample, if it has one."""
        return None if self.targets is None else int(self.targets[position])

    def describe(self, position: int) -> str:
        """Name a sample for a message."""
        return f"sample {position}"

    @overload
    def __getitem__(self, position: int) -> Sample: ...
    @overload
    def __getitem__(self, position: slice) -> list[Sample]: ...
    def __getitem__(self, position: int | slice) -> Sample | list[Sample]:
        if isinstance(position, slice):
            return [self.make(item) for item in range(*position.indices(len(self)))]
        return self.make(range(len(self))[position])
