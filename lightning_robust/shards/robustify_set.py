"""Sharpen whole shard sets, or image folders, before they are published.

The method is that of :func:`laplacian_sharpen`; measures, manifest and the refusal of a second pass are ours.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from lightning_robust.errors import InputError, RobustError
from lightning_robust.shards.folderindex import empty_index
from lightning_robust.shards.indexfile import index_lock, write_folder_index
from lightning_robust.shards.paths import Shards
from lightning_robust.shards.provenance import MARK
from lightning_robust.shards.remote import RemoteOptions
from lightning_robust.shards.robustify_image import MEASURES, sharpen_encoded
from lightning_robust.shards.robustify_job import Job, Record, check_destination
from lightning_robust.shards.robustify_options import Sharpening
from lightning_robust.shards.robustify_plan import Plan, plan_source
from lightning_robust.shards.robustify_report import manifest, mark, summarize, versions
from lightning_robust.shards.robustify_units import Unit, written_fields
from lightning_robust.shards.scan import Fields

_DEFAULT = Sharpening()
_FIELDS = Fields(("jpg", "jpeg", "png", "webp"), "cls")


def robustify(
    source: Shards,
    destination: str | os.PathLike[str],
    *,
    sharpening: Sharpening = _DEFAULT,
    image_keys: Sequence[str] = _FIELDS.image_keys,
    label_key: str | None = _FIELDS.label_key,
    workers: int = 1,
    share: tuple[int, int] = (1, 1),
    progress: bool = False,
    remote: RemoteOptions = RemoteOptions(),
) -> dict[str, Any] | None:
    """Sharpen the images of a set and leave everything else as it is.

    Shards keep their names and their samples' keys and order; other members keep their bytes, and all members the time
    and mode in their headers. Of a folder the relative paths stay. Nothing shows in the destination until all is done;
    a job that was killed goes on when it is started again with the same arguments.

    Args:
        source: shards as :func:`open_index` takes them, or a folder of class folders of images.
        destination: a new folder.
        sharpening: how images are sharpened and written.
        image_keys: extensions of the image member; the first present is taken.
        label_key: extension of the class number; None for a set without labels.
        workers: processes, each of which takes whole shards.
        share: (k, n) takes every n-th shard from the k-th, for n machines; :func:`finish_robustify` ends the job then.
        progress: show a bar.
        remote: how shards at URLs are fetched.

    Returns:
        The manifest, which is also written as ``robustify.json``; None after one share of several.

    Raises:
        InputError: the set is sharpened already, the destination holds something else, or an option is not allowed.
        ShardError: a shard or an image is damaged; the finished shards are kept for the next try.
    """
    k, n = share
    if not 1 <= k <= n or workers < 1:
        raise InputError(f"share={k}/{n}, workers={workers}: expected a share from 1/{n} to {n}/{n} and a worker.")
    plan = plan_robustify(
        source, destination, image_keys=image_keys, label_key=label_key, remote=remote, progress=progress
    )
    job = Job(Path(destination).absolute())
    job.begin(job_document(plan, sharpening))
    ours = plan.units[k - 1 :: n]
    _run(job, [unit for unit in ours if not job.is_done(unit.name)], sharpening, workers=workers, progress=progress)
    return finish_robustify(destination) if n == 1 else None


def finish_robustify(destination: str | os.PathLike[str]) -> dict[str, Any]:
    """Put the shards of a job in place and write index and manifest, once all of its shares are done.

    Args:
        destination: as it was given to :func:`robustify`.

    Returns:
        The manifest.

    Raises:
        InputError: there is no such job, or some of its shards are not done.
    """
    home = Path(destination).absolute()
    check_destination(home)
    job = Job(home)
    document = job.document()
    with index_lock(str(job.folder)):
        found = {name: job.record(name) for name in document["units"]}
        records = {name: record for name, record in found.items() if record is not None}
        if lost := [name for name in found if name not in records]:
            raise InputError(
                f"{len(lost)} of {len(found)} parts of {str(home)!r} are not done, the first is {lost[0]!r}. Run the "
                "shares that lack, then finish."
            )
        if document["source"]["kind"] == "shards":
            _write_index(home, document, records)
        for record in records.values():
            for file in record.files:
                job.put_in_place(file.path)
        done = manifest(document, records)
        job.end(done)
    return done


def plan_robustify(
    source: Shards,
    destination: str | os.PathLike[str],
    *,
    image_keys: Sequence[str] = _FIELDS.image_keys,
    label_key: str | None = _FIELDS.label_key,
    remote: RemoteOptions = RemoteOptions(),
    progress: bool = False,
) -> Plan:
    """List what :func:`robustify` would sharpen, after the same checks; writes nothing."""
    home = Path(destination).absolute()
    check_destination(home)
    fields = Fields(tuple(image_keys), label_key)
    return plan_source(source, home, fields=fields, remote=remote, progress=progress)


def preview(plan: Plan, sharpening: Sharpening, *, most: int) -> dict[str, Any]:
    """Sharpen the first images of a set in memory and summarize what that changes."""
    images = itertools.islice(itertools.chain.from_iterable(unit.images() for unit in plan.units), most)
    return summarize([np.array([row for _, row in sharpen_encoded(images, sharpening)], MEASURES)])


def job_document(plan: Plan, sharpening: Sharpening) -> dict[str, Any]:
    """What a job is begun with, and must be gone on with."""
    fields = None if plan.fields is None else dataclasses.asdict(written_fields(plan.fields, sharpening))
    return {
        "source": plan.source_document(),
        "parameters": sharpening.document(),
        "versions": versions(),
        "fields": fields and {**fields, "image_keys": list(fields["image_keys"])},
        "classes": None if plan.classes is None else list(plan.classes),
        "units": [unit.name for unit in plan.units],
    }


def sharpen_unit(unit: Unit, sharpening: Sharpening, job: Job, advance: Callable[[], object] = lambda: None) -> None:
    """Sharpen one unit of a job and record it; ``advance`` is called after each image."""
    job.keep(unit.name, unit.sharpen(sharpening, job.files, advance))


def _run(job: Job, units: list[Unit], sharpening: Sharpening, *, workers: int, progress: bool) -> None:
    from tqdm import tqdm

    total = sum(unit.samples for unit in units)
    with tqdm(total=total, desc="Sharpening", unit=" images", disable=not progress) as bar:
        if workers == 1:
            for unit in units:
                sharpen_unit(unit, sharpening, job, bar.update)
        else:
            for unit in _run_in_processes(job, units, sharpening, workers):
                bar.update(unit.samples)


def _run_in_processes(job: Job, units: list[Unit], sharpening: Sharpening, workers: int) -> Iterator[Unit]:
    # not by fork: OpenCV and torch may have threads already
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        running = {pool.submit(sharpen_unit, unit, sharpening, job): unit for unit in units}
        try:
            for done in as_completed(running):
                done.result()
                yield running[done]
        except BrokenProcessPool:
            raise RobustError(
                "A worker process was killed, perhaps for want of memory. What was finished is kept: run the same "
                "command again, with fewer workers."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _write_index(home: Path, document: dict[str, Any], records: dict[str, Record]) -> None:
    """Write the index that lists all shards, before the first is put in its place."""
    fields = Fields(tuple(document["fields"]["image_keys"]), document["fields"]["label_key"])
    files = {name: record.files[0] for name, record in records.items()}
    index = empty_index(str(home)).with_shards(
        {name: record.table for name, record in records.items() if record.table is not None},
        sizes={name: file.size for name, file in files.items()},
        extra={name: {"sha256": file.sha256} for name, file in files.items()},
        members={name: record.members for name, record in records.items() if record.members is not None},
    )
    classes = None if document["classes"] is None else tuple(document["classes"])
    marked = {MARK: mark(document["parameters"])}
    with index_lock(str(home)):
        write_folder_index(dataclasses.replace(index, classes=classes, extra=marked), fields)
