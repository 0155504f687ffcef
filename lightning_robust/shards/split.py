"""Split a shard set into disjoint parts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError
from lightning_robust.shards.apportion import assign
from lightning_robust.shards.copying import CopyWriter, stored_samples
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.opening import open_index
from lightning_robust.shards.paths import Shards
from lightning_robust.shards.placing import NewShards, check_destination, check_limits, place_shards
from lightning_robust.shards.provenance import check_outside, sharpening_of
from lightning_robust.shards.remote import RemoteOptions
from lightning_robust.shards.scan import Fields
from lightning_robust.shards.writing import EXTENSIONS

_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """What a split will write.

    Attributes:
        index: the set.
        parts: number of the part of each sample, int64 (N,).
        new: names of the parts, and what the index will say of them.
    """

    index: ShardIndex
    parts: npt.NDArray[np.int64]
    new: NewShards


def split_shards(
    shards: Shards,
    folder: str | os.PathLike[str],
    fractions: Mapping[str, float | Fraction],
    *,
    seed: int = 0,
    stratify: bool = False,
    samples_per_shard: int = 1000,
    max_bytes: int | None = None,
    image_keys: Sequence[str] = EXTENSIONS,
    label_key: str | None = "cls",
    overwrite: bool = False,
    progress: bool = False,
    remote: RemoteOptions = RemoteOptions(),
) -> dict[str, ShardIndex]:
    """Copy every sample of a set to one of several parts, ``folder/NAME-000000.tar``, ..., and index them.

    The draw depends on the seed and on the order of the samples alone. Samples keep their order, their keys and all
    their members, byte for byte; times and owners become those that :func:`pack` writes. Nothing shows in the folder
    until all parts are whole.

    Args:
        shards: the set, as :func:`open_index` takes it.
        folder: made if it does not exist; may hold shards of other names, but none of the set.
        fractions: share of each part by its name; they sum to 1. A part gets its share of the samples, rounded up or
            down.
        seed: of the draw.
        stratify: a part gets its share of each class too, rounded up or down.
        samples_per_shard: most samples in a shard.
        max_bytes: most bytes in a shard of more than one sample; None for no limit.
        image_keys: extensions of the image member.
        label_key: extension of the class number; None for a set without labels.
        overwrite: replace shards of these names.
        progress: show a bar.
        remote: how shards at URLs are fetched.

    Returns:
        The index of each part.

    Raises:
        InputError: fractions that do not sum to 1, a part that would be empty, shards of these names that exist, or
            ``stratify`` without labels.
        ShardError: a shard is missing or damaged.
        FetchError: a store refuses, or does not answer.
    """
    check_limits(samples_per_shard=samples_per_shard, max_bytes=max_bytes)
    home = Path(folder).absolute()
    plan = plan_split(
        shards,
        home,
        fractions,
        seed=seed,
        stratify=stratify,
        image_keys=image_keys,
        label_key=label_key,
        overwrite=overwrite,
        progress=progress,
        remote=remote,
    )

    def write(aside: Path, _: tuple[str, ...] | None) -> None:
        with ExitStack() as stack:
            writers = [
                stack.enter_context(CopyWriter(aside, name, samples_per_shard, max_bytes)) for name in plan.new.names
            ]
            for sample in stored_samples(plan.index, description="Splitting" if progress else None):
                writers[plan.parts[sample.number]].write(sample)

    written = place_shards(home, plan.new, write)
    return {
        name: open_index(
            [path for path in written if path.name.rpartition("-")[0] == name],
            image_keys=image_keys,
            label_key=label_key,
        )
        for name in plan.new.names
    }


def plan_split(
    shards: Shards,
    folder: str | os.PathLike[str],
    fractions: Mapping[str, float | Fraction],
    *,
    seed: int = 0,
    stratify: bool = False,
    image_keys: Sequence[str] = EXTENSIONS,
    label_key: str | None = "cls",
    overwrite: bool = False,
    progress: bool = False,
    remote: RemoteOptions = RemoteOptions(),
) -> SplitPlan:
    """Draw what :func:`split_shards` would write, after the same checks; writes nothing."""
    shares = _shares(fractions)
    if stratify and label_key is None:
        raise InputError("A set without labels cannot be stratified. Leave stratify (--stratify) out.")
    index = open_index(
        shards, image_keys=image_keys, label_key=label_key, progress=progress, write=False, remote=remote
    )
    home = Path(folder).absolute()
    check_outside(index, home)
    fields = Fields(tuple(image_keys), label_key)
    new = NewShards(tuple(fractions), index.classes, fields, sharpening_of(index), overwrite)
    check_destination(home, new)
    labels = index.labels if stratify and index.labels is not None else np.zeros(len(index), np.int64)
    parts = assign(labels, shares, seed)
    counts = np.bincount(parts, minlength=len(shares))
    if not counts.all():
        name = new.names[int(counts.argmin())]
        raise InputError(
            f"The part {name!r} with the fraction {fractions[name]} of {len(index)} samples would be empty. Give it a "
            "larger fraction."
        )
    return SplitPlan(index, parts, new)


def _shares(fractions: Mapping[str, float | Fraction]) -> list[Fraction]:
    try:
        # by its decimals, so that 0.1 is a tenth
        shares = {name: Fraction(str(value)) for name, value in fractions.items()}
    except ValueError:
        raise InputError(f"The fractions {dict(fractions)} must be numbers.") from None
    total = sum(shares.values(), Fraction())
    if any(share <= 0 for share in shares.values()) or abs(total - 1) > _TOLERANCE:
        given = ", ".join(f"{name}={value}" for name, value in fractions.items()) or "none"
        raise InputError(
            f"The fractions are {given} and sum to {float(total):g}; expected positive ones that sum to 1, such as "
            "train=0.9 val=0.1."
        )
    return [share / total for share in shares.values()]
