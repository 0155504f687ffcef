"""Write one sample after another to the tar files of a set."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.imagesize import image_size
from lightning_robust.shards.tar import BLOCK, MAX_MEMBER_BYTES

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_MAX_KEY = 90
_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Sample:
    """One image with its class number.

    Attributes:
        key: unique in the set; letters, digits, ``_``, ``-`` and ``/``.
        image: an encoded image, kept byte for byte, or uint8 pixels (H, W, 3) or (H, W), written as PNG.
        target: class number, from 0.
        extension: of the encoded image: jpg, jpeg, png or webp.
    """

    key: str
    image: bytes | npt.NDArray[np.uint8]
    target: int
    extension: str = "png"


class ShardWriter:
    """Distributes samples over tar files in a folder."""

    def __init__(self, folder: Path, name: str, samples_per_shard: int, max_bytes: int | None) -> None:
        self._folder, self._name = folder, name
        self._samples_per_shard, self._max_bytes = samples_per_shard, max_bytes
        self._shards = self._samples = self._bytes = 0
        self._seen: set[str] = set()
        self._file: BinaryIO | None = None
        self._tar: Any = None

    def write(self, sample: Sample, num_classes: int | None) -> None:
        """Check a sample and append it, in a new shard if this one is full."""
        image, extension = _encoded(sample)
        self._check(sample, num_classes)
        size = sum(BLOCK + -(-count // BLOCK) * BLOCK for count in (len(image), len(str(sample.target))))
        too_large = self._max_bytes is not None and self._bytes + size > self._max_bytes
        if self._file is None or self._samples == self._samples_per_shard or (too_large and self._samples):
            self._next()
        self._tar.write({"__key__": sample.key, extension: image, "cls": str(sample.target).encode()})
        self._samples += 1
        self._bytes += size

    def _check(self, sample: Sample, num_classes: int | None) -> None:
        if not _KEY.fullmatch(sample.key) or len(sample.key) > _MAX_KEY:
            raise InputError(
                f"The key {sample.key!r} must be made of at most {_MAX_KEY} letters, digits, '_', '-' and '/': readers "
                "cut it at a dot, and a tar header has 100 bytes for it."
            )
        if sample.key in self._seen:
            raise InputError(f"The key {sample.key!r} occurs twice; keys must be unique in the set.")
        self._seen.add(sample.key)
        target = sample.target
        if target < 0 or (num_classes is not None and target >= num_classes):
            allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1} ({num_classes} classes)"
            raise InputError(f"The target of sample {sample.key!r} is {target}, expected {allowed}.")

    def _next(self) -> None:
        from webdataset.writer import TarWriter

        self.close()
        path = self._folder / f"{self._name}-{self._shards:06d}.tar"
        self._file = path.open("wb")
        self._tar = TarWriter(self._file, user="", group="", encoder=False, mtime=0)
        self._shards += 1
        self._samples, self._bytes = 0, 0

    def close(self) -> None:
        """Finish the shard that is being written and sync it."""
        if self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encoded(sample: Sample) -> tuple[bytes, str]:
    if not isinstance(sample.image, bytes):
        return _to_png(sample.image, sample.key), "png"
    extension = sample.extension.lower().lstrip(".")
    if extension not in EXTENSIONS:
        raise InputError(
            f"Sample {sample.key!r} has the extension {sample.extension!r}, expected one of {', '.join(EXTENSIONS)}."
        )
    try:
        image_size(sample.image)
    except ValueError as error:
        raise InputError(f"Sample {sample.key!r} is not an image: {error}.") from None
    if len(sample.image) > MAX_MEMBER_BYTES:
        raise InputError(f"Sample {sample.key!r} has {len(sample.image)} bytes; the limit is {MAX_MEMBER_BYTES}.")
    return sample.image, extension


def _to_png(pixels: npt.NDArray[np.uint8], key: str) -> bytes:
    import cv2

    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise InputError(
            f"Sample {key!r} is an array {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3) or (H, W)."
        )
    done, encoded = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[:, :, ::-1])
    if not done:
        raise InputError(f"Sample {key!r} of shape {pixels.shape} cannot be encoded as PNG.")
    return bytes(encoded)
