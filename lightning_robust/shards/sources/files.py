"""Samples from image files, copied byte for byte; and a folder with one subfolder per class."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.sources.base import SampleSource
from lightning_robust.shards.writing import EXTENSIONS, Sample

_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}
_MAX_STEM = 60


class FileSamples(SampleSource):
    """Image files with a class number each.

    A key is the position and the file's name, cut to the characters that every reader takes.

    Args:
        files: JPEG, PNG or WebP files.
        targets: class number of each.
        classes: names of the classes.

    Raises:
        InputError: a file is missing or of another kind, or a target is not a class.
    """

    def __init__(self, files: Sequence[Path], targets: npt.ArrayLike, *, classes: Sequence[str] | None = None) -> None:
        self.files = list(files)
        other = [file for file in self.files if file.suffix.lower().lstrip(".") not in EXTENSIONS]
        if other:
            raise InputError(
                f"{str(other[0])!r} is not one of {', '.join(EXTENSIONS)} ({len(other)} such files of "
                f"{len(self.files)}). Convert them or take them away."
            )
        missing = [file for file in self.files if not file.is_file()]
        if missing:
            raise InputError(f"{str(missing[0])!r} is missing ({len(missing)} of {len(self.files)} files are).")
        super().__init__(targets, classes)

    def describe(self, position: int) -> str:
        """Name the file at a position."""
        return repr(str(self.files[position]))

    def make(self, position: int) -> Sample:
        """Read the file at a position."""
        file = self.files[position]
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", file.stem)[:_MAX_STEM]
        extension = file.suffix.lower().lstrip(".")
        return Sample(f"{position:08d}-{stem}", file.read_bytes(), int(self.targets[position]), extension)


def image_folder(folder: str | os.PathLike[str], *, classes: Sequence[str] | None = None) -> FileSamples:
    """List a folder with one subfolder of images per class.

    Args:
        folder: its subfolders are the classes, numbered in sorted order; images may lie deeper in them. Hidden files
            are left out.
        classes: names in the order of their numbers, where some have no folder here (as in a small validation set).

    Raises:
        InputError: the folder is missing or has no subfolders, one holds no images or a file that is none, or bears a
            name that is not in ``classes``.
    """
    home = Path(folder)
    if not home.is_dir():
        raise InputError(f"{str(home)!r} is not a folder. Give a folder with one subfolder of images per class.")
    found = sorted(entry.name for entry in home.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise InputError(f"{str(home)!r} has no subfolders, expected one for each class.")
    names = found if classes is None else list(classes)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"Subfolder {unknown[0]!r} of {str(home)!r} is not one of the {len(names)} classes.")
    files, targets = [], []
    for name in found:
        members = [file for file in sorted((home / name).rglob("*")) if file.is_file() and _counts(file, home)]
        if not members:
            raise InputError(f"The class folder {str(home / name)!r} holds no files. Fill it or take it away.")
        files.extend(members)
        targets.extend([names.index(name)] * len(members))
    return FileSamples(files, targets, classes=names)


def _counts(file: Path, home: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(home).parts)
    return not hidden and file.name.lower() not in _LEFT_BY_SYSTEMS
