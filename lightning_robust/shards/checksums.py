"""Compare shards with the checksums in their index."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lightning_robust.errors import ShardError
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import read_checksums
from lightning_robust.shards.scan import open_shard
from lightning_robust.shards.urls import is_url

_NAMES = {"sha256": "SHA-256", "md5": "MD5"}


def check_checksums(index: ShardIndex, *, progress: bool = False) -> int:
    """Read every shard whose index holds a checksum and compare; remote ones as they are in the cache.

    Args:
        index: the shard set.
        progress: show a bar.

    Returns:
        How many shards were compared; shards that :func:`pack` did not write may have no checksum.

    Raises:
        ShardError: a shard's bytes are not those that were indexed.
    """
    from tqdm import tqdm

    folders = {str(Path(path).parent) for path in index.paths if not is_url(path)}
    known = {folder: read_checksums(folder) for folder in folders}
    checked = 0
    for shard, path in enumerate(tqdm(index.paths, desc="Checking", unit=" shards", disable=not progress)):
        source = index.source(shard)
        if source is None or index.remote is None:
            expected = ("sha256", known[str(Path(path).parent)].get(Path(path).name))
        else:
            path, expected = str(index.remote.cache.fetch(source)), source.checksum or ("sha256", None)
        method, digits = expected
        if digits is None:
            continue
        found = checksum_of(Path(path), method)
        if found != digits:
            raise ShardError(
                f"Shard {index.named(shard)!r} has the {_NAMES[method]} {found}, expected {digits}. It is damaged: "
                "fetch it again."
            )
        checked += 1
    return checked


def checksum_of(path: Path, method: str = "sha256") -> str:
    """Checksum of a shard, as hexadecimal digits; MD5, which other tools list, finds damage but no ill will."""
    with open_shard(str(path)) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(method, usedforsecurity=False)).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a shard, as hexadecimal digits."""
    return checksum_of(path)
