"""Put new shards and the index that lists them into a folder, all at once."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_robust.errors import InputError
from lightning_robust.shards.checksums import sha256_of
from lightning_robust.shards.folderindex import FolderIndex
from lightning_robust.shards.indexfile import index_lock, read_folder_index, write_folder_index
from lightning_robust.shards.members import MemberPlaces
from lightning_robust.shards.provenance import MARK
from lightning_robust.shards.robustify_job import sync_folder
from lightning_robust.shards.scan import Fields, SampleTable, scan_shard
from lightning_robust.shards.writing import EXTENSIONS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PACKED = Fields(EXTENSIONS, "cls")


@dataclass(frozen=True)
class NewShards:
    """Sets of shards to be written to a folder, and what its index will say of them.

    Attributes:
        names: of the sets; each begins the file names of one.
        classes: names of the classes, if there are any.
        fields: which members are image and label.
        sharpened: how the images were sharpened, as the index of their source says; None if they were not.
        overwrite: shards of these names may be replaced.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...] | None = None
    fields: Fields = _PACKED
    sharpened: dict[str, Any] | None = None
    overwrite: bool = False


def check_limits(*, samples_per_shard: int, max_bytes: int | None) -> None:
    """Check how much goes into a shard."""
    if samples_per_shard < 1 or (max_bytes is not None and max_bytes < 1):
        raise InputError(f"samples_per_shard={samples_per_shard}, max_bytes={max_bytes}: expected at least 1.")


def check_destination(home: Path, new: NewShards) -> tuple[FolderIndex, set[str]]:
    """Check that shards may be written to a folder.

    Returns:
        What is known of the shards that stay there, with the classes of the new ones, and the file names of those that
        go.

    Raises:
        InputError: a name is not allowed, shards of these names exist and may not be replaced, or the others have other
            class names or were not sharpened alike.
    """
    for name in new.names:
        if not _NAME.fullmatch(name):
            raise InputError(f"The name {name!r} must be made of letters, digits, '_' and '-'.")
    known = read_folder_index(str(home), new.fields)
    files = {*known.shards, *(path.name for path in home.glob("*.tar"))}
    named = {name: {file for file in files if re.fullmatch(rf"{name}-\d{{6,}}\.tar", file)} for name in new.names}
    for name, old in named.items():
        if old and not new.overwrite:
            raise InputError(
                f"{str(home)!r} holds {len(old)} shard{'' if len(old) == 1 else 's'} named {name!r} "
                "already. Choose another folder or name, or replace them with overwrite=True (--overwrite)."
            )
    going = set().union(*named.values())
    stays = known.without(going)
    if not stays.shards:
        mark = {} if new.sharpened is None else {MARK: new.sharpened}
        extra = {key: value for key, value in stays.extra.items() if key != MARK}
        return replace(stays, classes=new.classes, extra=extra | mark), going
    if stays.extra.get(MARK) != new.sharpened:
        raise InputError(f"The shards in {str(home)!r} were not sharpened as these are. Choose another folder.")
    if None not in (new.classes, stays.classes) and new.classes != stays.classes:
        raise InputError(f"The shards in {str(home)!r} have other class names. Choose another folder.")
    return replace(stays, classes=new.classes or stays.classes), going


def place_shards(home: Path, new: NewShards, write: Callable[[Path, tuple[str, ...] | None], None]) -> list[Path]:
    """Write shards aside in a hidden folder, and put them in place together, after the index that lists them.

    A run that was killed shows as missing shards, never as a smaller set.

    Args:
        home: made if it does not exist; may hold the shards of other names.
        new: what is written.
        write: writes the shards to the folder it is given; the class names of the destination are told it too.

    Returns:
        The shards, in order of their names.

    Raises:
        InputError: as :func:`check_destination`, or nothing was written.
        ShardError: what was written is no sound set.
    """
    check_destination(home, new)
    home.mkdir(parents=True, exist_ok=True)
    with index_lock(str(home)):
        known, old = check_destination(home, new)
        for left in home.glob(".pack-*"):  # by a run that was killed: the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=".pack-", dir=home))
        try:
            write(aside, known.classes)
            tables, described = _read_back(aside, new.fields, known.members or ())
            write_folder_index(known.with_shards(tables, **described), new.fields)
            for written in tables:
                (aside / written).replace(home / written)
            for surplus in old - tables.keys():
                (home / surplus).unlink(missing_ok=True)
            sync_folder(home)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return [home / written for written in tables]


def _read_back(folder: Path, fields: Fields, members: Collection[str]) -> tuple[dict[str, SampleTable], dict[str, Any]]:
    """Index what was written from the files themselves, so that the writer is checked by the reader."""
    tables: dict[str, SampleTable] = {}
    described: dict[str, Any] = {"sizes": {}, "extra": {}, "members": {}}
    seen: dict[str, str] = {}
    others = MemberPlaces(members)
    for path in sorted(folder.glob("*.tar")):
        tables[path.name] = scan_shard(str(path), fields, seen=seen, others=others)
        described["sizes"][path.name] = path.stat().st_size
        described["extra"][path.name] = {"sha256": sha256_of(path)}
        described["members"][path.name] = others.take(len(tables[path.name]))
    if not tables:
        raise InputError("There are no samples to pack.")
    return tables, described
