"""Write samples to WebDataset shards."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.imagesize import image_size
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import index_lock, read_folder_index, write_folder_index
from lightning_robust.shards.opening import open_index
from lightning_robust.shards.scan import Fields, SampleTable, scan_shard
from lightning_robust.shards.tar import BLOCK, MAX_MEMBER_BYTES

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_FIELDS = Fields(EXTENSIONS, "cls")
_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


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


def pack(
    samples: Iterable[Sample],
    folder: str | os.PathLike[str],
    *,
    samples_per_shard: int = 1000,
    max_bytes: int | None = None,
    name: str = "shard",
    classes: Sequence[str] | None = None,
    shuffle_seed: int | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> ShardIndex:
    """Write samples to shards ``folder/name-000000.tar``, ... and their index.

    The same samples give the same bytes. Shards are written aside in a hidden folder and put in place together at the
    end, after the index that lists them: a pack that was killed shows as missing shards, never as a smaller set.

    Args:
        samples: the samples, in order; a ``Sequence`` is read one by one also when it is shuffled.
        folder: made if it does not exist; may hold the shards of other names.
        samples_per_shard: most samples in a shard.
        max_bytes: most bytes in a shard of more than one sample; None for no limit.
        name: begins the shards' file names.
        classes: names of the classes; targets must then be below their number.
        shuffle_seed: order in which the samples are written; None keeps theirs.
        progress: show a bar.
        overwrite: replace shards of this name.

    Returns:
        The index of the shards written.

    Raises:
        InputError: no samples, a sample that is not as :class:`Sample` says, or shards of this name that exist.
    """
    if samples_per_shard < 1 or (max_bytes is not None and max_bytes < 1) or not _NAME.fullmatch(name):
        raise InputError(
            f"samples_per_shard={samples_per_shard}, max_bytes={max_bytes} must be at least 1 and the name {name!r} "
            "made of letters, digits, '_' and '-'."
        )
    home = Path(folder).absolute()
    home.mkdir(parents=True, exist_ok=True)
    with index_lock(str(home)):
        known = read_folder_index(str(home), _FIELDS)
        old = _shards_named(name, {*known.shards, *(path.name for path in home.glob(f"{name}-*.tar"))})
        if old and not overwrite:
            raise InputError(
                f"{str(home)!r} holds {len(old)} shards named {name!r} already. Choose another folder or name, or "
                "replace them with overwrite=True (--overwrite)."
            )
        known = known.without(old)
        if known.shards and classes is not None and known.classes not in (None, tuple(classes)):
            raise InputError(f"The shards in {str(home)!r} have other class names. Pack into another folder.")
        aside = Path(tempfile.mkdtemp(prefix=".pack-", dir=home))
        try:
            writer = _ShardWriter(aside, name, samples_per_shard, max_bytes)
            with writer:
                for sample in _with_progress(_ordered(samples, shuffle_seed), samples, progress):
                    writer.write(sample, None if classes is None else len(classes))
            tables, sizes, extra = _read_back(aside)
            index = known.with_shards(tables, sizes=sizes, extra=extra)
            named = known.classes if classes is None and known.shards else classes
            write_folder_index(replace(index, classes=None if named is None else tuple(named)), _FIELDS)
            for written in tables:
                (aside / written).replace(home / written)
            for surplus in old - tables.keys():
                (home / surplus).unlink(missing_ok=True)
            _sync_folder(home)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return open_index([home / written for written in tables])


class _ShardWriter:
    """Distributes samples over tar files in a folder."""

    def __init__(self, folder: Path, name: str, samples_per_shard: int, max_bytes: int | None) -> None:
        self._folder, self._name = folder, name
        self._samples_per_shard, self._max_bytes = samples_per_shard, max_bytes
        self._shards = self._samples = self._bytes = 0
        self._seen: set[str] = set()
        self._file: BinaryIO | None = None
        self._tar: Any = None

    def write(self, sample: Sample, num_classes: int | None) -> None:
        image, extension = _encoded(sample)
        self._check(sample, num_classes)
        size = sum(BLOCK + -(-count // BLOCK) * BLOCK for count in (len(image), len(str(sample.target))))
        too_large = self._max_bytes is not None and self._bytes + size > self._max_bytes
        if self._file is None or self._samples == self._samples_per_shard or (too_large and self._samples):
            self._next()
        try:
            self._tar.write({"__key__": sample.key, extension: image, "cls": str(sample.target).encode()})
        except ValueError as error:
            raise InputError(f"Sample {sample.key!r} cannot be written to a tar: {error}. Shorten its key.") from error
        self._samples += 1
        self._bytes += size

    def _check(self, sample: Sample, num_classes: int | None) -> None:
        if not _KEY.fullmatch(sample.key):
            raise InputError(
                f"The key {sample.key!r} must be made of letters, digits, '_', '-' and '/': readers cut it at a dot."
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
        if self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def __enter__(self) -> _ShardWriter:
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


def _ordered(samples: Iterable[Sample], seed: int | None) -> Iterator[Sample]:
    if seed is None:
        return iter(samples)
    from lightning_robust.seeds import derive

    items = samples if isinstance(samples, Sequence) else list(samples)
    order = np.argsort(derive(np.arange(len(items), dtype=np.int64), "pack", seed), kind="stable")
    return (items[position] for position in order.tolist())


def _with_progress(ordered: Iterator[Sample], samples: Iterable[Sample], progress: bool) -> Iterator[Sample]:
    from tqdm import tqdm

    total = len(samples) if isinstance(samples, Sequence) else None
    return iter(tqdm(ordered, total=total, desc="Packing", unit=" samples", disable=not progress))


def _read_back(folder: Path) -> tuple[dict[str, SampleTable], dict[str, int], dict[str, dict[str, Any]]]:
    """Index what was written from the files themselves, so that the writer is checked by the reader."""
    tables, sizes, extra = {}, {}, {}
    seen: dict[str, str] = {}
    for path in sorted(folder.glob("*.tar")):
        tables[path.name] = scan_shard(str(path), _FIELDS, seen=seen)
        sizes[path.name] = path.stat().st_size
        with path.open("rb") as file:
            extra[path.name] = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    if not tables:
        raise InputError("There are no samples to pack.")
    return tables, sizes, extra


def _shards_named(name: str, files: set[str]) -> set[str]:
    pattern = re.compile(rf"^{re.escape(name)}-\d{{6,}}\.tar$")
    return {file for file in files if pattern.match(file)}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
