"""Where the samples of a new set come from: what must be known of the old one before they are copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_robust.errors import InputError
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import read_folder_index
from lightning_robust.shards.places import published_index
from lightning_robust.shards.scan import Fields
from lightning_robust.shards.urls import folder_of, is_url

# key of the index of a set that was sharpened
MARK = "sharpened"


def check_outside(index: ShardIndex, home: Path) -> None:
    """Check that a folder holds no shard of a set, since copies of its samples are to go there.

    Raises:
        InputError: it does.
    """
    for path in index.paths:
        if not is_url(path) and Path(path).parent.resolve() == home.resolve():
            raise InputError(f"{str(home)!r} holds a shard of the source, {path!r}. Choose another folder.")


def folders_of(index: ShardIndex) -> list[str]:
    """The folders, or URLs of such, that hold the shards of a set."""
    return list(dict.fromkeys(folder_of(path) if is_url(path) else str(Path(path).parent) for path in index.paths))


def sharpening_of(index: ShardIndex) -> dict[str, Any] | None:
    """What the indexes of the folders of a set say of how it was sharpened; None if it was not.

    Raises:
        InputError: they disagree.
    """
    marks: list[dict[str, Any] | None] = []
    for folder in folders_of(index):
        if not is_url(folder):
            marks.append(read_folder_index(folder, Fields((), None)).extra.get(MARK))
        elif index.remote is not None:
            published = published_index(folder, index.remote.cache)
            marks.append(None if published is None else published.document.extra.get(MARK))
    if any(mark != marks[0] for mark in marks):
        raise InputError("The folders of these shards were not sharpened alike: they are not one set.")
    return marks[0]
