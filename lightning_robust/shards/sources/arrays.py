"""Samples from arrays in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.base import SampleSource
from lightning_robust.shards.writing import Sample


class ArraySamples(SampleSource):
    """Images and class numbers held in arrays; they are written as PNG.

    Args:
        images: uint8, shape (N, H, W), (N, H, W, 1) or (N, H, W, 3).
        targets: class numbers, shape (N,).
        classes: names of the classes.

    Raises:
        InputError: the arrays have other types or shapes, or a target is not a class.

    Example:
        >>> source = ArraySamples(np.zeros((2, 4, 4, 3), np.uint8), [1, 0])
        >>> [(sample.key, sample.target) for sample in source]
        [('00000000', 1), ('00000001', 0)]
    """

    def __init__(
        self, images: npt.NDArray[np.uint8], targets: npt.ArrayLike, *, classes: Sequence[str] | None = None
    ) -> None:
        if images.ndim == 4 and images.shape[3] == 1:
            images = images[..., 0]
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise InputError(
                f"Images are {images.dtype} of shape {images.shape}, expected uint8 of shape (N, H, W), (N, H, W, 1) "
                "or (N, H, W, 3)."
            )
        super().__init__(targets, classes)
        if np.size(targets) != len(images):
            raise InputError(f"There are {len(images)} images and {np.size(targets)} targets; expected as many.")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def make(self, position: int) -> Sample:
        """Make the sample at a position; its key is the position."""
        return Sample(f"{position:08d}", self.images[position], self.target(position))
