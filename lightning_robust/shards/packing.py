"""Write samples to WebDataset shards."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import read_folder_index
from lightning_robust.shards.opening import open_index
from lightning_robust.shards.placing import NewShards, check_limits, place_shards
from lightning_robust.shards.scan import Fields
from lightning_robust.shards.writing import EXTENSIONS, Sample, ShardWriter


def pack(
    samples: Iterable[Sample],
    folder: str | os.PathLike[str],
    *,
    samples_per_shard: int = 1000,
    max_bytes: int | None = None,
    name: str = "shard",
    classes: Sequence[str] | None = None,
    shuffle_seed: int | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> ShardIndex:
    """Write samples to shards ``folder/name-000000.tar``, ... and their index.

    The same samples give the same bytes. Shards are written aside in a hidden folder and put in place together at the
    end, after the index that lists them: a pack that was killed shows as missing shards, never as a smaller set.

    Args:
        samples: the samples, in order; a ``Sequence`` is read one by one also when it is shuffled.
        folder: made if it does not exist; may hold the shards of other names.
        samples_per_shard: most samples in a shard.
        max_bytes: most bytes in a shard of more than one sample; None for no limit.
        name: begins the shards' file names.
        classes: names of the classes; targets must then be below their number.
        shuffle_seed: order in which the samples are written; None keeps theirs.
        progress: show a bar.
        overwrite: replace shards of this name.

    Returns:
        The index of the shards written, opened with those of their extra members that are PNG or JSON.

    Raises:
        InputError: no samples, a sample that is not as :class:`Sample` says, shards of this name that exist, or
            shards beside them with other class names.
    """
    home = Path(folder).absolute()
    check_limits(samples_per_shard=samples_per_shard, max_bytes=max_bytes)

    first, ordered = _peeked(_ordered(samples, shuffle_seed))
    label_key = None if first is not None and first.target is None else "cls"
    extensions: set[str] = set()

    def write(aside: Path, named: tuple[str, ...] | None) -> None:
        with ShardWriter(aside, name, samples_per_shard, max_bytes, labeled=label_key is not None) as writer:
            for sample in _with_progress(ordered, samples, progress):
                writer.write(sample, None if named is None else len(named))
                extensions.update(sample.extra)

    fields = Fields(EXTENSIONS, label_key)
    new = NewShards((name,), None if classes is None else tuple(classes), fields, overwrite=overwrite)
    paths = place_shards(home, new, write)
    noted = read_folder_index(str(home), fields).members or {}
    return open_index(paths, label_key=label_key, members=sorted(extensions & noted.keys()))


def _peeked(samples: Iterator[Sample]) -> tuple[Sample | None, Iterator[Sample]]:
    first = next(samples, None)
    return first, samples if first is None else itertools.chain([first], samples)


def _ordered(samples: Iterable[Sample], seed: int | None) -> Iterator[Sample]:
    if seed is None:
        return iter(samples)
    from lightning_robust.seeds import derive

    items = samples if isinstance(samples, Sequence) else list(samples)
    order = np.argsort(derive(np.arange(len(items), dtype=np.int64), "pack", seed), kind="stable")
    return (items[position] for position in order.tolist())


def _with_progress(ordered: Iterator[Sample], samples: Iterable[Sample], progress: bool) -> Iterator[Sample]:
    from tqdm import tqdm

    total = len(samples) if isinstance(samples, Sequence) else None
    return iter(tqdm(ordered, total=total, desc="Packing", unit=" samples", disable=not progress))
