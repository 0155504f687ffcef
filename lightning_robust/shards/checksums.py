"""Compare shards with the checksums in their index."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lightning_robust.errors import ShardError
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import read_checksums


def check_checksums(index: ShardIndex, *, progress: bool = False) -> int:
    """Read every shard whose index holds a SHA-256 and compare.

    Args:
        index: the shard set.
        progress: show a bar.

    Returns:
        How many shards were compared; shards that :func:`pack` did not write may have no checksum.

    Raises:
        ShardError: a shard's bytes are not those that were indexed.
    """
    from tqdm import tqdm

    known = {folder: read_checksums(folder) for folder in {str(Path(path).parent) for path in index.paths}}
    checked = 0
    for path in tqdm(index.paths, desc="Checking", unit=" shards", disable=not progress):
        expected = known[str(Path(path).parent)].get(Path(path).name)
        if expected is not None:
            found = sha256_of(Path(path))
            if found != expected:
                raise ShardError(
                    f"Shard {path!r} has the SHA-256 {found}, expected {expected}. It is damaged: fetch it again."
                )
            checked += 1
    return checked


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
