"""What a worker of :class:`BestEffortLoader` does: shards in, uint8 batches out, by webdataset's own pipeline."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_robust.datamodules.geometry import Pixels, fit_image
from lightning_robust.datamodules.worker import MOST_SKIPPED_IN_A_ROW, SampleTransform, transform_image
from lightning_robust.errors import InputError, RobustError, ShardError
from lightning_robust.seeds import derive_int
from lightning_robust.shards import RemoteOptions, decode_image
from lightning_robust.shards.stream import named, read_members

_IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")
_MOST_DIGITS = 18


class Streamed(NamedTuple):
    """A batch: images (B, H, W, C), labels (B,), and the samples that were skipped before it, with the reason."""

    images: Tensor
    labels: Tensor | None
    skipped: dict[str, str]


class _Reader(NamedTuple):
    """One of the processes that share the shards in one pass."""

    number: int
    readers: int
    epoch: int
    first: int


def _position() -> Tensor:
    position: Tensor = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    return position


@dataclass
class SampleStream(IterableDataset[Streamed | RobustError]):
    """The batches of one rank, or of one of its workers.

    In training, the shards are permuted anew, shared out, and read over and over until the batches are made; in
    evaluation they are read once.

    Args:
        shards: paths and URLs.
        remote: how URLs are read.
        batch_size: samples per batch.
        batches: batches of an epoch on this rank, or None for an evaluation.
        rank: number of this process among those that share the data.
        world: number of such processes.
        shuffle_buffer: encoded samples that are mixed with each other; 0 takes shards and samples as they come.
        seed: seed of the order and of ``sample_transform``.
        image_size: height and width, or None to take images as they are.
        sample_transform: Albumentations transform, or None.
        label_key: extension of the class number, or None.
        num_classes: if given, every label must be below it.
        skip: leave out samples that do not decode.
        position: epoch and first batch of the pass, in shared memory: workers that stay read it anew.
    """

    shards: list[str]
    remote: RemoteOptions
    batch_size: int
    batches: int | None
    rank: int
    world: int
    shuffle_buffer: int
    seed: int
    image_size: tuple[int, int] | None
    sample_transform: SampleTransform | None
    label_key: str | None
    num_classes: int | None
    skip: bool
    position: Tensor = field(default_factory=_position)

    def __iter__(self) -> Iterator[Streamed | RobustError]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, first = self.position.tolist()
        reader = _Reader(self.rank * workers + worker, self.world * workers, epoch, first)
        # torch takes batches from the workers in turn
        own = None if self.batches is None else len(range(first + worker, self.batches, workers))
        # torch wraps what a worker raises into a traceback of the worker; our errors are sentences and travel as such
        try:
            yield from itertools.islice(self._batches(reader), own)
        except RobustError as error:
            yield error

    def _batches(self, reader: _Reader) -> Iterator[Streamed]:
        images, labels, skipped = list[Pixels](), list[int](), dict[str, str]()
        shape = None
        for image, label, name in self._examples(reader, skipped):
            shape = shape or image.shape
            if image.shape != shape:
                raise InputError(
                    f"Image of {name} has shape (H, W, C) = {image.shape} and the first image of this stream {shape}: "
                    f"give image_size=({shape[0]}, {shape[1]}) or another size, or a sample_transform that ends in "
                    "one size."
                )
            images.append(image)
            labels.append(label)
            if len(images) == self.batch_size:
                yield self._collated(images, labels, skipped)
                images, labels = [], []
                skipped.clear()
        if images:
            yield self._collated(images, labels, skipped)

    def _collated(self, images: list[Pixels], labels: list[int], skipped: dict[str, str]) -> Streamed:
        target = None if self.label_key is None else torch.tensor(labels)
        return Streamed(torch.from_numpy(np.stack(images)), target, dict(skipped))

    def _examples(self, reader: _Reader, skipped: dict[str, str]) -> Iterator[tuple[Pixels, int, str]]:
        in_a_row = 0
        for turn, sample in self._samples(reader):
            name = f"sample {sample['__key__']!r} of shard {sample['__url__']!r}"
            label = self._label(sample, name)
            try:
                image = decode_image(_image_bytes(sample, name), where=name)
            except ShardError as error:
                in_a_row += 1
                if not self.skip or in_a_row == MOST_SKIPPED_IN_A_ROW:
                    raise
                skipped[name] = str(error)
                continue
            in_a_row = 0
            if self.sample_transform is not None:
                seed = derive_int(self.seed, "sample transform", reader.epoch, turn, sample["__key__"])
                image = transform_image(self.sample_transform, image, seed)
            yield image if self.image_size is None else fit_image(image, self.image_size), label, name

    def _samples(self, reader: _Reader) -> Iterator[tuple[int, dict[str, Any]]]:
        """Undecoded samples, with the number of times that the shards were gone through before."""
        for turn in range(1) if self.batches is None else itertools.count():
            try:
                for sample in self._pipeline(reader, turn):
                    yield turn, sample
            except RobustError:
                raise
            except ValueError as error:  # webdataset's, of two members with one name in a sample
                raise ShardError(f"{error.args[0]}. Pack the samples again.") from error

    def _pipeline(self, reader: _Reader, turn: int) -> Any:
        import webdataset as wds
        from webdataset.tariterators import group_by_keys

        path = (reader.epoch, reader.first, turn)
        # shuffled before it is split, alike on every rank, so that a rank has other shards in each epoch
        seed = derive_int(self.seed, "streamed shards", *path) if self.shuffle_buffer else None
        stages = [
            wds.SimpleShardList(self.shards, seed=seed),
            # webdataset's splitters ask the environment and the process group, which a spawned worker lacks
            lambda shards: itertools.islice(shards, reader.number, None, reader.readers),
            self._members,
            group_by_keys,
        ]
        if self.shuffle_buffer:
            seed = derive_int(self.seed, "streamed samples", *path, reader.number)
            stages.append(wds.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, seed=seed))
        return wds.DataPipeline(*stages)

    def _members(self, shards: Iterator[dict[str, str]]) -> Iterator[dict[str, Any]]:
        """Members as webdataset's grouping takes them; its own opener runs curl, its own tar reader sees no damage."""
        wanted = {*_IMAGE_KEYS, self.label_key}
        for shard in shards:
            url, found = named(shard["url"]), False
            for name, data in read_members(shard["url"], self.remote):
                if name.rpartition("/")[2].partition(".")[2].lower() in wanted:
                    found = True
                    yield {"fname": name, "data": data, "__url__": url}
            if not found:
                raise ShardError(f"Shard {url!r} holds no samples: no member ends in {_spelled(wanted)}.")
            yield {}  # keeps samples of two shards with one key apart

    def _label(self, sample: dict[str, Any], name: str) -> int:
        if self.label_key is None:
            return -1
        text = sample.get(self.label_key)
        if text is None:
            raise ShardError(
                f"The {name} lacks a label (.{self.label_key}). A set without labels is read with label_key=None."
            )
        text = text.strip()
        if not text.isdigit() or len(text) > _MOST_DIGITS:
            raise ShardError(f"The label of {name} is {text[:40]!r}, not a class number (decimal digits).")
        if self.num_classes is not None and int(text) >= self.num_classes:
            raise InputError(
                f"Label {int(text)} of {name} is not one of {self.num_classes} classes (0 to {self.num_classes - 1}). "
                f"Correct num_classes={self.num_classes}, or the labels of the shards."
            )
        return int(text)


def _image_bytes(sample: dict[str, Any], name: str) -> bytes:
    data: bytes | None = next((sample[key] for key in _IMAGE_KEYS if key in sample), None)
    if data is None:
        raise ShardError(f"The {name} lacks an image ({_spelled(_IMAGE_KEYS)}).")
    return data


def _spelled(extensions: Any) -> str:
    return ", ".join(f".{name}" for name in sorted(filter(None, extensions)))
