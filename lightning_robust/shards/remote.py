"""One object in a remote store: its size, and its bytes from an offset on. Stores are reached through fsspec."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lightning_robust.errors import InputError, ShardError, UnsupportedError
from lightning_robust.shards.urls import WEB, scheme_of, shown

_BLOCK = 4 << 20
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}
# what a driver tells of an object that changes with its content, best first
_VERSIONS = ("ETag", "etag", "generation", "blob_id", "md5Hash", "mtime", "last_modified", "LastModified", "created")


@dataclass(frozen=True)
class RemoteOptions:
    """How shards that are named by a URL are fetched.

    Args:
        cache_dir: folder of the local copies, which any number of processes of one machine may share; None takes
            ``$XDG_CACHE_HOME/lightning-robust/shards``, by default below ``~/.cache``.
        cache_bytes: bytes of shards that the cache may hold; the least recently used go first, never one that a running
            loader is about to read. None for no limit.
        storage_options: what the fsspec driver of the store is given (``key``, ``endpoint_url``, ...); for ``http(s)``,
            ``{"headers": {...}}``. None leaves credentials to the driver's own search.
        timeout: seconds within which a read of a web server, or 4 MiB of a store, must come.
        attempts: tries in a row without a new byte after which a download is given up.
        backoff: seconds of the first wait between tries, at most; doubled up to a minute, drawn at random below that.
        connections: shards that one loader fetches ahead at the same time.
    """

    cache_dir: str | None = None
    cache_bytes: int | None = None
    storage_options: dict[str, Any] | None = None
    timeout: float = 60.0
    attempts: int = 8
    backoff: float = 1.0
    connections: int = 4

    def __post_init__(self) -> None:
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise InputError(f"cache_bytes={self.cache_bytes} leaves no room for a shard: give bytes, or None.")
        if self.timeout <= 0 or self.attempts < 1 or self.backoff < 0 or self.connections < 1:
            raise InputError(
                f"timeout={self.timeout}, attempts={self.attempts}, backoff={self.backoff}, connections="
                f"{self.connections}: expected a time above 0, 1 or more attempts, a wait of 0 or more, 1 or more "
                "connections."
            )


class FetchError(ShardError):
    """A remote shard cannot be fetched now; says nothing of its samples."""


class MissingError(FetchError):
    """There is no such object, or it may not be read."""


class TransientError(Exception):
    """A failure that another try may mend; ``wait`` is how many seconds the server asked for."""

    def __init__(self, message: str, *, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class ObjectInfo(NamedTuple):
    """Size in bytes, and a text that changes when the object does; None where the server does not tell."""

    size: int | None
    version: str | None


class Stream(NamedTuple):
    """An object that is being read: where the bytes begin, size and version of the whole, and the bytes."""

    start: int
    info: ObjectInfo
    chunks: Iterator[bytes]


class RemoteObject(Protocol):
    """What :func:`open_object` returns."""

    url: str

    def stat(self) -> ObjectInfo:
        """Ask for size and version."""

    def read(self, offset: int, version: str | None) -> AbstractContextManager[Stream]:
        """Read from an offset on; from the start if the object is not of this version any more."""


def open_object(url: str, options: RemoteOptions) -> RemoteObject:
    """Prepare to read an object; nothing is sent yet.

    Raises:
        UnsupportedError: the scheme is refused or unknown, or its driver is not installed.
    """
    if scheme_of(url) in WEB:
        from lightning_robust.shards.http import HttpObject

        return HttpObject(url, options)
    return StoreObject(url, options)


def list_store(pattern: str, options: RemoteOptions) -> list[str]:
    """URLs of the objects that match a glob, in no order.

    Raises:
        UnsupportedError: a web server, which has no listing, or as :func:`open_object`.
        ShardError: the store does not answer, or refuses.
    """
    scheme = scheme_of(pattern)
    if scheme in WEB:
        raise UnsupportedError(
            f"{shown(pattern)!r} is a glob, and a web server cannot list its files: use braces (s-{{000..099}}.tar), "
            "or put an index.json beside the shards and name their folder, with a slash at the end."
        )
    store = StoreObject(pattern, options)
    return [f"{scheme}://{path.lstrip('/')}" for path in store.glob()]


def is_pattern(url: str) -> bool:
    """Tell whether a URL is a glob; ``?`` begins the query of a web address."""
    return "*" in url if scheme_of(url) in WEB else glob.has_magic(url)


class StoreObject:
    """An object in a store that an fsspec driver reaches. To be made in the process that uses it."""

    def __init__(self, url: str, options: RemoteOptions) -> None:
        self.url = url
        self._timeout = options.timeout
        self._store = _filesystem(scheme_of(url), options.storage_options or {})
        self._path = self._store._strip_protocol(url)

    def stat(self) -> ObjectInfo:
        """Ask for size and version."""
        self._store.invalidate_cache(self._store._parent(self._path))
        found = self._call("info", self._path)
        if found.get("size") is None:
            raise FetchError(f"The store tells no size for {shown(self.url)!r} (type {found.get('type')!r}).")
        version = next((str(found[key]) for key in _VERSIONS if found.get(key) is not None), None)
        return ObjectInfo(int(found["size"]), version)

    @contextmanager
    def read(self, offset: int, version: str | None) -> Iterator[Stream]:
        """Read from an offset on, in blocks."""
        info = self.stat()
        changed = version is not None and info.version != version
        start = 0 if changed or offset > (info.size or 0) else offset
        yield Stream(start, info, self._blocks(start, info))

    def glob(self) -> list[str]:
        """Paths that match, where this object's path is a glob."""
        self._store.invalidate_cache()
        try:
            return [str(path) for path in self._call("glob", self._path)]
        except TransientError as error:
            raise FetchError(f"{shown(self.url)!r} cannot be listed: {error}.") from error

    def _blocks(self, start: int, info: ObjectInfo) -> Iterator[bytes]:
        size = info.size or 0
        for begin in range(start, size, _BLOCK):
            yield self._call("cat_file", self._path, start=begin, end=min(begin + _BLOCK, size))
        if self.stat() != info:
            raise TransientError("it was replaced while it was read")

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        from fsspec.asyn import AsyncFileSystem, sync

        store = self._store
        try:
            if isinstance(store, AsyncFileSystem):
                return sync(store.loop, getattr(store, f"_{method}"), *args, timeout=self._timeout, **kwargs)
            return getattr(store, method)(*args, **kwargs)
        except FileNotFoundError as error:
            raise MissingError(f"{shown(self.url)!r} does not exist. Check the URL.") from error
        except Exception as error:
            # drivers have errors of their own for missing credentials; these are no kind of OSError
            if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
                raise MissingError(
                    f"{shown(self.url)!r} may not be read ({type(error).__name__}: {error}). Give the driver "
                    "credentials: in its environment variables or files, or in RemoteOptions(storage_options=...)."
                ) from error
            if isinstance(error, ValueError | TypeError | NotImplementedError):
                raise FetchError(
                    f"The driver of {shown(self.url)!r} failed ({type(error).__name__}: {error}). Check the URL and "
                    "the storage_options."
                ) from error
            raise TransientError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


def _filesystem(scheme: str, storage_options: dict[str, Any]) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme, **storage_options)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install 'lightning-robust[{extra}]'" if extra else str(error)
        raise UnsupportedError(f"Shards at {scheme}:// need a driver that is not installed: {remedy}") from error
    except (ValueError, TypeError) as error:
        raise UnsupportedError(
            f"Shards at {scheme}:// cannot be read: {error}. Check the scheme and options."
        ) from error
