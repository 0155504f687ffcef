"""Read image bytes of samples by id."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import ShardError
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.tar import MAX_MEMBER_BYTES

_OPEN_SHARDS = 128


class SampleReader:
    """Read the image bytes of samples, in any order, by ``os.pread``.

    Shards are opened on first use in each process, and at most 128 at a time; remote ones are fetched to the cache
    then. Pickling drops them. Not for use by several threads at once.

    Args:
        index: the shard set.
        max_bytes: images larger than this are refused.
    """

    def __init__(self, index: ShardIndex, *, max_bytes: int = MAX_MEMBER_BYTES) -> None:
        self.index = index
        self.max_bytes = max_bytes
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()

    def read(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> list[bytes]:
        """Return the encoded image of each sample.

        Raises:
            FetchError: a remote shard cannot be fetched.
            ShardError: a shard is missing or has another size than the index says, or an image does not lie within it.
            InputError: an id is outside the set.
        """
        shards, offsets, sizes = self.index.locate(ids)
        images = []
        for position, (shard, offset, size) in enumerate(
            zip(shards.tolist(), offsets.tolist(), sizes.tolist(), strict=True)
        ):
            total = int(self.index.sizes[shard])
            if not (offset > 0 and 0 < size <= self.max_bytes and offset + size <= total):
                raise ShardError(
                    f"The index places {self.index.describe(int(ids[position]))} at byte {offset} with {size} bytes; "
                    f"expected 1 to {self.max_bytes} bytes that end within the {total} of the shard. Run "
                    "`lightning-robust shards index --rebuild`."
                )
            data = os.pread(self._descriptor(shard), size, offset)
            if len(data) != size:
                raise ShardError(
                    f"Read {len(data)} of the {size} bytes of {self.index.describe(int(ids[position]))}. "
                    "The shard was cut while it was in use: fetch it again."
                )
            images.append(data)
        return images

    def read_member(self, extension: str, sample: int, *, max_bytes: int | None = None) -> bytes:
        """Return another member of a sample, of those that the index was opened with.

        Args:
            extension: of the member.
            sample: its id.
            max_bytes: larger members are refused; None takes the limit of the reader.

        Raises:
            FetchError: a remote shard cannot be fetched.
            ShardError: the sample has no such member, it is empty or too large, or its shard is not what it was.
            InputError: the index was opened without this extension.
        """
        shard, offset, size = self.index.locate_member(extension, sample)
        most = self.max_bytes if max_bytes is None else max_bytes
        if not 0 < size <= most or offset + size > self.index.sizes[shard]:
            raise ShardError(
                f"The index places the member '.{extension}' of {self.index.describe(sample)} at byte {offset}; it has "
                f"{size} bytes, expected 1 to {most} that end within the shard."
            )
        data = os.pread(self._descriptor(shard), size, offset)
        if len(data) != size:
            raise ShardError(
                f"Read {len(data)} of the {size} bytes of '.{extension}' of {self.index.describe(sample)}. The shard "
                "was cut while it was in use: fetch it again."
            )
        return data

    def close(self) -> None:
        """Close all shards; reading opens them again."""
        while self._descriptors:
            _, descriptor = self._descriptors.popitem()
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _descriptor(self, shard: int) -> int:
        if self._process != os.getpid():
            self.close()
            self._process = os.getpid()
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._open(shard)
        self._descriptors.move_to_end(shard)
        return descriptor

    def _open(self, shard: int) -> int:
        path, expected = self.index.named(shard), int(self.index.sizes[shard])
        try:
            descriptor = self.index.open_shard(shard)
        except ShardError:
            raise
        except OSError as error:
            raise ShardError(f"Shard {path!r} cannot be opened: {error.strerror}. Fetch it again.") from error
        if (size := os.fstat(descriptor).st_size) != expected:
            os.close(descriptor)
            raise ShardError(
                f"Shard {path!r} has {size} bytes; the index says {expected} bytes with "
                f"{int(self.index.counts[shard])} samples. It was cut or replaced: fetch it again."
            )
        self._close_evicted()
        if len(self._descriptors) == _OPEN_SHARDS:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[shard] = descriptor
        return descriptor

    def _close_evicted(self) -> None:
        """Close copies that are gone from the cache: they take disk space for as long as they are open."""
        remote = [] if self.index.remote is None else list(self._descriptors.items())
        for shard, descriptor in remote:
            if os.fstat(descriptor).st_nlink == 0:
                os.close(self._descriptors.pop(shard))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if "_descriptors" in self.__dict__:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["index"], max_bytes=state["max_bytes"])  # type: ignore[misc]
