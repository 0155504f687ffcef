"""Which shards there are to verify, and what their indexes say of them; goes on where opening a set would raise."""

from __future__ import annotations

import glob
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from lightning_robust.errors import ShardError
from lightning_robust.shards.cache import ShardCache
from lightning_robust.shards.folderindex import FolderIndex, empty_index
from lightning_robust.shards.indexfile import read_folder_index
from lightning_robust.shards.paths import Shards, expand_shards, glob_patterns, natural_key
from lightning_robust.shards.places import LocalFolder, Place, RemoteFolder, listed_checksum
from lightning_robust.shards.remote import FetchError, RemoteOptions
from lightning_robust.shards.scan import Fields
from lightning_robust.shards.urls import base_name, folder_of, is_url, shown
from lightning_robust.shards.verify_records import Fault, Listed, ShardTask

_SHARDS_ONLY = Fields((), None)


@dataclass
class VerifyPlan:
    """The shards to read, in order.

    Attributes:
        tasks: the shards that are there.
        folders: the folder of each task.
        classes: names of the classes, if an index has them.
        missing: shards that were named or are indexed, and are not there.
        faults: what is wrong with the set before a shard was read.
        notes: what cannot be compared.
    """

    tasks: list[ShardTask] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    missing: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def miss(self, name: str, why: str) -> None:
        """Note a missing shard, once."""
        if name not in self.missing:
            self.missing.add(name)
            self.faults.append(Fault(name, None, f"is missing: {why}"))


def plan_verification(shards: Shards, fields: Fields, remote: RemoteOptions) -> VerifyPlan:
    """List the shards of a set, with what their indexes say; missing shards and damaged indexes become faults.

    Raises:
        ShardError: there is no shard at all.
        FetchError: the store of an index refuses, or does not answer.
        UnsupportedError, InputError: as :func:`expand_shards`.
    """
    plan = VerifyPlan()
    by_folder: dict[str, dict[str, str]] = {}
    for path in _expand(shards, remote, plan):
        folder = folder_of(path) if is_url(path) else str(Path(path).parent)
        by_folder.setdefault(folder, {})[base_name(path)] = path
    patterns = glob_patterns(shards)
    named: set[tuple[str, ...]] = set()
    for folder, members in by_folder.items():
        known = _add_folder(plan, folder, members, patterns, fields, ShardCache(remote))
        named |= set() if known.classes is None else {known.classes}
    if len(named) > 1:
        plan.faults.append(Fault(_named(folder), None, "the folders of the set disagree on the names of the classes."))
    plan.classes = named.pop() if len(named) == 1 else None
    return plan


def _expand(shards: Shards, remote: RemoteOptions, plan: VerifyPlan) -> list[str]:
    entries = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    found: list[str] = []
    lost: ShardError | None = None
    for entry in [os.fspath(entry) for entry in entries]:
        try:
            found += expand_shards(entry, remote)
            continue
        except FetchError:
            raise
        except ShardError as error:
            lost = error
        # one that is missing is no reason to leave the others unread
        for name in [entry] if is_url(entry) else _named_by(entry):
            if is_url(name) or not Path(name).is_file():
                plan.miss(_named(name), "no such file was found.")
            else:
                found.append(name)
    if lost is not None and not found:
        raise lost
    return expand_shards(found, remote)


def _named_by(entry: str) -> list[str]:
    """Files that a local name, brace pattern, glob or folder stands for, there or not."""
    import braceexpand

    names: list[str] = []
    for name in braceexpand.braceexpand(entry) if "{" in entry else [entry]:
        matches = [path for pattern in glob_patterns(name) for path in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        names += sorted(matches, key=natural_key) or [str(Path(name).expanduser().absolute())]
    return names


def _add_folder(
    plan: VerifyPlan, folder: str, members: dict[str, str], patterns: list[str], fields: Fields, cache: ShardCache
) -> FolderIndex:
    place: Place | None = None
    try:
        place = RemoteFolder(folder, members, fields, cache) if is_url(folder) else LocalFolder(folder)
    except FetchError:
        raise
    except ShardError as error:
        plan.faults.append(Fault(_named(folder), None, str(error)))
    known = empty_index(folder) if place is None else _read_index(place, folder, fields, plan)
    if place is not None:
        for name in place.lost(known, list(members), patterns):
            plan.miss(place.named(name), f"the index lists it with {known.shards[name].count} samples.")
    for name, path in members.items():
        remote = is_url(path)
        plan.folders.append(folder)
        plan.tasks.append(
            ShardTask(
                name=_named(path),
                path=path,
                fields=fields,
                classes=None if known.classes is None else len(known.classes),
                listed=_listed(known, name),
                cache=cache if remote else None,
                source=place.source(name, known) if place is not None and name in known.shards else None,
            )
        )
    unlisted = sum(name not in known.shards for name in members)
    if unlisted:
        plan.notes.append(
            f"{unlisted} of the {len(members)} shards in {_named(folder)!r} are in no index that can be read: they "
            "were read themselves; their counts and checksums have nothing to be compared with."
        )
    return known


def _read_index(place: Place, folder: str, fields: Fields, plan: VerifyPlan) -> FolderIndex:
    """Read as much of the index as can be read; what cannot is a fault, told once."""
    said: set[str] = set()
    for wanted, members, checked in (
        (fields, None, sys.maxsize),
        (fields, None, 0),
        (fields, (), 0),
        (_SHARDS_ONLY, (), 0),
    ):
        try:
            return read_folder_index(place.home, wanted, members=members, bring=place.bring, checked_bytes=checked)
        except FetchError:
            raise
        except ShardError as error:
            if str(error) not in said:
                said.add(str(error))
                plan.faults.append(Fault(_named(folder), None, str(error)))
    return empty_index(place.home)


def _listed(known: FolderIndex, name: str) -> Listed | None:
    entry = known.shards.get(name)
    if entry is None:
        return None
    rows, members = None, {}
    if entry.row is not None:
        rows = known.rows(name)
        members = {extension: known.member_rows(extension, name) for extension in known.mapped_members}
    return Listed(entry.count, entry.size, listed_checksum(entry), rows, members)


def _named(path: str) -> str:
    return shown(path) if is_url(path) else path
