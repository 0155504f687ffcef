"""From what the user wrote (a path, a pattern, a folder, a list) to shard files in a fixed order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lightning_robust.errors import InputError, ShardError, UnsupportedError

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_SCHEME = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|pipe:)")


def expand_shards(shards: Shards) -> list[str]:
    """List the shard files that a path, glob, brace pattern or folder stands for, or a list of these.

    Names found by a glob or in a folder are sorted with numbers by value; braces and lists keep their order.

    Raises:
        ShardError: a named shard is missing, or a pattern or folder matches none.
        UnsupportedError: a URL was given.
        InputError: nothing was given, or a shard was named twice.
    """
    entries = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    if not entries:
        raise InputError("No shards were named: give a path, a glob, a brace pattern, a folder, or a list of these.")
    paths = [path for entry in entries for path in _expand_entry(os.fspath(entry))]
    twice = sorted({path for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
    if twice:
        raise InputError(f"Shard {twice[0]!r} is named twice ({len(twice)} such shards). Name each shard once.")
    return paths


def glob_patterns(shards: Shards) -> list[str]:
    """List the absolute globs among ``shards``; a folder is the glob of its ``*.tar``."""
    entries = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    return [pattern for entry in entries for pattern in _patterns(os.fspath(entry)) if glob.has_magic(pattern)]


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which ``s-9`` comes before ``s-10``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _patterns(entry: str) -> list[str]:
    """Absolute paths or globs; a folder becomes the glob of its tar files."""
    import braceexpand

    if _SCHEME.match(entry):
        raise UnsupportedError(
            f"Shards at {entry!r} would have to be read over the network, which is not supported: "
            "download them first and give the local path."
        )
    entry = os.path.abspath(os.path.expanduser(entry))  # noqa: PTH100, PTH111 (keeps glob and brace characters)
    if Path(entry).is_dir():
        return [os.path.join(glob.escape(entry), "*.tar")]  # noqa: PTH118
    if Path(entry).is_file():
        return [entry]
    return list(braceexpand.braceexpand(entry)) if "{" in entry else [entry]


def _expand_entry(entry: str) -> list[str]:
    paths = []
    for pattern in _patterns(entry):
        if not glob.has_magic(pattern) or Path(pattern).is_file():
            paths.append(pattern)
            continue
        found = sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207 (absolute patterns)
        if not found:
            raise ShardError(f"No shard matches {entry!r} (looked for {pattern!r}). Check the path.")
        paths.extend(found)
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ShardError(
            f"Shard {missing[0]!r} is missing ({len(missing)} of the {len(paths)} named by {entry!r}). "
            "Check the path, or fetch it again."
        )
    return paths
