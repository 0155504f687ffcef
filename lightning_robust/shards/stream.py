"""Read shards forwards only, without an index and without a local copy."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from lightning_robust.errors import ShardError
from lightning_robust.shards.download import persist
from lightning_robust.shards.paths import Shards, expand_shards
from lightning_robust.shards.remote import FetchError, ObjectInfo, RemoteOptions, TransientError, open_object
from lightning_robust.shards.tar import stream_tar
from lightning_robust.shards.urls import is_url, shown


def expand_streams(shards: Shards, remote: RemoteOptions) -> list[str]:
    """List shards as :func:`expand_shards` does; named pipes (FIFOs) among them come first.

    Raises:
        ShardError, UnsupportedError, InputError: as there.
    """
    entries = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    names = [os.fspath(entry) for entry in entries]
    pipes = [name for name in names if not is_url(name) and Path(name).is_fifo()]
    others = [name for name in names if name not in pipes]
    return pipes + (expand_shards(others, remote) if others or not pipes else [])


def named(shard: str) -> str:
    """Path or URL of a shard for messages, without what may be secret."""
    return shown(shard) if is_url(shard) else shard


def read_members(shard: str, remote: RemoteOptions) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the members of a shard, which is read once, from its beginning to its end.

    Raises:
        FetchError: the store refuses, does not answer, or cannot go on after a cut.
        ShardError: the shard cannot be opened, or as :func:`stream_tar`.
    """
    with _opened(shard, remote) as file:
        yield from stream_tar(file, named(shard))


def _opened(shard: str, remote: RemoteOptions) -> BinaryIO:
    if is_url(shard):
        return io.BufferedReader(_RemoteStream(shard, remote))
    try:
        return Path(shard).open("rb")
    except OSError as error:
        raise ShardError(f"Shard {shard!r} cannot be opened: {error.strerror}. Check the path.") from error


class _RemoteStream(io.RawIOBase):
    """An object in a remote store as a file that is read once; connects again after a cut."""

    def __init__(self, url: str, options: RemoteOptions) -> None:
        self._source, self._options = open_object(url, options), options
        self._connection = ExitStack()
        self._chunks: Iterator[bytes] | None = None
        self._info = ObjectInfo(None, None)
        self._received = self._idle = 0
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer; 0 at the end."""
        if not self._rest:
            self._rest = memoryview(persist(self._next, self._source.url, self._options, idle=lambda: self._idle))
        part = self._rest[: len(buffer)]
        buffer[: len(part)] = part
        self._rest = self._rest[len(part) :]
        return len(part)

    def close(self) -> None:
        """Let the connection go."""
        self._disconnect()
        super().close()

    def _next(self) -> bytes:
        try:
            if self._chunks is None:
                self._chunks = self._connect()
            chunk = next(self._chunks, b"")
            if not chunk and self._received < (self._info.size or 0):
                raise TransientError(f"{self._received} of {self._info.size} bytes came")
        except TransientError:
            self._disconnect()
            raise
        self._received += len(chunk)
        self._idle = 0
        return chunk

    def _connect(self) -> Iterator[bytes]:
        self._idle += 1
        stream = self._connection.enter_context(self._source.read(self._received, self._info.version))
        if self._received == 0:
            self._info = stream.info
        elif self._info.version is None or stream.info != self._info or stream.start > self._received:
            raise FetchError(
                f"{shown(self._source.url)!r} was cut after {self._received} bytes, and the server does not tell that "
                f"the rest belongs to them (found {stream.info}, expected {self._info} with a version). Start again, "
                "or read it through the cache (with an index)."
            )
        return _after(stream.chunks, self._received - stream.start)

    def _disconnect(self) -> None:
        self._chunks = None
        self._connection.close()


def _after(chunks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """What comes after the first ``skip`` bytes, which a server without Range sends again."""
    for chunk in chunks:
        if skip < len(chunk):
            yield chunk[skip:]
        skip = max(0, skip - len(chunk))
