"""Fetch the remote shards that the coming batches need, before the workers ask for them."""

from __future__ import annotations

import logging
import queue
import threading
import weakref

from lightning_robust.datamodules.plan import ShardNeeds
from lightning_robust.datamodules.tasks import LoaderPlan
from lightning_robust.errors import ShardError
from lightning_robust.shards.cache import Pins, RemoteSet, RemoteShard, ShardCache
from lightning_robust.shards.download import StoppedError

logger = logging.getLogger(__name__)


class ReadAhead:
    """Keeps the shards that the running batches need in the cache and fetches those of the coming ones.

    Runs in the process of the loader, in threads: a worker that finds a shard missing fetches it itself, or waits for
    whoever does. Of several loaders that share a cache, each shard is fetched by one.

    Args:
        remote: the shards.
        depth: batches that workers make ahead of the one that is delivered.
    """

    def __init__(self, remote: RemoteSet, depth: int) -> None:
        self._remote, self._depth = remote, depth
        self._running: tuple[LoaderPlan, ShardNeeds] | None = None
        self._wanted: list[int] = []
        self._pins = Pins(remote.cache)
        self._queue: queue.SimpleQueue[RemoteShard | None] = queue.SimpleQueue()
        stop = threading.Event()
        threads = remote.cache.options.connections
        for _ in range(threads):
            threading.Thread(target=_fetch, args=(self._queue, remote.cache, stop), daemon=True).start()
        # also when the loader is dropped without a word
        self._end = weakref.finalize(self, _end, self._queue, stop, threads)

    def begin(self, plan: LoaderPlan, epoch: int) -> None:
        """Begin an epoch of these batches."""
        self._running = plan, plan.needs(epoch)

    def reach(self, number: int) -> None:
        """Fetch what batch ``number`` and those after it need; the shards before it may go."""
        if self._running is None:
            raise RuntimeError("begin comes first")
        plan, needs = self._running
        last = min(number + self._depth, plan.batches - 1)
        wanted = needs.needed(*plan.span(number, last))
        if wanted == self._wanted:
            return
        fresh = [shard for shard in wanted if shard not in set(self._wanted)]
        self._wanted = wanted
        self._pins.hold(source for shard in wanted if (source := self._remote.shards[shard]) is not None)
        for shard in fresh:
            source = self._remote.shards[shard]
            if source is not None:
                self._queue.put(source)

    def close(self) -> None:
        """Stop fetching, and let the shards go."""
        self._end()
        self._pins.release()


def _end(wanted: queue.SimpleQueue[RemoteShard | None], stop: threading.Event, threads: int) -> None:
    stop.set()
    for _ in range(threads):
        wanted.put(None)


def _fetch(wanted: queue.SimpleQueue[RemoteShard | None], cache: ShardCache, stop: threading.Event) -> None:
    while (shard := wanted.get()) is not None and not stop.is_set():
        try:
            cache.fetch_ahead(shard, stop)
        except StoppedError:
            return
        except ShardError as error:
            # the worker that needs the shard runs into the same and raises it where the user sees it
            logger.info("Not fetched ahead: %s", error)
