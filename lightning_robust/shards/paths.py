"""From what the user wrote (a path, a URL, a pattern, a folder, a list) to shards in a fixed order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.remote import RemoteOptions, is_pattern, list_store
from lightning_robust.shards.urls import WEB, is_url, name_beside, scheme_of, shown

_PACK = "`lightning-robust shards pack` makes shards of images"

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def expand_shards(shards: Shards, remote: RemoteOptions = RemoteOptions()) -> list[str]:
    """List the shards that a path, URL, glob, brace pattern or folder stands for, or a list of these.

    Names found by a glob or in a folder are sorted with numbers by value; braces and lists keep their order. A URL that
    ends in a slash is a folder.

    Args:
        shards: what the user wrote.
        remote: how remote stores are asked.

    Raises:
        ShardError: a named local shard is missing, or a pattern or folder matches none.
        UnsupportedError: a URL that is not read, or that its store cannot list.
        InputError: nothing was given, or a shard was named twice.
    """
    entries = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    if not entries:
        raise InputError("No shards were named: give a path, a glob, a brace pattern, a folder, or a list of these.")
    paths = [path for entry in entries for path in _expand_entry(os.fspath(entry), remote)]
    twice = sorted({path for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
    if twice:
        raise InputError(f"Shard {twice[0]!r} is named twice ({len(twice)} such shards). Name each shard once.")
    return paths


def glob_patterns(shards: Shards) -> list[str]:
    """List the globs among ``shards``, absolute if they are local; a folder is the glob of its ``*.tar``."""
    entries = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    patterns = [pattern for entry in entries for pattern in _patterns(os.fspath(entry))]
    return [pattern for pattern in patterns if (is_pattern if is_url(pattern) else glob.has_magic)(pattern)]


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which ``s-9`` comes before ``s-10``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _patterns(entry: str) -> list[str]:
    """URLs, absolute paths, or globs; a folder that can be listed becomes the glob of its tar files."""
    import braceexpand

    if is_url(entry):
        scheme_of(entry)
        found = list(braceexpand.braceexpand(entry)) if "{" in entry else [entry]
        return [f"{url}*.tar" if url.endswith("/") and scheme_of(url) not in WEB else url for url in found]
    entry = os.path.abspath(os.path.expanduser(entry))  # noqa: PTH100, PTH111 (keeps glob and brace characters)
    if Path(entry).is_dir():
        return [os.path.join(glob.escape(entry), "*.tar")]  # noqa: PTH118
    if Path(entry).is_file():
        return [entry]
    return list(braceexpand.braceexpand(entry)) if "{" in entry else [entry]


def _expand_entry(entry: str, remote: RemoteOptions) -> list[str]:
    if is_url(entry):
        return [url for pattern in _patterns(entry) for url in _expand_url(pattern, remote)]
    paths = []
    for pattern in _patterns(entry):
        if not glob.has_magic(pattern) or Path(pattern).is_file():
            paths.append(pattern)
            continue
        found = sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207 (absolute patterns)
        if not found:
            raise ShardError(f"No shard matches {entry!r} (looked for {pattern!r}). Check the path; {_PACK}.")
        paths.extend(found)
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ShardError(
            f"Shard {missing[0]!r} is missing ({len(missing)} of the {len(paths)} named by {entry!r}). "
            f"Check the path, or fetch it again; {_PACK}."
        )
    return paths


def _expand_url(pattern: str, remote: RemoteOptions) -> list[str]:
    if scheme_of(pattern) in WEB and not urlsplit(pattern).path:
        raise InputError(f"The URL {shown(pattern)!r} names no file. If this is a folder, end the URL in a slash.")
    if pattern.endswith("/"):
        return _published(pattern, remote)
    if not is_pattern(pattern):
        return [pattern]
    found = sorted(list_store(pattern, remote), key=natural_key)
    if not found:
        raise ShardError(f"No shard matches {shown(pattern)!r}. Check the URL.")
    return found


def _published(folder: str, remote: RemoteOptions) -> list[str]:
    """Shards of a folder on a web server, by the index beside them."""
    from lightning_robust.shards.cache import ShardCache
    from lightning_robust.shards.places import published_index

    index = published_index(folder, ShardCache(remote))
    if index is None:
        raise ShardError(
            f"{shown(folder)!r} has no index.json, and a web server has no list of its files: name the shards "
            "(s-{000..099}.tar), or put the index beside them (`lightning-robust shards index`, then upload it too)."
        )
    names = [name_beside(folder, url) for url in index.document.urls]
    return [folder + name for name in sorted(names, key=natural_key)]
