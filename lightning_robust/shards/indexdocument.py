"""What an ``index.json`` says, with every value checked before it is used: it may come from anyone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lightning_robust.errors import ShardError
from lightning_robust.shards.folderindex import ShardEntry
from lightning_robust.shards.tablefile import REBUILD

KIND = "wids-shard-index-v1"

_OURS = {"shardlist", "samples_file", "fields", "created_by", "classes", "members"}
_OURS_OF_A_SHARD = {"url", "nsamples", "filesize", "row"}
_MOST = 1 << 62
_BESIDE = "it must be a .npy file beside it."


@dataclass(frozen=True)
class IndexDocument:
    """An index of shards as it was written.

    Attributes:
        urls: of the shards, as they are listed.
        shards: what is said of each, by file name.
        samples_file: name of the file that places the samples; None where they are not placed.
        fields: which members that file is about; None if that is not said.
        classes: names of the classes, if there are any.
        members: by extension, the file that places a further member of each sample, or None where no sample has one;
            None for an index that does not speak of them.
        extra: all else.
    """

    urls: tuple[str, ...]
    shards: dict[str, ShardEntry]
    samples_file: str | None
    fields: Any
    classes: tuple[str, ...] | None
    members: dict[str, str | None] | None
    extra: dict[str, Any]

    @property
    def rows(self) -> int:
        """Samples that the shards have together, placed or not."""
        return sum(entry.count for entry in self.shards.values())


def parse_index(data: bytes, where: str) -> IndexDocument:
    """Read an ``index.json``.

    Args:
        data: its bytes.
        where: its path or URL, for messages.

    Raises:
        ShardError: it is no JSON, no index of shards, or says something of another type than expected.
    """
    document = _loaded(data, where)
    if not isinstance(document, dict) or document.get("__kind__") != KIND:
        found = (
            f"its kind is {document.get('__kind__')!r:.80}" if isinstance(document, dict) else "it is no JSON object"
        )
        raise _damaged(where, found)
    listed = document.get("shardlist")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise _damaged(where, "its shardlist is no list of shards")
    urls, shards = [], {}
    for entry in listed:
        url = entry.get("url")
        if not isinstance(url, str):
            raise _damaged(where, f"the url of a shard is {url!r:.80}")
        name = url.rsplit("/", 1)[-1]
        if name in shards:
            raise _damaged(where, f"it lists the shard {name!r} twice")
        urls.append(url)
        shards[name] = _entry(entry, name, where)
    return IndexDocument(
        urls=tuple(urls),
        shards=shards,
        samples_file=_samples_file(document, where),
        fields=document.get("fields"),
        classes=_classes(document.get("classes"), where),
        members=_members(document.get("members"), where),
        extra={key: value for key, value in document.items() if key not in _OURS},
    )


def entry_document(name: str, entry: ShardEntry) -> dict[str, Any]:
    """What the index shall say of a shard."""
    document = {"url": name, "nsamples": entry.count, "filesize": entry.size, "row": entry.row}
    return {key: value for key, value in document.items() if value is not None} | entry.extra


def _loaded(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise _damaged(where, "its JSON is nested too deep") from None
    except ValueError as error:
        raise _damaged(where, f"{type(error).__name__}: {error!s:.200}") from None


def _entry(document: dict[str, Any], name: str, where: str) -> ShardEntry:
    count: Any = document.get("nsamples")
    size, row = document.get("filesize"), document.get("row")
    numbers = [count, *(value for value in (size, row) if value is not None)]
    if not all(map(_is_number, numbers)) or (row is not None and not (count and size)):
        said = {key: document[key] for key in ("nsamples", "filesize", "row") if key in document}
        raise _damaged(where, f"of the shard {name!r} it says {said!r:.200}")
    return ShardEntry(count, size, row, {key: document[key] for key in document if key not in _OURS_OF_A_SHARD})


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _samples_file(document: dict[str, Any], where: str) -> str | None:
    if "samples_file" not in document:
        return None
    name: str = document["samples_file"]
    if not _is_npy_name(name):
        raise ShardError(f"The index {where!r} names the samples file {name!r:.80}; {_BESIDE}")
    return name


def _classes(names: Any, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(where, f"its classes are {names!r:.80}, expected a list of names")
    return tuple(names)


def _members(names: Any, where: str) -> dict[str, str | None] | None:
    if names is None:
        return None
    if not isinstance(names, dict):
        raise ShardError(f"The index {where!r} has members {names!r:.80}; expected files by extension. {REBUILD}")
    for name in names.values():
        if name is not None and not _is_npy_name(name):
            raise ShardError(f"The index {where!r} names the file of members {name!r:.80}; {_BESIDE}")
    return names


def _is_npy_name(name: object) -> bool:
    """Tell whether this can only name a .npy file beside the index."""
    return isinstance(name, str) and name.endswith(".npy") and not {"/", "\\", "\0"} & set(name)


def _damaged(where: str, found: str) -> ShardError:
    return ShardError(
        f"{where!r} is not a shard index of kind {KIND!r}: {found}. Move it away; the shards are then indexed again."
    )
