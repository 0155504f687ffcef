"""Write one sample after another to the tar files of a set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.imagesize import image_extension, image_size
from lightning_robust.shards.tar import BLOCK, MAX_MEMBER_BYTES

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_MAX_KEY = 90
_MAX_NAME = 100
_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_EXTENSION = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*")


@dataclass(frozen=True)
class Sample:
    """One image with its class number, and what else is known of it.

    Attributes:
        key: unique in the set; letters, digits, ``_``, ``-`` and ``/``.
        image: an encoded image, kept byte for byte, or uint8 pixels (H, W, 3) or (H, W), written as PNG.
        target: class number, from 0; None in a set without class numbers.
        extension: of the encoded image: jpg, jpeg, png or webp; None takes the one that its first bytes say.
        extra: further members by extension (``"seg.png"``, ``"boxes.json"``): bytes, kept as they are; or a mask, uint8
            or uint16 (H, W), for an extension that ends in ``png``; or what JSON can say, for one that ends in
            ``json``.
    """

    key: str
    image: bytes | npt.NDArray[np.uint8]
    target: int | None
    extension: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def check_extension(extension: str, whose: str = "") -> None:
    """Check that an extra member may have this extension; ``whose`` names its sample in the error."""
    if not _EXTENSION.fullmatch(extension) or extension in (*EXTENSIONS, "cls"):
        raise InputError(
            f"The extra member {extension!r}{whose} must be made of small letters, digits, '_', '-' and dots, and not "
            "be taken for its image or class number: for example 'seg.png', 'boxes.json'."
        )


class ShardWriter:
    """Distributes samples over tar files in a folder."""

    def __init__(
        self, folder: Path, name: str, samples_per_shard: int, max_bytes: int | None, *, labeled: bool = True
    ) -> None:
        self._folder, self._name, self._labeled = folder, name, labeled
        self._samples_per_shard, self._max_bytes = samples_per_shard, max_bytes
        self._shards = self._samples = self._bytes = 0
        self._seen: set[str] = set()
        self._file: BinaryIO | None = None
        self._tar: Any = None

    def write(self, sample: Sample, num_classes: int | None) -> None:
        """Check a sample and append it, in a new shard if this one is full."""
        image, extension = _encoded(sample)
        self._check(sample, num_classes)
        members = {extension: image} | _encoded_extra(sample)
        if sample.target is not None:
            members["cls"] = str(sample.target).encode()
        size = sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for data in members.values())
        too_large = self._max_bytes is not None and self._bytes + size > self._max_bytes
        if self._file is None or self._samples == self._samples_per_shard or (too_large and self._samples):
            self._next()
        self._tar.write({"__key__": sample.key} | members)
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
        if (target is not None) != self._labeled:
            raise InputError(
                f"Sample {sample.key!r} has {'no' if target is None else 'a'} target, and the first sample has "
                f"{'one' if self._labeled else 'none'}: give all samples of a set a class number, or none."
            )
        if target is not None and (target < 0 or (num_classes is not None and target >= num_classes)):
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
    found = image_extension(sample.image)
    extension = (sample.extension or found or "").lower().lstrip(".")
    if sample.extension is not None and extension not in EXTENSIONS:
        raise InputError(
            f"Sample {sample.key!r} has the extension {sample.extension!r}, expected one of {', '.join(EXTENSIONS)}."
        )
    try:
        image_size(sample.image)
    except ValueError as error:
        raise InputError(f"Sample {sample.key!r} is not an image: {error}.") from None
    if extension != found and (extension, found) != ("jpeg", "jpg"):
        raise InputError(
            f"Sample {sample.key!r} has the extension {sample.extension!r}, and its bytes are those of a {found} file: "
            "leave the extension out, or give that one."
        )
    if len(sample.image) > MAX_MEMBER_BYTES:
        raise InputError(f"Sample {sample.key!r} has {len(sample.image)} bytes; the limit is {MAX_MEMBER_BYTES}.")
    return sample.image, extension


def _encoded_extra(sample: Sample) -> dict[str, bytes]:
    encoded = {}
    for extension, value in sample.extra.items():
        name = f"{sample.key}.{extension}"
        check_extension(extension, f" of sample {sample.key!r}")
        if len(name) > _MAX_NAME:
            raise InputError(
                f"The name {name!r} has {len(name)} characters; a tar header has {_MAX_NAME} bytes for it."
            )
        encoded[extension] = _as_bytes(value, extension, name)
    return encoded


def _as_bytes(value: Any, extension: str, name: str) -> bytes:
    kind = extension.rpartition(".")[2]
    if isinstance(value, bytes):
        data = value
    elif kind == "json" and not isinstance(value, np.ndarray):
        try:
            data = json.dumps(value, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"The value of {name!r} cannot be written as JSON: {error}.") from None
    elif kind == "png" and isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype in (np.uint8, np.uint16):
        data = _png_bytes(value, name)
    else:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(
            f"The extra member {name!r} is {found}: expected bytes, a uint8 or uint16 mask (H, W) for '.png', or what "
            "JSON can say for '.json'."
        )
    if len(data) > MAX_MEMBER_BYTES:
        raise InputError(f"The extra member {name!r} has {len(data)} bytes; the limit is {MAX_MEMBER_BYTES}.")
    return data


def _to_png(pixels: npt.NDArray[np.uint8], key: str) -> bytes:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise InputError(
            f"Sample {key!r} is an array {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3) or (H, W)."
        )
    return _png_bytes(pixels if pixels.ndim == 2 else pixels[:, :, ::-1], key)


def _png_bytes(pixels: npt.NDArray[Any], name: str) -> bytes:
    import cv2

    done, encoded = cv2.imencode(".png", pixels)
    if not done:
        raise InputError(f"Sample {name!r} of shape {pixels.shape} cannot be encoded as PNG.")
    return bytes(encoded)
