"""Merge shard sets into one."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lightning_robust.errors import InputError
from lightning_robust.shards.copying import CopyWriter, stored_samples
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.opening import open_index
from lightning_robust.shards.paths import Shards
from lightning_robust.shards.placing import NewShards, check_destination, check_limits, place_shards
from lightning_robust.shards.provenance import check_outside, sharpening_of
from lightning_robust.shards.remote import RemoteOptions
from lightning_robust.shards.scan import Fields
from lightning_robust.shards.urls import base_name, folder_of, is_url
from lightning_robust.shards.writing import EXTENSIONS

_OTHER_CLASSES = (
    "have other class names, so that one number may mean two things. Pack them with the same names (pack --classes)"
)
_OTHER_SHARPENING = "were not sharpened alike. Merge the original sets, and sharpen the result"

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class MergePlan:
    """What a merge will write.

    Attributes:
        indexes: the sets.
        names: what they are called, each unlike the others.
        prefixes: what is put before the keys of each.
        new: name of the merged set, and what its index will say of it.
    """

    indexes: list[ShardIndex]
    names: list[str]
    prefixes: list[str]
    new: NewShards


def merge_shards(
    sets: Sequence[Shards],
    folder: str | os.PathLike[str],
    *,
    name: str = "shard",
    rename_keys: bool = False,
    samples_per_shard: int = 1000,
    max_bytes: int | None = None,
    image_keys: Sequence[str] = EXTENSIONS,
    label_key: str | None = "cls",
    overwrite: bool = False,
    progress: bool = False,
    remote: RemoteOptions = RemoteOptions(),
) -> ShardIndex:
    """Copy the samples of all sets, one set after the other, to ``folder/NAME-000000.tar``, ..., and index them.

    Samples keep all their members, byte for byte; times and owners become those that :func:`pack` writes. Nothing shows
    in the folder until the set is whole.

    Args:
        sets: each as :func:`open_index` takes it. One set alone gets shards of another size.
        folder: made if it does not exist; may hold shards of other names, but none of the sets.
        name: begins the shards' file names.
        rename_keys: put the name of its set and a slash before each key: the name of its folder, with that of its
            shards (``cars-train``) where two sets share it.
        samples_per_shard: most samples in a shard.
        max_bytes: most bytes in a shard of more than one sample; None for no limit.
        image_keys: extensions of the image member.
        label_key: extension of the class number; None for sets without labels.
        overwrite: replace shards of this name.
        progress: show a bar.
        remote: how shards at URLs are fetched.

    Returns:
        The index of the merged set.

    Raises:
        InputError: the sets have other class names, share a key (without ``rename_keys``) or were not sharpened alike,
            or shards of this name exist.
        ShardError: a shard is missing or damaged.
        FetchError: a store refuses, or does not answer.
    """
    check_limits(samples_per_shard=samples_per_shard, max_bytes=max_bytes)
    home = Path(folder).absolute()
    plan = plan_merge(
        sets,
        home,
        name=name,
        rename_keys=rename_keys,
        image_keys=image_keys,
        label_key=label_key,
        overwrite=overwrite,
        progress=progress,
        remote=remote,
    )

    def write(aside: Path, _: tuple[str, ...] | None) -> None:
        with CopyWriter(aside, name, samples_per_shard, max_bytes) as writer:
            for index, called, prefix in zip(plan.indexes, plan.names, plan.prefixes, strict=True):
                for sample in stored_samples(index, description=f"Merging {called}" if progress else None):
                    writer.write(sample, prefix=prefix)

    return open_index(place_shards(home, plan.new, write), image_keys=image_keys, label_key=label_key)


def plan_merge(
    sets: Sequence[Shards],
    folder: str | os.PathLike[str],
    *,
    name: str = "shard",
    rename_keys: bool = False,
    image_keys: Sequence[str] = EXTENSIONS,
    label_key: str | None = "cls",
    overwrite: bool = False,
    progress: bool = False,
    remote: RemoteOptions = RemoteOptions(),
) -> MergePlan:
    """List what :func:`merge_shards` would write, after the same checks; writes nothing."""
    if not sets:
        raise InputError("No sets were named: give the shards of each set to merge.")
    home = Path(folder).absolute()
    indexes = [
        open_index(shards, image_keys=image_keys, label_key=label_key, progress=progress, write=False, remote=remote)
        for shards in sets
    ]
    for index in indexes:
        check_outside(index, home)
    names = _names(indexes)
    _check_named(indexes, names)
    classes = _alike(names, [index.classes for index in indexes], _OTHER_CLASSES)
    sharpened = _alike(names, [sharpening_of(index) for index in indexes], _OTHER_SHARPENING)
    new = NewShards((name,), classes, Fields(tuple(image_keys), label_key), sharpened, overwrite)
    check_destination(home, new)
    _check_apart(indexes, names)
    if not rename_keys:
        _check_keys(indexes, names, progress=progress)
    return MergePlan(indexes, names, [f"{called}/" if rename_keys else "" for called in names], new)


def _check_named(indexes: list[ShardIndex], names: list[str]) -> None:
    """Check that all sets have class names, or none has."""
    without = [name for name, index in zip(names, indexes, strict=True) if index.classes is None]
    if 0 < len(without) < len(names):
        other = next(name for name in names if name not in without)
        raise InputError(
            f"The set {without[0]!r} has no class names, and {other!r} has: whether they number their classes alike "
            "cannot be told. Pack the one without them again, with the names of the other (pack --classes)."
        )


def _alike(names: list[str], values: list[Value], otherwise: str) -> Value:
    for name, value in zip(names, values, strict=True):
        if value != values[0]:
            raise InputError(f"The sets {names[0]!r} and {name!r} {otherwise}.")
    return values[0]


def _check_apart(indexes: list[ShardIndex], names: list[str]) -> None:
    owners: dict[str, str] = {}
    for index, name in zip(indexes, names, strict=True):
        for shard, path in enumerate(index.paths):
            if path in owners:
                raise InputError(
                    f"Shard {index.named(shard)!r} is in the sets {owners[path]!r} and {name!r}. Name each shard once."
                )
            owners[path] = name


def _check_keys(indexes: list[ShardIndex], names: list[str], *, progress: bool) -> None:
    owners: dict[str, str] = {}
    for index, name in zip(indexes, names, strict=True):
        for sample in stored_samples(index, description=f"Reading the keys of {name}" if progress else None):
            owner = owners.setdefault(sample.key, name)
            if owner != name:
                raise InputError(
                    f"The key {sample.key!r} is in the sets {owner!r} and {name!r}; keys must be unique in a set. Put "
                    "the name of its set before each key with rename_keys=True (--rename-keys)."
                )


def _names(indexes: list[ShardIndex]) -> list[str]:
    """Name sets by their folders; where these are alike by their shards too, and where all is alike by a number."""
    paths = [index.paths[0] for index in indexes]
    names = [_clean(_folder_name(path)) for path in paths]
    for finer in ([_clean(_shard_name(path)) for path in paths], [str(number + 1) for number in range(len(paths))]):
        often = Counter(names)
        names = [f"{name}-{more}" if often[name] > 1 else name for name, more in zip(names, finer, strict=True)]
    return names


def _folder_name(path: str) -> str:
    return base_name(folder_of(path).rstrip("/")) if is_url(path) else Path(path).parent.name


def _shard_name(path: str) -> str:
    return re.sub(r"[-_.]?\d*\.tar$", "", base_name(path))


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) or "set"
