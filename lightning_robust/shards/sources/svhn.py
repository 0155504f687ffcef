"""Samples from the cropped digits of SVHN (Netzer et al. 2011, "format 2"), MATLAB 5 files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.arrays import ArraySamples
from lightning_robust.shards.sources.matlab import read_matlab

# the largest file, of the extra images, has 531,131
_MAX_BYTES = 600_000 * 32 * 32 * 3
_DIGITS = tuple("0123456789")


def svhn_mat(path: str | os.PathLike[str], split: Literal["train", "test"] = "train") -> ArraySamples:
    """Read the cropped digits of SVHN.

    The file's label 10 stands for the digit 0; here the class number is the digit.

    Args:
        path: the folder with ``train_32x32.mat`` and ``test_32x32.mat``, or one such file (also ``extra_32x32.mat``),
            which is then read whatever the split.
        split: which file of a folder.

    Raises:
        InputError: the file is missing or damaged, or does not hold 32x32 color images with labels from 1 to 10.
    """
    if split not in ("train", "test"):
        raise InputError(f"split={split!r}: expected 'train' or 'test'.")
    file = Path(path) / f"{split}_32x32.mat" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"{str(file)!r} is missing. Give the folder of the .mat files of SVHN's cropped digits.")
    images, labels = _load(file)
    wrong = labels[~np.isin(labels, np.arange(1, 11))]
    if wrong.size:
        raise InputError(f"{str(file)!r} holds the label {wrong[0]}, expected 1 to 10 (10 stands for the digit 0).")
    return ArraySamples(images, labels.astype(np.int64) % 10, classes=_DIGITS)


def _load(file: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    arrays = read_matlab(file, ("X", "y"), max_bytes=_MAX_BYTES)
    missing = np.empty(0)
    images, labels = arrays.get("X", missing), arrays.get("y", missing)
    number = images.shape[-1]
    if images.shape != (32, 32, 3, number) or images.dtype != np.uint8 or labels.shape != (number, 1):
        raise InputError(
            f"{str(file)!r} holds X: {images.dtype} {images.shape} and y: {labels.dtype} {labels.shape}; expected X: "
            "uint8 (32, 32, 3, N) and y: numbers (N, 1), the cropped digits of SVHN."
        )
    return images.transpose(3, 0, 1, 2), labels.reshape(-1)
