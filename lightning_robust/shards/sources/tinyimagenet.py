"""Samples from the folders of TinyImageNet (CS231n, 200 classes, 64x64)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.files import FileSamples


def tiny_image_net(folder: str | os.PathLike[str], split: Literal["train", "test"] = "train") -> FileSamples:
    """List the images of TinyImageNet, as its archive unpacks.

    Classes are numbered in the sorted order of their WordNet ids, as a reader of image folders numbers them, and named
    by ``words.txt`` (by the id where that lacks it).

    Args:
        folder: holds ``wnids.txt``, ``words.txt``, ``train`` and ``val``.
        split: ``"test"`` is the folder ``val``: the labels of its ``test`` were never published.

    Raises:
        InputError: a file or an image is missing, or a label is not one of the classes.
    """
    if split not in ("train", "test"):
        raise InputError(f"split={split!r}: expected 'train' or 'test' (the labeled test images are those of val).")
    home = Path(folder)
    ids = sorted(line.strip() for line in _lines(home / "wnids.txt") if line.strip())
    words = dict(line.split("\t", 1) for line in _lines(home / "words.txt") if "\t" in line)
    classes = [words.get(name, name) for name in ids]
    numbers = {name: number for number, name in enumerate(ids)}
    files, targets = _train(home, numbers) if split == "train" else _val(home, numbers)
    return FileSamples(files, targets, classes=classes)


def _train(home: Path, numbers: dict[str, int]) -> tuple[list[Path], list[int]]:
    files, targets = [], []
    for name, number in numbers.items():
        images = sorted((home / "train" / name / "images").glob("*.JPEG"))
        if not images:
            raise InputError(f"{str(home / 'train' / name / 'images')!r} holds no .JPEG files; wnids.txt lists {name}.")
        files.extend(images)
        targets.extend([number] * len(images))
    return files, targets


def _val(home: Path, numbers: dict[str, int]) -> tuple[list[Path], list[int]]:
    annotations = home / "val" / "val_annotations.txt"
    files, targets = [], []
    for line, text in enumerate(_lines(annotations), 1):
        name, _, rest = text.partition("\t")
        label = rest.split("\t")[0].strip()
        if Path(name).name != name or label not in numbers:
            raise InputError(
                f"{str(annotations)!r}, line {line}: found {text[:80]!r}, expected the name of a file in "
                f"{str(home / 'val' / 'images')!r}, a tab, and one of the {len(numbers)} ids of wnids.txt."
            )
        files.append(home / "val" / "images" / name)
        targets.append(numbers[label])
    return files, targets


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}. Give the folder that holds wnids.txt.") from error
