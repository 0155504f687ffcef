"""What a loader is told, and the batch that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lightning_robust.datamodules.worker import SampleTransform
from lightning_robust.errors import InputError


def as_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width from what the user gave (a list, if it came from YAML)."""
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"image_size={image_size} is no size: give height and width in pixels, or one for both.")
    return size


def checked_transform(transform: Callable[..., Any] | None) -> SampleTransform | None:
    """Refuse a sample transform whose randomness could not be tied to the sample."""
    if transform is not None and not hasattr(transform, "set_random_seed"):
        raise InputError(
            f"sample_transform is {type(transform).__name__}, which has no set_random_seed: give an Albumentations "
            "transform or Compose (version 2), so that a sample is augmented alike however the data is split."
        )
    return transform


def check_arguments(batch_size: int, purpose: str, num_workers: int, rank: int, world: int) -> None:
    """Refuse arguments of a loader that mean nothing."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is not a number of samples: give 1 or more.")
    if num_workers < 0:
        raise InputError(f"num_workers={num_workers} is not a number of processes: give 0 or more.")
    if not 0 <= rank < world:
        raise InputError(f"rank={rank} is not one of {world} ranks: give 0 <= rank < world.")
    if purpose not in ("train", "evaluate"):
        raise InputError(f"purpose={purpose!r} is unknown: give 'train' or 'evaluate'.")


class ShardBatch(NamedTuple):
    """A batch as it leaves the loader.

    Attributes:
        image: uint8, (B, C, H, W), in channels-last memory.
        target: class numbers, int64, (B,), or None for a set without labels; or what ``targets`` names.
        ids: sample ids, int64, (B,), or None for shards without an index.
        epoch: epoch of the pass.
        number: position of the batch in the epoch.
        training: whether it comes from a training loader.
    """

    image: Tensor
    target: Any
    ids: Tensor | None
    epoch: int
    number: int
    training: bool


@dataclass(frozen=True)
class LoaderOptions:
    """How worker processes are run; nothing here changes the batches.

    Args:
        prefetch_factor: batches that each worker prepares ahead.
        persistent_workers: keep the workers between epochs.
        pin_memory: copy batches to page-locked memory, for transfer to a GPU.
        start_method: how workers are started; None takes Python's default.
        recycle: fill the same shared buffers again and again, which saves the page faults of fresh ones.
    """

    prefetch_factor: int = 2
    persistent_workers: bool = True
    pin_memory: bool = False
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
    recycle: bool = True

    def __post_init__(self) -> None:
        if self.prefetch_factor < 1:
            raise InputError(f"prefetch_factor={self.prefetch_factor} leaves the workers idle: give 1 or more.")
