"""Whole shards from remote stores in a local folder that any number of processes share.

A shard appears under its name only when it is whole. Locks and pins are held by ``flock``, so those of a killed process
are gone with it; the folder must lie on a local disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_robust.errors import ShardError
from lightning_robust.shards.download import Expected, download
from lightning_robust.shards.remote import FetchError, RemoteOptions, open_object
from lightning_robust.shards.urls import base_name, shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteShard:
    """A shard in a remote store, and what is known of its bytes."""

    url: str
    size: int | None = None
    checksum: tuple[str, str] | None = None
    version: str | None = None

    @property
    def cache_name(self) -> str:
        """File name in the cache: one for each URL and state of the bytes, ending in the name the user knows."""
        state = self.version or (self.checksum and self.checksum[1]) or self.size
        digest = hashlib.sha256(f"{self.url}\0{state}".encode()).hexdigest()[:32]
        return f"{digest}-{re.sub(r'[^A-Za-z0-9._-]', '_', base_name(self.url))[-80:]}"


def default_cache() -> Path:
    """Folder of the cache where the user names none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-robust" / "shards"


class ShardCache:
    """The local copies. Holds no open file, and pickles.

    Args:
        options: where the cache is, how large it may grow, and how shards are fetched.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self.options = options
        self.folder = Path(options.cache_dir).expanduser().absolute() if options.cache_dir else default_cache()

    def path(self, shard: RemoteShard) -> Path:
        """Where the copy of a shard is, once it is there."""
        return self.folder / "shards" / shard.cache_name

    def fetch(self, shard: RemoteShard) -> Path:
        """Make sure that a shard is in the cache, and count it as used now; waits while another process fetches it.

        Returns:
            The copy.

        Raises:
            FetchError, ShardError: as :func:`download`.
        """
        path = self.path(shard)
        if not self._use(path, shard):
            with self._lock(path.name):
                self._fetch(path, shard, None)
        return path

    def fetch_ahead(self, shard: RemoteShard, stop: threading.Event) -> None:
        """Fetch a shard that will be needed, unless it is there or another process is fetching it.

        Args:
            shard: what to fetch.
            stop: ends the download when set.

        Raises:
            FetchError, ShardError, StoppedError: as :func:`download`.
        """
        path = self.path(shard)
        if not self._use(path, shard):
            with contextlib.suppress(Timeout), self._lock(path.name, blocking=False):
                self._fetch(path, shard, stop)

    def open(self, shard: RemoteShard) -> int:
        """Open a shard for reading, fetching it first if need be; the descriptor outlives an eviction."""
        for _ in range(10):
            path = self.fetch(shard)
            with contextlib.suppress(FileNotFoundError):  # evicted in between
                return os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
        raise FetchError(
            f"The copy of {shown(shard.url)!r} is taken from the cache {str(self.folder)!r} again and again: raise "
            "cache_bytes, or give each run a cache_dir of its own."
        )

    def discard(self, shard: RemoteShard) -> None:
        """Forget the copy of a shard."""
        self.path(shard).unlink(missing_ok=True)

    def fetch_file(self, url: str, target: Path, *, most: int) -> None:
        """Fetch an object to a file of the caller's.

        Raises:
            FetchError, ShardError: as :func:`download`; also if it has more than ``most`` bytes.
        """
        download(open_object(url, self.options), target, Expected(most=most), self.options)

    def fetch_bytes(self, url: str, *, most: int) -> bytes:
        """Fetch a small object, without keeping it.

        Raises:
            FetchError, ShardError: as :meth:`fetch_file`.
        """
        aside = self._home("indexes") / f"{uuid.uuid4().hex}.tmp"
        try:
            self.fetch_file(url, aside, most=most)
            return aside.read_bytes()
        finally:
            aside.unlink(missing_ok=True)
            aside.with_name(f"{aside.name}.part").unlink(missing_ok=True)

    def index_folder(self, name: str) -> Path:
        """Folder, made if need be, for an index that is kept with the cache."""
        return self._home("indexes") / name

    @contextlib.contextmanager
    def pins(self) -> Iterator[Pins]:
        """Shards that must stay while the context lasts."""
        pins = Pins(self)
        try:
            yield pins
        finally:
            pins.release()

    def _fetch(self, path: Path, shard: RemoteShard, stop: threading.Event | None) -> None:
        if self._use(path, shard):
            return
        self._make_room(shard.size or 0, keep=path.name)
        expected = Expected(shard.size, shard.checksum, shard.version)
        download(open_object(shard.url, self.options), path, expected, self.options, stop=stop)
        self._make_room(0, keep=path.name)

    def _use(self, path: Path, shard: RemoteShard) -> bool:
        try:
            sound = shard.size in (None, path.stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return False
        with contextlib.suppress(OSError):  # evicted just now, or in a cache that this user may only read
            os.utime(path)
        if not sound:
            path.unlink(missing_ok=True)
        return sound

    def _lock(self, name: str, *, blocking: bool = True) -> FileLock:
        return FileLock(str(self._home("locks") / f"{name}.lock"), blocking=blocking)

    def _home(self, part: str) -> Path:
        try:
            for home in (self.folder / name for name in ("shards", "locks", "pins", part)):
                home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShardError(
                f"The shard cache {str(self.folder)!r} cannot be made ({error.strerror}). Give a folder that can be "
                "written to: RemoteOptions(cache_dir=...)."
            ) from error
        return self.folder / part

    def _make_room(self, incoming: int, *, keep: str) -> None:
        limit = self.options.cache_bytes
        if limit is None:
            return
        with self._lock("eviction"):
            found = []
            for path in self._home("shards").iterdir():
                with contextlib.suppress(FileNotFoundError):  # renamed or forgotten by another process
                    state = path.stat()
                    found.append((state.st_mtime_ns, state.st_size, path))
            held = sum(size for _, size, _ in found) + incoming
            pinned = self._pinned() | {keep, f"{keep}.part"}
            for _, size, path in sorted(found):
                if held <= limit:
                    return
                if path.name not in pinned and self._evict(path):
                    held -= size
        if held > limit:
            logger.warning(
                "The shard cache %s takes %d bytes, more than cache_bytes=%d, since running loaders need these shards.",
                self.folder,
                held,
                limit,
            )

    def _evict(self, path: Path) -> bool:
        if path.suffix != ".part":
            path.unlink(missing_ok=True)
            return True
        try:  # of a killed process, unless someone holds the lock
            with self._lock(path.name.removesuffix(".part"), blocking=False):
                path.unlink(missing_ok=True)
                return True
        except Timeout:
            return False

    def _pinned(self) -> set[str]:
        import fcntl

        names: set[str] = set()
        for path in self._home("pins").iterdir():
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    names.update(json.loads(file.read() or b"[]"))
                else:
                    path.unlink(missing_ok=True)
        return names


@dataclass(frozen=True)
class RemoteSet:
    """The remote ones among the shards of a set, None for a local one, and the cache they are read through."""

    cache: ShardCache
    shards: tuple[RemoteShard | None, ...]


class Pins:
    """Shards that a process is about to read, which no process evicts until it releases them or dies.

    Args:
        cache: the cache they are in.
    """

    def __init__(self, cache: ShardCache) -> None:
        import fcntl

        self._cache = cache
        path = cache._home("pins") / uuid.uuid4().hex
        with cache._lock("eviction"):
            # not a FileLock: a copy of one in a forked worker would let go of it when it is collected
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self.release = weakref.finalize(self, _release, path, self._descriptor, os.getpid())

    def hold(self, shards: Iterable[RemoteShard]) -> None:
        """Hold these shards, and no others any more."""
        data = json.dumps([shard.cache_name for shard in shards]).encode()
        with self._cache._lock("eviction"):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, data, 0)


def _release(path: Path, descriptor: int, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)
    os.close(descriptor)
