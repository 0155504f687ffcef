"""Where the shards of one folder are, on disk or in a remote store, and where their index is kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lightning_robust.errors import ShardError
from lightning_robust.shards.cache import RemoteShard, ShardCache
from lightning_robust.shards.checksums import sha256_of
from lightning_robust.shards.download import persist
from lightning_robust.shards.folderindex import FolderIndex, ShardEntry
from lightning_robust.shards.indexdocument import KIND, IndexDocument, parse_index
from lightning_robust.shards.indexfile import INDEX_NAME, index_lock, replace_file
from lightning_robust.shards.members import MEMBER_DTYPE, MemberPlaces
from lightning_robust.shards.remote import MissingError, ObjectInfo, open_object
from lightning_robust.shards.scan import SAMPLE_DTYPE, Fields, SampleTable, scan_shard
from lightning_robust.shards.tablefile import hash_named
from lightning_robust.shards.urls import base_name, is_url, name_beside, shown

_MOST_INDEX_BYTES = 1 << 30
_NPY_HEADER_BYTES = 4096
_STATS_AT_ONCE = 16

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """A shard to scan: its name, its file, and what its entry in the index shall say besides (None keeps the old)."""

    name: str
    path: str
    extra: dict[str, Any] | None
    source: RemoteShard | None


class PublishedIndex(NamedTuple):
    """The ``index.json`` of a remote folder: its bytes, and what they say."""

    data: bytes
    document: IndexDocument


class Place(Protocol):
    """A folder of shards."""

    home: str

    def named(self, name: str) -> str:
        """Path or URL of a shard for messages."""

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """Bytes of the shards as they are now; empty where the index is taken at its word."""

    def lost(self, known: FolderIndex, names: list[str], patterns: list[str]) -> list[str]:
        """Shards that the index lists and a pattern matches, and that are gone."""

    def source(self, name: str, known: FolderIndex) -> RemoteShard | None:
        """Where an indexed shard is fetched from; None for a file."""

    def find(self, names: list[str], known: FolderIndex, *, refresh: bool) -> Iterator[Found]:
        """Bring shards at hand, in order."""

    def scan(self, found: Found, fields: Fields, seen: dict[str, str], others: MemberPlaces) -> SampleTable:
        """Scan a shard that was found."""

    def bring(self, file: str) -> None:
        """Bring a file of the index at hand."""


class LocalFolder:
    """Shards on disk; the index lies beside them."""

    def __init__(self, folder: str) -> None:
        self.home = folder

    def named(self, name: str) -> str:
        """Path of a shard."""
        return str(Path(self.home) / name)

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """Bytes of the files."""
        return {name: (Path(self.home) / name).stat().st_size for name in names}

    def lost(self, known: FolderIndex, names: list[str], patterns: list[str]) -> list[str]:
        """Files that are gone."""
        others = [Path(self.home) / name for name in known.shards.keys() - set(names)]
        local = [pattern for pattern in patterns if not is_url(pattern)]
        return [path.name for path in others if any(path.match(glob) for glob in local) and not path.is_file()]

    def source(self, name: str, known: FolderIndex) -> RemoteShard | None:  # noqa: ARG002
        """None."""
        return None

    def find(self, names: list[str], known: FolderIndex, *, refresh: bool) -> Iterator[Found]:  # noqa: ARG002
        """The files."""
        return (Found(name, str(Path(self.home) / name), None, None) for name in names)

    def scan(self, found: Found, fields: Fields, seen: dict[str, str], others: MemberPlaces) -> SampleTable:
        """Scan a file."""
        return scan_shard(found.path, fields, seen=seen, others=others)

    def bring(self, file: str) -> None:
        """It is there."""


class RemoteFolder:
    """Shards in a remote store; their index is the published one beside them, or is made in the cache.

    Args:
        url: of the folder, with its slash.
        urls: of the shards, by file name.
        fields: what is read of a sample.
        cache: where shards and index are kept.

    Raises:
        ShardError: the store does not answer, or the published index is damaged or names shards elsewhere.
    """

    def __init__(self, url: str, urls: dict[str, str], fields: Fields, cache: ShardCache) -> None:
        self._url, self._urls, self._cache = url, urls, cache
        published = published_index(url, cache)
        self._published = published is not None
        digest = None if published is None else hashlib.sha256(published.data).hexdigest()
        state = [url, fields.image_keys, fields.label_key, digest]
        home = cache.index_folder(hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32])
        home.mkdir(exist_ok=True)
        self.home = str(home)
        if published is not None:
            with index_lock(self.home):
                if not (home / INDEX_NAME).is_file():
                    self._keep(home, published)

    def named(self, name: str) -> str:
        """URL of a shard, without what may be secret."""
        return shown(self._url + name)

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """Bytes of the shards, asked of the store; none where their index is published."""
        return {} if self._published else {name: info.size for name, info in self._stat(names).items()}

    def lost(self, known: FolderIndex, names: list[str], patterns: list[str]) -> list[str]:
        """Shards that the store lists no more."""
        globs = [base_name(pattern) for pattern in patterns if pattern.startswith(self._url)]
        return [name for name in known.shards.keys() - set(names) if any(fnmatchcase(name, glob) for glob in globs)]

    def source(self, name: str, known: FolderIndex) -> RemoteShard:
        """The shard as the index knows it."""
        entry = known.shards[name]
        version = entry.extra.get("etag")
        version = None if version is None else str(version)
        return RemoteShard(self._urls[name], entry.size, listed_checksum(entry), version)

    def find(self, names: list[str], known: FolderIndex, *, refresh: bool) -> Iterator[Found]:
        """Fetch the shards, a few at a time."""
        fresh = [name for name in names if name not in known.shards]
        infos = self._stat(fresh)
        sources = {name: RemoteShard(self._urls[name], infos[name].size, None, infos[name].version) for name in fresh}
        sources |= {name: self.source(name, known) for name in names if name in known.shards}
        at_once = self._cache.options.connections
        with self._cache.pins() as pins, ThreadPoolExecutor(at_once) as pool:
            for group in _groups(names, at_once):
                wanted = [sources[name] for name in group]
                for source in wanted if refresh else ():
                    self._cache.discard(source)
                pins.hold(wanted)
                for name, path in zip(group, pool.map(self._cache.fetch, wanted), strict=True):
                    extra = {"sha256": sha256_of(Path(path))} if name in infos else None
                    if extra is not None and infos[name].version is not None:
                        extra["etag"] = str(infos[name].version)
                    yield Found(name, str(path), extra, sources[name])

    def scan(self, found: Found, fields: Fields, seen: dict[str, str], others: MemberPlaces) -> SampleTable:
        """Scan the copy in the cache; one that is no sound shard does not stay there."""
        try:
            return scan_shard(found.path, fields, seen=seen, others=others)
        except ShardError as error:
            if found.source is not None:
                self._cache.discard(found.source)
            folder = "" if found.name.endswith(".tar") else " If this is a folder, end the URL in a slash."
            said = str(error).replace(repr(found.path), repr(self.named(found.name)))
            raise ShardError(f"{said}{folder}") from error

    def bring(self, file: str) -> None:
        """Fetch a file that the published index names, unless it is in the cache."""
        if Path(file).is_file():
            return
        with index_lock(self.home):
            if not Path(file).is_file():
                path = Path(self.home) / INDEX_NAME
                document = parse_index(path.read_bytes(), str(path))
                self._fetch_part(Path(file), document.rows * MEMBER_DTYPE.itemsize)

    def _stat(self, names: list[str]) -> dict[str, ObjectInfo]:
        options = self._cache.options

        def ask(name: str) -> ObjectInfo:
            return persist(open_object(self._urls[name], options).stat, self._urls[name], options)

        with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
            return dict(zip(names, pool.map(ask, names), strict=True))

    def _keep(self, home: Path, published: PublishedIndex) -> None:
        document = published.document
        if document.samples_file is not None:
            self._fetch_part(home / document.samples_file, document.rows * SAMPLE_DTYPE.itemsize)
        replace_file(home / INDEX_NAME, published.data)

    def _fetch_part(self, path: Path, size: int) -> None:
        url = self._url + path.name
        self._cache.fetch_file(url, path, most=size + _NPY_HEADER_BYTES)
        if not hash_named(path.name, sha256_of(path)):
            path.unlink()
            raise ShardError(
                f"The samples file {shown(url)!r} holds other bytes than its name says. It is damaged: put the right "
                "file there, or make the index again."
            )


def published_index(url: str, cache: ShardCache) -> PublishedIndex | None:
    """Fetch the ``index.json`` of a remote folder.

    Args:
        url: of the folder, with its slash.
        cache: how it is fetched.

    Returns:
        The index, or None if there is none that says of shards.

    Raises:
        ShardError: it is damaged or lists shards outside the folder, or the store does not answer.
    """
    try:
        data = cache.fetch_bytes(url + INDEX_NAME, most=_MOST_INDEX_BYTES)
    except MissingError:
        # S3 refuses what does not exist where listing is not allowed, so a refusal says no more than that
        return None
    listed = _shards_listed(data)
    if listed is None:
        logger.warning("%s is not a shard index of kind %s, and is left aside.", shown(url + INDEX_NAME), KIND)
        return None
    for entry in listed:
        name_beside(url, entry.get("url") if isinstance(entry, dict) else None)
    return PublishedIndex(data, parse_index(data, shown(url + INDEX_NAME)))


def _shards_listed(data: bytes) -> list[Any] | None:
    """The list of shards, if there is one: a server may answer with a page of its own in place of a file."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    listed = document.get("shardlist") if isinstance(document, dict) and document.get("__kind__") == KIND else None
    return listed if isinstance(listed, list) else None


def listed_checksum(entry: ShardEntry) -> tuple[str, str] | None:
    """Name of the hash and its digits of a shard, where the index has one."""
    for key, method in (("sha256", "sha256"), ("md5sum", "md5")):
        if key in entry.extra:
            return method, str(entry.extra[key]).lower()
    return None


def _groups(names: list[str], size: int) -> Iterator[list[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))
