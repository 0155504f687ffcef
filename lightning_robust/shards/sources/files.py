"""Samples from image files, copied byte for byte; and a folder with one subfolder per class."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.imagesize import image_extension
from lightning_robust.shards.sources.base import SampleSource
from lightning_robust.shards.sources.beside import FolderMasks, Members
from lightning_robust.shards.writing import EXTENSIONS, Sample

_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}
_MAX_STEM = 60


class FileSamples(SampleSource):
    """Image files, with a class number each or without.

    A key is the position and the file's name, cut to the characters that every reader takes.

    Args:
        files: JPEG, PNG or WebP files.
        targets: class number of each; None in a set without class numbers.
        classes: names of the classes.
        members: makes the further members of the sample at a position, given its encoded image.

    Raises:
        InputError: a file is missing or of another kind, or a target is not a class.
    """

    def __init__(
        self,
        files: Sequence[Path],
        targets: npt.ArrayLike | None,
        *,
        classes: Sequence[str] | None = None,
        members: Members | None = None,
    ) -> None:
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
        self._members = members
        super().__init__(targets, classes)

    def __len__(self) -> int:
        return len(self.files)

    def describe(self, position: int) -> str:
        """Name the file at a position."""
        return repr(str(self.files[position]))

    def make(self, position: int) -> Sample:
        """Read the file at a position, and what stands beside it."""
        file = self.files[position]
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", file.stem)[:_MAX_STEM]
        image = file.read_bytes()
        extra = {} if self._members is None else self._members(position, image)
        return Sample(f"{position:08d}-{stem}", image, self.target(position), _extension(file, image), extra)


def _extension(file: Path, image: bytes) -> str | None:
    """That of the file, unless the image is of another format: public sets hold a few files that are misnamed."""
    named, found = file.suffix.lower().lstrip("."), image_extension(image)
    return named if found in (None, "jpg" if named == "jpeg" else named) else found


def image_folder(
    folder: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    labeled: bool = True,
    masks: str | os.PathLike[str] | None = None,
) -> FileSamples:
    """List a folder with one subfolder of images per class.

    Args:
        folder: its subfolders are the classes, numbered in sorted order; images may lie deeper in them. Hidden files
            are left out.
        classes: names in the order of their numbers, where some have no folder here (as in a small validation set).
        labeled: False packs no class numbers, and images may lie anywhere in the folder.
        masks: folder that holds a mask for each image, at the same path but for the ending ``.png``; PNG of one channel
            and of the size of the image, packed as it is, as the member ``seg.png``.

    Raises:
        InputError: the folder is missing or has no subfolders, one holds no images or a file that is none, or bears a
            name that is not in ``classes``; a mask is missing; or there are classes without labels.
    """
    home = Path(folder)
    if not home.is_dir():
        raise InputError(f"{str(home)!r} is not a folder. Give a folder with one subfolder of images per class.")
    files, targets, names = _by_class(home, classes) if labeled else _unlabeled(home, classes)
    beside = None if masks is None else FolderMasks(Path(masks), home, files)
    source = FileSamples(files, targets, classes=names, members=beside)
    if beside is not None:
        beside.check()
    return source


def check_unlabeled(classes: Sequence[str] | None) -> None:
    """Check that nothing names the classes of a set without class numbers."""
    if classes is not None:
        raise InputError("Class names belong to class numbers, and none are packed. Leave one of the two options out.")


def _unlabeled(home: Path, classes: Sequence[str] | None) -> tuple[list[Path], None, None]:
    check_unlabeled(classes)
    files = _files(home, home)
    if not files:
        raise InputError(f"{str(home)!r} holds no files.")
    return files, None, None


def _by_class(home: Path, classes: Sequence[str] | None) -> tuple[list[Path], list[int], list[str]]:
    found = sorted(entry.name for entry in home.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise InputError(
            f"{str(home)!r} has no subfolders, expected one for each class; labeled=False (--no-labels) packs "
            "images without class numbers."
        )
    names = found if classes is None else list(classes)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"Subfolder {unknown[0]!r} of {str(home)!r} is not one of the {len(names)} classes.")
    files: list[Path] = []
    targets: list[int] = []
    for name in found:
        members = _files(home / name, home)
        if not members:
            raise InputError(f"The class folder {str(home / name)!r} holds no files. Fill it or take it away.")
        files.extend(members)
        targets.extend([names.index(name)] * len(members))
    return files, targets, names


def _files(folder: Path, home: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and _counts(file, home)]


def _counts(file: Path, home: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(home).parts)
    return not hidden and file.name.lower() not in _LEFT_BY_SYSTEMS
