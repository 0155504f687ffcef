"""Fetch one object to a file: go on after a cut, try again after a while, check the bytes, put the file in place."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from lightning_robust.errors import ShardError
from lightning_robust.shards.remote import FetchError, RemoteObject, RemoteOptions, TransientError
from lightning_robust.shards.urls import shown

T = TypeVar("T")

_LONGEST_WAIT = 60.0
# ranks that failed together must not come back together, as they would from a seeded generator
_JITTER = random.SystemRandom()

logger = logging.getLogger(__name__)


class Expected(NamedTuple):
    """What is known of an object before it is read; None for what is not.

    Attributes:
        size: bytes.
        checksum: name of the hash and its hexadecimal digits.
        version: as the server told it.
        most: bytes above which it is refused.
    """

    size: int | None = None
    checksum: tuple[str, str] | None = None
    version: str | None = None
    most: int | None = None


class StoppedError(Exception):
    """The download was told to stop."""


def download(
    source: RemoteObject,
    target: Path,
    expected: Expected,
    options: RemoteOptions,
    *,
    stop: threading.Event | None = None,
) -> None:
    """Fetch an object to a file that appears whole or not at all.

    The caller holds a lock on ``target``. Bytes that a killed process left beside it are kept where the version or a
    checksum can tell whether they still fit.

    Args:
        source: the object.
        target: the file.
        expected: what the object must be.
        options: time-outs and tries.
        stop: ends the download soon when set, keeping what came.

    Raises:
        FetchError: the store refuses, or no new byte came in ``options.attempts`` tries.
        ShardError: the object is not as expected, or the disk is full.
        StoppedError: ``stop`` was set.
    """
    stop = stop or threading.Event()
    transfer = _Transfer(source, target.with_name(f"{target.name}.part"), expected, stop)
    persist(transfer.run, source.url, options, idle=lambda: transfer.idle, stop=stop)
    transfer.part.replace(target)


def persist(
    act: Callable[[], T],
    url: str,
    options: RemoteOptions,
    *,
    idle: Callable[[], int] | None = None,
    stop: threading.Event | None = None,
) -> T:
    """Act, and try again after transient failures, with growing random waits.

    Args:
        act: what to do.
        url: for messages.
        options: number of tries and length of the waits.
        idle: tells how many tries in a row brought nothing; None counts them all.
        stop: ends a wait, and the tries.

    Raises:
        FetchError: the tries are used up.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception_type
    from tenacity.nap import sleep_using_event

    def in_vain(state: RetryCallState) -> int:
        return state.attempt_number if idle is None else idle()

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, TransientError) else 0.0
        grown = min(_LONGEST_WAIT, options.backoff * 2 ** min(in_vain(state), 16))
        return max(min(asked, _LONGEST_WAIT), _JITTER.uniform(grown / 4, grown))

    def say(state: RetryCallState) -> None:
        first = state.attempt_number == 1
        error = state.outcome.exception() if state.outcome else None
        logger.log(logging.WARNING if first else logging.INFO, "%s: %s; trying again.", shown(url), error)

    retrying = Retrying(
        retry=retry_if_exception_type(TransientError),
        stop=lambda state: in_vain(state) >= options.attempts,
        wait=wait,
        sleep=sleep_using_event(stop or threading.Event()),
        before_sleep=say,
        reraise=True,
    )
    try:
        return retrying(act)
    except TransientError as error:
        tries = f"{options.attempts} {'try' if options.attempts == 1 else 'tries'}"
        raise FetchError(
            f"{shown(url)!r} cannot be fetched: {error}, after {tries} in a row that brought nothing. "
            "Check the network and the server; what is in the cache stays there."
        ) from error


class _Transfer:
    """The state of one download over its tries."""

    def __init__(self, source: RemoteObject, part: Path, expected: Expected, stop: threading.Event) -> None:
        self.part = part
        self.idle = 0
        self._source, self._expected, self._stop = source, expected, stop
        self._version = expected.version
        self._farthest = 0
        self._spliced = False

    def run(self) -> None:
        """Read what is not there yet."""
        self.idle += 1
        offset = self._kept()
        if offset != self._expected.size or offset == 0:
            self._read(offset)
        self._check()

    def _kept(self) -> int:
        """How many bytes of an earlier try or process may be gone on from."""
        if self._version is None and self._expected.checksum is None:
            self.part.unlink(missing_ok=True)
        size = self.part.stat().st_size if self.part.is_file() else 0
        if size > (self._expected.size or size) or (size == self._expected.size and self._expected.checksum is None):
            self.part.unlink()
            return 0
        return size

    def _read(self, offset: int) -> None:
        with self._source.read(offset, self._version) as stream:
            if stream.start not in (0, offset) or (stream.start and self._version not in (None, stream.info.version)):
                self._forget()
                raise TransientError("the object changed between two reads")
            self._check_size(stream.info.size)
            self._version = stream.info.version
            self._spliced |= stream.start > 0
            with self._opened(stream.start) as file:
                for chunk in stream.chunks:
                    self._write(file, chunk)
        have = self.part.stat().st_size
        if stream.info.size is not None and have != stream.info.size:
            if have > stream.info.size:
                self._forget()
            raise TransientError(f"{have} of {stream.info.size} bytes came")

    def _opened(self, start: int) -> BinaryIO:
        try:
            file = self.part.open("r+b" if start else "wb")
        except OSError as error:
            raise _full(self.part, error) from error
        file.seek(start)
        file.truncate()
        return file

    def _write(self, file: BinaryIO, chunk: bytes) -> None:
        if self._stop.is_set():
            raise StoppedError
        try:
            file.write(chunk)
            file.flush()
        except OSError as error:
            raise _full(self.part, error) from error
        if file.tell() > (self._expected.most or file.tell()):
            raise ShardError(f"{shown(self._source.url)!r} has more than {self._expected.most} bytes, the limit.")
        if file.tell() > self._farthest:
            self._farthest, self.idle = file.tell(), 0

    def _check_size(self, found: int | None) -> None:
        expected = self._expected.size
        if expected is not None and found is not None and found != expected:
            self._forget()
            raise ShardError(
                f"{shown(self._source.url)!r} has {found} bytes; the index says {expected}. It was cut or replaced: "
                "put the right file there, or run `lightning-robust shards index --rebuild` if that is on purpose."
            )

    def _check(self) -> None:
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
            self._check_size(os.fstat(file.fileno()).st_size)
            if self._expected.checksum is None:
                return
            method, expected = self._expected.checksum
            found = hashlib.file_digest(file, lambda: hashlib.new(method, usedforsecurity=False)).hexdigest()
        if found != expected:
            self._forget()
            if self._spliced:
                self._spliced = False
                raise TransientError(f"the parts that came do not fit together ({method} {found})")
            raise ShardError(
                f"{shown(self._source.url)!r} has the {method} {found}; the index says {expected}. It is damaged or "
                "was replaced: put the right file there, or run `lightning-robust shards index --rebuild`."
            )

    def _forget(self) -> None:
        self._version = None
        self.part.unlink(missing_ok=True)


def _full(path: Path, error: OSError) -> ShardError:
    return ShardError(
        f"The shard cache {str(path.parent)!r} cannot be written to ({error.strerror or error}). Make room, or set "
        "RemoteOptions(cache_dir=..., cache_bytes=...)."
    )
