"""Copy samples, with all their members, from shards to new ones."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from lightning_robust.errors import ShardError
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.scan import split_name
from lightning_robust.shards.tar import BLOCK, Member, walk_tar

_CHUNK = 1 << 20
_END = bytes(2 * BLOCK)


class StoredSample(NamedTuple):
    """A sample where it lies: its id in the set, its key, its members, and the open shard that holds them."""

    number: int
    key: str
    members: list[Member]
    shard: BinaryIO


def stored_samples(index: ShardIndex, *, description: str | None = None) -> Iterator[StoredSample]:
    """Walk over the samples of a set, in order; each is good until the next.

    Args:
        index: the set.
        description: of a progress bar; None for none.

    Raises:
        FetchError: a remote shard cannot be fetched.
        ShardError: a shard is not sound, or holds more or fewer samples than the index says.
    """
    from tqdm import tqdm

    with tqdm(total=len(index), desc=description, unit=" samples", disable=description is None) as bar:
        for shard, (start, count) in enumerate(zip(index.starts.tolist(), index.counts.tolist(), strict=False)):
            found = 0
            with _at_hand(index, shard) as path, Path(path).open("rb") as file:
                for key, members in _grouped(path):
                    if found == count:
                        raise _replaced(index, shard, "more")
                    yield StoredSample(start + found, key, members, file)
                    found += 1
                    bar.update()
            if found < count:
                raise _replaced(index, shard, "fewer")


def _replaced(index: ShardIndex, shard: int, how_many: str) -> ShardError:
    return ShardError(
        f"Shard {index.named(shard)!r} holds {how_many} samples than the {index.counts[shard]} of the index. It was "
        "replaced: run `lightning-robust shards index --rebuild`."
    )


@contextmanager
def _at_hand(index: ShardIndex, shard: int) -> Iterator[str]:
    """Path of a shard; a remote one stays in the cache while it is read."""
    source = index.source(shard)
    if source is None or index.remote is None:
        yield index.paths[shard]
        return
    with index.remote.cache.pins() as pins:
        pins.hold([source])
        yield str(index.remote.cache.fetch(source))


def _grouped(path: str) -> Iterator[tuple[str, list[Member]]]:
    """Group the members by key; what belongs to no sample is left out."""
    current, members = "", list[Member]()
    for member in walk_tar(path):
        parts = split_name(member.name)
        if parts is None:
            continue
        if members and parts[0] != current:
            yield current, members
            members = []
        current = parts[0]
        members.append(member)
    if members:
        yield current, members


class CopyWriter:
    """Distributes copies of samples over the tar files of a set.

    Args:
        folder: where they go.
        name: begins their file names.
        samples_per_shard: most samples in a shard.
        max_bytes: most bytes in a shard of more than one sample; None for no limit.
    """

    def __init__(self, folder: Path, name: str, samples_per_shard: int, max_bytes: int | None) -> None:
        self._folder, self._name = folder, name
        self._samples_per_shard, self._max_bytes = samples_per_shard, max_bytes
        self._shards = self._samples = self._bytes = 0
        self._file: BinaryIO | None = None

    def write(self, sample: StoredSample, *, prefix: str = "") -> None:
        """Append a sample, in a new shard if this one is full.

        Args:
            sample: what to copy; its members keep their bytes, names and order.
            prefix: put before the names.
        """
        headers = [_header(prefix + member.name, member.size) for member in sample.members]
        size = sum(map(len, headers)) + sum(member.size + -member.size % BLOCK for member in sample.members)
        too_large = self._max_bytes is not None and self._bytes + size > self._max_bytes
        if self._file is None or self._samples == self._samples_per_shard or (too_large and self._samples):
            self._file = self._next()
        for header, member in zip(headers, sample.members, strict=True):
            self._file.write(header)
            _copy(sample.shard, member, self._file)
        self._samples += 1
        self._bytes += size

    def _next(self) -> BinaryIO:
        self.close()
        file = (self._folder / f"{self._name}-{self._shards:06d}.tar").open("wb")
        self._shards += 1
        self._samples = self._bytes = 0
        return file

    def close(self) -> None:
        """Finish the shard that is being written and sync it."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with file:
            file.write(_END)
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()


def _header(name: str, size: int) -> bytes:
    """Header with the time, mode and owner that ``pack`` gives; a long name gets an extended one before it."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _copy(source: BinaryIO, member: Member, target: BinaryIO) -> None:
    done = 0
    while done < member.size:
        chunk = os.pread(source.fileno(), min(_CHUNK, member.size - done), member.offset + done)
        if not chunk:
            raise ShardError(
                f"The member {member.name!r} ends after {done} of {member.size} bytes: its shard was cut while it was "
                "in use. Fetch it again."
            )
        target.write(chunk)
        done += len(chunk)
    target.write(bytes(-member.size % BLOCK))
