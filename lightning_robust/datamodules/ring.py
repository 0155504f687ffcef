"""A few shared-memory buffers that workers fill again and again.

A worker that returns a fresh shared tensor for each batch spends much of its time on the page faults of new shared
memory; pages that were touched before cost nothing.
"""

from __future__ import annotations

import shutil
import weakref
from collections import deque
from pathlib import Path

import torch
from torch import Tensor

from lightning_robust.errors import UnsupportedError

_SHARED_MEMORY = Path("/dev/shm")


class BufferRing:
    """Buffers in shared memory, each lent out until the last tensor on it is gone.

    Args:
        slots: number of buffers.
        shape: shape of one uint8 buffer, batch first.

    Raises:
        UnsupportedError: if the shared memory of the machine has no room for them.
    """

    def __init__(self, slots: int, shape: tuple[int, ...]) -> None:
        _check_room(slots * torch.Size(shape).numel())
        self.buffers: Tensor = torch.empty(slots, *shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._free = deque(range(slots))
        self._in_flight: set[int] = set()

    def take(self) -> int | None:
        """Number of a free buffer for a worker to fill, or None while all are in use."""
        if not self._free:
            return None
        slot = self._free.popleft()
        self._in_flight.add(slot)
        return slot

    def lend(self, slot: int, samples: int) -> Tensor:
        """The first ``samples`` of a filled buffer; it is free again when no tensor shares this memory any more."""
        self._in_flight.discard(slot)
        # torch keeps this very array alive for as long as the storage lives, and an array can tell when it dies
        array = self.buffers[slot, :samples].numpy()
        weakref.finalize(array, self._free.append, slot).atexit = False
        return torch.from_numpy(array)

    def reclaim(self) -> None:
        """Free the buffers of tasks that were given up; no worker may be writing any more."""
        self._free.extend(self._in_flight)
        self._in_flight.clear()


def _check_room(needed: int) -> None:
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else needed
    if needed > free:
        raise UnsupportedError(
            f"The batches under way need {needed / 2**20:.0f} MiB of shared memory and {_SHARED_MEMORY} has "
            f"{free / 2**20:.0f} MiB free: take fewer workers, LoaderOptions(prefetch_factor=1) or a smaller batch "
            "size, or give the container more (docker run --shm-size)."
        )
