"""Samples from the binary archives of CIFAR-10 and CIFAR-100 (Krizhevsky 2009); the pickled ones are not read."""

from __future__ import annotations

import os
import tarfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.arrays import ArraySamples

_PIXELS = 3 * 32 * 32
_MAX_FILE_BYTES = 200_000_000


class _Layout(NamedTuple):
    """Files of a split, bytes before the pixels of a record, which of them is the label, and how many classes."""

    files: tuple[str, ...]
    label_bytes: int
    label: int
    classes: int
    names: str


def cifar_binary(
    path: str | os.PathLike[str], split: Literal["train", "test"], *, labels: Literal["fine", "coarse"] = "fine"
) -> ArraySamples:
    """Read a split of the binary version of CIFAR-10 or CIFAR-100.

    Args:
        path: ``cifar-10-binary.tar.gz``, ``cifar-100-binary.tar.gz``, or the folder unpacked from one.
        split: which images.
        labels: of CIFAR-100, its 100 classes or its 20 superclasses.

    Raises:
        InputError: the files are missing, are not whole records, or hold a label outside the classes.
    """
    if labels not in ("fine", "coarse") or split not in ("train", "test"):
        raise InputError(f"split={split!r}, labels={labels!r}: expected 'train' or 'test', and 'fine' or 'coarse'.")
    layouts = _layouts(split, labels)
    wanted = {name for layout in layouts for name in (*layout.files, layout.names)}
    found = _from_folder(Path(path), wanted) if Path(path).is_dir() else _from_archive(Path(path), wanted)
    layout = next((layout for layout in layouts if set(layout.files) & found.keys()), None)
    if layout is None or not set(layout.files) <= found.keys():
        needed = " or ".join(", ".join(layout.files) for layout in layouts)
        raise InputError(
            f"{str(path)!r} holds {', '.join(sorted(found)) or 'none'} of the binary files of CIFAR; the {split} split "
            f"needs {needed}. The Python (pickle) version is not read: get the binary one."
        )
    records = np.concatenate([_records(found[name], name, layout) for name in layout.files])
    images = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    targets = records[:, layout.label].astype(np.int64)
    if targets.max() >= layout.classes:
        raise InputError(
            f"{str(path)!r} holds the label {targets.max()}, expected 0 to {layout.classes - 1}. "
            "The file is damaged or of another data set."
        )
    names = found.get(layout.names, b"").decode("utf-8", "replace").split()
    return ArraySamples(images, targets, classes=names if len(names) == layout.classes else None)


def _layouts(split: str, labels: str) -> list[_Layout]:
    ten = tuple(f"data_batch_{number}.bin" for number in range(1, 6)) if split == "train" else ("test_batch.bin",)
    fine = labels == "fine"
    hundred = _Layout((f"{split}.bin",), 2, int(fine), 100 if fine else 20, f"{labels}_label_names.txt")
    return [_Layout(ten, 1, 0, 10, "batches.meta.txt"), hundred]


def _records(data: bytes, name: str, layout: _Layout) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    size = layout.label_bytes + _PIXELS
    if not data or len(data) % size:
        raise InputError(f"{name} has {len(data)} bytes, expected records of {size}. It is cut or damaged.")
    return np.frombuffer(data, np.uint8).reshape(-1, size)


def _from_folder(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    homes = [folder, folder / "cifar-10-batches-bin", folder / "cifar-100-binary"]
    return {name: (home / name).read_bytes() for home in homes for name in wanted if (home / name).is_file()}


def _from_archive(path: Path, wanted: set[str]) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name not in wanted or not member.isreg():
                    continue
                file = archive.extractfile(member) if member.size <= _MAX_FILE_BYTES else None
                if file is None:
                    raise InputError(f"{name} in {str(path)!r} has {member.size} bytes, more than {_MAX_FILE_BYTES}.")
                found[name] = file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a CIFAR archive: {error}.") from error
    return found
