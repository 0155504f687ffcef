"""What is to be sharpened: the shards of a set, or the folders of an image folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_robust.errors import InputError
from lightning_robust.shards.index import ShardIndex
from lightning_robust.shards.indexfile import INDEX_NAME, read_folder_index
from lightning_robust.shards.opening import open_index
from lightning_robust.shards.paths import Shards
from lightning_robust.shards.places import published_index
from lightning_robust.shards.provenance import MARK, folders_of, sharpening_of
from lightning_robust.shards.remote import RemoteOptions
from lightning_robust.shards.robustify_job import already_sharpened, check_no_result
from lightning_robust.shards.robustify_units import FolderUnit, ShardUnit, Unit
from lightning_robust.shards.scan import Fields
from lightning_robust.shards.urls import base_name, folder_of, is_url, shown

_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True, eq=False)
class Plan:
    """A set to be sharpened.

    Attributes:
        kind: ``shards`` or ``folder``.
        units: its pieces, in order.
        samples: how many images it holds.
        fingerprint: of the source.
        fields: of shards, which members are image and label.
        classes: names of the classes of shards.
    """

    kind: str
    units: Sequence[Unit]
    samples: int
    fingerprint: str
    fields: Fields | None = None
    classes: tuple[str, ...] | None = None

    def source_document(self) -> dict[str, Any]:
        """What identifies the source."""
        return {"kind": self.kind, "samples": self.samples, "fingerprint": self.fingerprint}


def plan_source(
    source: Shards, destination: Path, *, fields: Fields, remote: RemoteOptions, progress: bool = False
) -> Plan:
    """List what there is to sharpen.

    Args:
        source: shards as :func:`open_index` takes them, or a folder without ``*.tar`` for an image folder.
        destination: where the result will go.
        fields: of shards, which members are image and label.
        remote: how shards at URLs are fetched.
        progress: show a bar while shards are scanned.

    Raises:
        InputError: the source is sharpened already, holds no image, or lies in the destination or around it.
        ShardError: a shard is missing or damaged.
    """
    home = Path(source) if isinstance(source, str | os.PathLike) and not is_url(os.fspath(source)) else None
    if home is not None and home.is_dir() and not any(home.glob("*.tar")):
        return _plan_folder(home, destination)
    return _plan_shards(source, fields=fields, remote=remote, progress=progress)


def _plan_shards(source: Shards, *, fields: Fields, remote: RemoteOptions, progress: bool) -> Plan:
    index = open_index(
        source,
        image_keys=fields.image_keys,
        label_key=fields.label_key,
        progress=progress,
        write=False,
        remote=remote,
    )
    folders = folders_of(index)
    for folder in folders:
        if not is_url(folder):
            check_no_result(Path(folder))
    if sharpening_of(index) is not None:
        raise already_sharpened(shown(folders[0]), f"the key {MARK!r} of its {INDEX_NAME}")
    names = [base_name(path) for path in index.paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Two shards have the name {twice!r}; the result has one folder. Sharpen each set by itself.")
    members = {folder: _members_known(folder, index, fields) for folder in folders}
    units = []
    for shard, (name, path) in enumerate(zip(names, index.paths, strict=True)):
        fetched = index.source(shard)
        origin = None if fetched is None or index.remote is None else (index.remote.cache, fetched)
        rows = np.array(index.table[index.starts[shard] : index.starts[shard + 1]])
        known = members[folder_of(path) if is_url(path) else str(Path(path).parent)]
        units.append(ShardUnit(name, index.named(shard), rows, fields, origin, known))
    return Plan("shards", units, len(index), index.fingerprint, fields, index.classes)


def _members_known(folder: str, index: ShardIndex, fields: Fields) -> tuple[str, ...]:
    """Extensions of the members whose places the index of a folder tells."""
    if not is_url(folder):
        return tuple(read_folder_index(folder, fields).members or ())
    published = None if index.remote is None else published_index(folder, index.remote.cache)
    return () if published is None else tuple(published.document.members or ())


def _plan_folder(home: Path, destination: Path) -> Plan:
    check_no_result(home)
    here, there = home.resolve(), destination.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise InputError(
            f"{str(destination)!r} and the source {str(home)!r} lie in one another. Choose another folder."
        )
    units = []
    listed = hashlib.sha256()
    for folder, below, files in os.walk(home):
        below[:] = sorted(name for name in below if not name.startswith("."))
        kept = tuple(sorted(name for name in files if not _is_hidden(name)))
        if not kept:
            continue
        relative = Path(folder).relative_to(home).as_posix()
        units.append(FolderUnit(relative, str(home), kept))
        sizes = [[relative, name, (Path(folder) / name).stat().st_size] for name in kept]
        listed.update(json.dumps(sizes).encode())
    samples = sum(unit.samples for unit in units)
    if not samples:
        raise InputError(f"{str(home)!r} holds neither shards (*.tar) nor JPEG, PNG or WebP images.")
    return Plan("folder", units, samples, listed.hexdigest())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS
