"""What a loader worker does: a list of sample ids in, one uint8 batch out."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from lightning_robust.datamodules.geometry import Pixels, fit_image
from lightning_robust.datamodules.skipped import OnError
from lightning_robust.errors import InputError, RobustError, ShardError
from lightning_robust.seeds import derive
from lightning_robust.shards import FetchError, SampleReader, ShardIndex, decode_image


class SampleTransform(Protocol):
    """What Albumentations' transforms have, and a sample transform needs."""

    def __call__(self, *args: Any, **data: Any) -> Any:
        """Augment what is given by name; returns it by the same names."""
        ...

    def set_random_seed(self, seed: int) -> Any:
        """Choose the random numbers of the next call."""
        ...


MOST_SKIPPED_IN_A_ROW = 100


class Task(NamedTuple):
    """One batch to make: the buffer to fill (None for a new one), sample ids and their rounds, the image shape."""

    slot: int | None
    ids: list[int]
    rounds: list[int]
    shape: tuple[int, ...]


class Made(NamedTuple):
    """A batch that was made.

    Its images are in the buffer of that number or in a tensor of their own, (B, H, W, C); then the ids that are in it,
    the ids that were skipped with the reason, and the targets that are read from members, if any are.
    """

    images: int | Tensor
    ids: list[int]
    skipped: dict[int, str]
    targets: dict[str, Any] | None = None


class Decoded(NamedTuple):
    """A sample: its image, uint8 (H, W, C), and by name the targets that were read from members, if any are."""

    image: Pixels
    targets: dict[str, Any] | None = None


def limit_threads(_: int) -> None:
    """Keep a worker process to one thread; the number of workers is the parallelism."""
    # not 1: that shrinks OpenCV's thread pool, and a forked process waits for ever for threads it never had
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def transform_image(transform: SampleTransform, image: Pixels, seed: int) -> Pixels:
    """Augment one image.

    Args:
        transform: Albumentations transform.
        image: uint8, (H, W, C).
        seed: of the transform's random numbers.

    Raises:
        InputError: if it returns anything but such an image.
    """
    transform.set_random_seed(seed)
    return checked_pixels(transform(image=image)["image"])


def checked_pixels(image: Any) -> Pixels:
    """Refuse what an augmentation made, unless it is an image, uint8 (H, W, C)."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        found = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "dtype") else type(image).__name__
        raise InputError(
            f"sample_transform made {found} of an image; it must return uint8 (H, W, C) arrays. "
            "Leave normalization and ToTensorV2 out: batches become floats on the device."
        )
    return image


class BatchMaker:
    """Reads, decodes, transforms and collates samples; a map-style data set whose keys are tasks.

    Args:
        index: the shards.
        seed: seed of the run.
        image_size: height and width that every image is brought to, or None to take images as they are.
        sample_transform: Albumentations transform for (H, W, C) uint8 images, or None.
        on_error: what to do with a sample that cannot be read or decoded.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        seed: int,
        image_size: tuple[int, int] | None,
        sample_transform: SampleTransform | None,
        on_error: OnError,
    ) -> None:
        self._index = index
        self._reader = SampleReader(index)
        self._seed = seed
        self._image_size = image_size
        self._transform = sample_transform
        self._on_error = on_error
        self.buffers: Tensor | None = None

    def image_shape(self) -> tuple[int, ...]:
        """Shape (H, W, C) of the first image of the set, which all others must have."""
        decoded, _ = self._sample(0, 0, None, {})
        return decoded.image.shape

    def __getitem__(self, task: Task) -> Made | RobustError:
        # torch wraps what a worker raises into a traceback of the worker; our errors are sentences and travel as such
        try:
            return self._make(task)
        except RobustError as error:
            return error

    def _make(self, task: Task) -> Made:
        shape = (len(task.ids), *task.shape)
        if task.slot is None or self.buffers is None:
            images = torch.empty(shape, dtype=torch.uint8)
        else:
            images = self.buffers[task.slot, : len(task.ids)]
        rows = images.numpy()
        ids, skipped, targets = list(task.ids), dict[int, str](), []
        for row, payload in enumerate(self._payloads(task.ids)):
            decoded, ids[row] = self._sample(task.ids[row], task.rounds[row], payload, skipped)
            if decoded.image.shape != task.shape:
                raise InputError(self._unequal(ids[row], decoded.image.shape, task.shape))
            rows[row] = decoded.image
            targets.append(decoded.targets)
        return Made(images if task.slot is None else task.slot, ids, skipped, self._gathered(targets))

    def _payloads(self, ids: list[int]) -> list[bytes] | list[None]:
        try:
            return self._reader.read(ids)
        except FetchError:  # a lost network is no bad sample
            raise
        except ShardError:
            if self._on_error == "raise":
                raise
            return [None] * len(ids)

    def _sample(
        self, sample: int, in_round: int, payload: bytes | None, skipped: dict[int, str]
    ) -> tuple[Decoded, int]:
        """A sample and its id, or, where it is bad and may be skipped, the next good one."""
        for candidate in range(sample, sample + MOST_SKIPPED_IN_A_ROW):
            candidate %= len(self._index)
            try:
                decoded = self._decode(candidate, payload if payload is not None else self._reader.read([candidate])[0])
            except ShardError as error:
                if self._on_error == "raise" or isinstance(error, FetchError):
                    raise
                skipped[candidate] = str(error)
                payload = None
                continue
            return self._transformed(decoded, candidate, in_round), candidate
        raise ShardError(
            f"{MOST_SKIPPED_IN_A_ROW} samples in a row could not be read from {self._index.describe(sample)} on, "
            f"the first because: {skipped[sample]} Check the shards; on_error='skip' is for single bad samples."
        )

    def _decode(self, sample: int, payload: bytes) -> Decoded:
        try:
            return Decoded(decode_image(payload, where=""))
        except ShardError:
            # naming the member costs a read, so it is done only for the sample that fails
            return Decoded(decode_image(payload, where=self._index.describe(sample)))

    def _transformed(self, decoded: Decoded, sample: int, in_round: int) -> Decoded:
        image = decoded.image
        if self._transform is not None:
            image = transform_image(self._transform, image, self._transform_seed(sample, in_round))
        return Decoded(image if self._image_size is None else fit_image(image, self._image_size))

    def _gathered(self, targets: list[dict[str, Any] | None]) -> dict[str, Any] | None:  # noqa: ARG002 - see TargetBatchMaker
        """The targets of a batch, from those of its samples."""
        return None

    def _transform_seed(self, sample: int, in_round: int) -> int:
        return int(derive(np.array([sample]), "sample transform", self._seed, in_round)[0]) & ((1 << 63) - 1)

    def _unequal(self, sample: int, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
        after = "after sample_transform " if self._transform is not None else ""
        return (
            f"Image of {self._index.describe(sample)} has shape (H, W, C) = {found} {after}and the first image of the "
            f"set {expected}: give image_size=({expected[0]}, {expected[1]}) or another size, or a sample_transform "
            "that ends in one size."
        )
