"""What the indexes of a set's folders say of it as a whole: must be known before its samples are copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_robust.errors import InputError
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexdocument import IndexDocument, parse_index
from lightning_robust.shards.indexfile import INDEX_NAME
from lightning_robust.shards.places import published_index
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
    marks = [None if document is None else document.extra.get(MARK) for document in _documents(index)]
    if any(mark != marks[0] for mark in marks):
        raise InputError("The folders of these shards were not sharpened alike: they are not one set.")
    return marks[0]


def members_known(index: ShardIndex) -> list[str]:
    """Extensions of the members besides image and label that the indexes of the folders of a set know of, sorted."""
    known = [(document and document.members) or {} for document in _documents(index)]
    return sorted({extension for members in known for extension, file in members.items() if file is not None})


def _documents(index: ShardIndex) -> Iterator[IndexDocument | None]:
    for folder in folders_of(index):
        if not is_url(folder):
            path = Path(folder) / INDEX_NAME
            yield parse_index(path.read_bytes(), str(path)) if path.is_file() else None
        elif index.remote is not None:
            published = published_index(folder, index.remote.cache)
            yield None if published is None else published.document
