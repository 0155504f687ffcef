"""Verify a shard set: every sample decodes, and the shards agree with each other and with the index."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.paths import Shards
from lightning_robust.shards.remote import RemoteOptions
from lightning_robust.shards.scan import Fields
from lightning_robust.shards.verify_plan import VerifyPlan, plan_verification
from lightning_robust.shards.verify_records import DIGEST_DTYPE, Digests, Fault, ShardFindings, ShardTask
from lightning_robust.shards.verify_shard import verify_shard

_EXAMPLES = 5

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Duplicate:
    """Two samples whose images are the same bytes: where they were first, and where they came again."""

    first_shard: str
    first_key: str
    shard: str
    key: str


@dataclass(frozen=True)
class VerifyReport:
    """What was found in a shard set.

    Attributes:
        samples: how many could be reached.
        shards: how many there should be; those that are missing count.
        faults: all that is not as it must be.
        duplicates: images whose bytes occurred before in the set; no fault in itself.
        examples: the first few of these.
        histogram: samples per class number.
        classes: names of the classes, if the index has them.
        checksums: shards that were compared with a checksum in the index.
        notes: what could not be compared, and what is odd without being a fault.
    """

    samples: int
    shards: int
    faults: tuple[Fault, ...]
    duplicates: int
    examples: tuple[Duplicate, ...]
    histogram: dict[int, int]
    classes: tuple[str, ...] | None
    checksums: int
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.faults


def verify_shards(
    shards: Shards,
    *,
    image_keys: Sequence[str] = ("jpg", "jpeg", "png", "webp"),
    label_key: str | None = "cls",
    workers: int = 1,
    progress: bool = False,
    remote: RemoteOptions = RemoteOptions(),
) -> VerifyReport:
    """Read all shards of a set from end to end, decode every sample, and compare with the index.

    The shards themselves are read, so that a set is verified also where its index cannot be had; a shard that is
    damaged is read up to the damage. Writes nothing but the cache of shards at URLs. Takes at most some 150
    bytes of memory a sample.

    Args:
        shards: as :func:`open_index` takes them.
        image_keys: extensions of the image member; the first present is taken.
        label_key: extension of the member with the class number; None for a set without labels.
        workers: processes that decode, a shard each at a time; 1 decodes in this one. Like all that starts processes
            by spawning, more than 1 needs the ``if __name__ == "__main__"`` of a script.
        progress: show a bar.
        remote: how shards at URLs are fetched, and where they are kept.

    Returns:
        The report, with all faults.

    Raises:
        ShardError: no shard was found at all, or a worker was killed.
        FetchError: the store of the index refuses, or does not answer.
        UnsupportedError: a URL that is not read, or whose driver is not installed.
        InputError: nothing was given, a shard was named twice, or ``workers`` is below 1.
    """
    if workers < 1:
        raise InputError(f"workers={workers}: expected 1 or more.")
    plan = plan_verification(shards, Fields(tuple(image_keys), label_key), remote)
    findings = list(_all_findings(plan.tasks, workers, progress=progress))
    shared, notes = _shared_keys(plan, findings)
    duplicates, examples = _duplicates(plan, findings)
    return VerifyReport(
        samples=sum(len(found.key_digests) for found in findings),
        shards=len(plan.tasks) + len(plan.missing),
        faults=(*plan.faults, *(fault for found in findings for fault in found.faults), *shared),
        duplicates=duplicates,
        examples=examples,
        histogram=dict(sorted(sum((found.histogram for found in findings), Counter[int]()).items())),
        classes=plan.classes,
        checksums=sum(found.checksum_compared for found in findings),
        notes=(*plan.notes, *notes),
    )


def _all_findings(tasks: list[ShardTask], workers: int, *, progress: bool) -> Iterator[ShardFindings]:
    from tqdm import tqdm

    with ExitStack() as stack:
        results: Iterator[ShardFindings] = map(verify_shard, tasks)
        if min(workers, len(tasks)) > 1:
            # fork would copy the threads' locks of whoever calls this
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context)
            stack.callback(pool.shutdown, cancel_futures=True)
            results = pool.map(verify_shard, tasks)
        try:
            yield from tqdm(results, total=len(tasks), desc="Verifying", unit=" shards", disable=not progress)
        except BrokenProcessPool:
            raise ShardError(
                f"One of the {workers} processes was killed, perhaps for want of memory. Verify with fewer workers "
                "(--workers)."
            ) from None


def _shared_keys(plan: VerifyPlan, findings: list[ShardFindings]) -> tuple[list[Fault], list[str]]:
    """Keys of one shard that another has too: a fault within a folder, a note across folders."""
    firsts, agains = _repeats(np.concatenate([found.key_digests for found in findings]))
    starts = _starts(findings)
    pairs: dict[tuple[int, int], tuple[int, int]] = {}  # two shards -> position of the first key, how many
    shards = (np.searchsorted(starts, positions, side="right") - 1 for positions in (firsts, agains))
    for first, again, position in zip(*(found.tolist() for found in shards), agains.tolist(), strict=True):
        if first != again:
            start, count = pairs.get((first, again), (position, 0))
            pairs[first, again] = start, count + 1
    faults, across = [], 0
    for (first, again), (position, count) in pairs.items():
        if plan.folders[first] != plan.folders[again]:
            across += count
            continue
        more = f" (as do {count} keys of this shard in all)" if count > 1 else ""
        what = f"the key occurs in {plan.tasks[first].name!r} too{more}; keys must be unique in a set."
        faults.append(Fault(plan.tasks[again].name, _key_at(findings, starts, position), what))
    return faults, [f"{across} keys occur in more than one folder of the set."] if across else []


def _duplicates(plan: VerifyPlan, findings: list[ShardFindings]) -> tuple[int, tuple[Duplicate, ...]]:
    digests = np.concatenate([found.image_digests for found in findings])
    there = np.flatnonzero(digests != np.zeros((), DIGEST_DTYPE))
    firsts, agains = (there[positions] for positions in _repeats(digests[there]))
    starts = _starts(findings)

    def at(position: int) -> tuple[str, str]:
        shard = int(np.searchsorted(starts, position, side="right")) - 1
        return plan.tasks[shard].name, _key_at(findings, starts, position)

    shown = zip(firsts[:_EXAMPLES].tolist(), agains[:_EXAMPLES].tolist(), strict=True)
    return len(agains), tuple(Duplicate(*at(first), *at(again)) for first, again in shown)


def _repeats(digests: Digests) -> tuple[Positions, Positions]:
    """Positions of all values that occurred before, in order, each after the position of its first occurrence."""
    order = np.lexsort((digests["low"], digests["high"]))  # stable: equal values stay in order
    ranked = digests[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = ranked[1:] != ranked[:-1]
    first = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    in_order = np.argsort(order[~new])
    return first[~new][in_order], order[~new][in_order]


def _starts(findings: list[ShardFindings]) -> Positions:
    return np.cumsum([0, *(len(found.key_digests) for found in findings)])[:-1]


def _key_at(findings: list[ShardFindings], starts: Positions, position: int) -> str:
    shard = int(np.searchsorted(starts, position, side="right")) - 1
    keys: list[str] = json.loads(findings[shard].keys)
    return keys[position - int(starts[shard])]
