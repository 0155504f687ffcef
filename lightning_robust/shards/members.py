"""Where the members beside image and label lie: masks, boxes, and what else belongs to a sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_robust.shards.tar import Member

# one row per sample, offsets counted from the start of its shard; 0 where the sample has no such member
MEMBER_DTYPE = np.dtype([("offset", "<i8"), ("size", "<i8")])
MemberTable = npt.NDArray[np.void]

_NOT_SOUGHT = -1
# what targets are read from; other members are noted where they are asked for
_NOTED = ("png", "json")
# each kind takes a row for every sample
_MOST_NOTED = 16


@dataclass(frozen=True, eq=False)
class FoundMembers:
    """Where the members of the samples of one shard lie.

    Attributes:
        tables: by extension, of those that are there.
        sought: extensions that were looked for.
        complete: whether every PNG and JSON member was looked for.
    """

    tables: dict[str, MemberTable]
    sought: frozenset[str] = frozenset()
    complete: bool = True

    def table(self, extension: str, rows: int) -> MemberTable:
        """Places of the members with an extension, which may be none, or not known."""
        if extension in self.tables:
            return self.tables[extension]
        known = extension in self.sought or (self.complete and _is_target(extension))
        return no_members(rows) if known else members_not_sought(rows)


class MemberPlaces:
    """Notes where members lie while the shards of a set are walked over.

    Args:
        wanted: extensions that are noted in any case.
    """

    def __init__(self, wanted: Collection[str] = ()) -> None:
        self._wanted = frozenset(wanted)
        self._noted: set[str] = set()
        self._left_out = False
        self._found: dict[str, list[tuple[int, int, int]]] = {}

    def add(self, row: int, members: Mapping[str, Member], image: Member, label_key: str | None) -> None:
        """Note the members of a sample, given by extension, besides its image and its label."""
        for extension, member in members.items():
            own = member is not image and extension != label_key
            if extension in self._wanted or (own and self._is_noted(extension)):
                self._found.setdefault(extension, []).append((row, member.offset, member.size))

    def take(self, rows: int) -> FoundMembers:
        """What was found in the shard that was walked over; the next shard begins anew."""
        found, self._found = self._found, {}
        tables = {extension: no_members(rows) for extension in found}
        for extension, places in found.items():
            where = np.array(places, dtype=np.int64)
            tables[extension]["offset"][where[:, 0]] = where[:, 1]
            tables[extension]["size"][where[:, 0]] = where[:, 2]
        return FoundMembers(tables, self._wanted | self._noted, not self._left_out)

    def _is_noted(self, extension: str) -> bool:
        if extension in self._noted:
            return True
        if not _is_target(extension):
            return False
        if len(self._noted) + sum(map(_is_target, self._wanted)) >= _MOST_NOTED:
            self._left_out = True
            return False
        self._noted.add(extension)
        return True


def no_members(rows: int) -> MemberTable:
    """Table of samples that have no such member."""
    return np.zeros(rows, MEMBER_DTYPE)


def members_not_sought(rows: int) -> MemberTable:
    """Table of samples of which it is not known whether they have such a member."""
    table = no_members(rows)
    table["offset"] = _NOT_SOUGHT
    return table


def all_sought(table: MemberTable) -> bool:
    """Tell whether it is known of every sample whether it has such a member."""
    return bool(is_sought(table).all())


def is_sought(table: MemberTable) -> npt.NDArray[np.bool_]:
    """Tell for each sample whether it is known whether it has such a member."""
    sought: npt.NDArray[np.bool_] = table["offset"] != _NOT_SOUGHT
    return sought


def none_found(table: MemberTable) -> bool:
    """Tell whether it is known that no sample has such a member."""
    return not bool(table["offset"].any())


def _is_target(extension: str) -> bool:
    return extension.rpartition(".")[2] in _NOTED
