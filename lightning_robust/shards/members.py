"""Where the members beside image and label lie: masks, boxes, and what else belongs to a sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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


class MemberPlaces:
    """Notes where members lie while the shards of a set are walked over.

    Args:
        wanted: extensions that are noted in any case.
    """

    def __init__(self, wanted: Collection[str] = ()) -> None:
        self._wanted = frozenset(wanted)
        self._noted: set[str] = set()
        self._found: dict[str, list[tuple[int, int, int]]] = {}

    def add(self, row: int, members: Mapping[str, Member], image: Member, label_key: str | None) -> None:
        """Note the members of a sample, given by extension, besides its image and its label."""
        for extension, member in members.items():
            own = member is not image and extension != label_key
            if extension in self._wanted or (own and self._is_noted(extension)):
                self._found.setdefault(extension, []).append((row, member.offset, member.size))

    def take(self, rows: int) -> dict[str, MemberTable]:
        """Tables of the shard that was walked over, by extension; the next shard begins anew."""
        found, self._found = self._found, {}
        tables = {extension: no_members(rows) for extension in found}
        for extension, places in found.items():
            where = np.array(places, dtype=np.int64)
            tables[extension]["offset"][where[:, 0]] = where[:, 1]
            tables[extension]["size"][where[:, 0]] = where[:, 2]
        return tables

    def _is_noted(self, extension: str) -> bool:
        if extension in self._noted:
            return True
        if extension.rpartition(".")[2] not in _NOTED or len(self._noted) == _MOST_NOTED:
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
    return not bool((table["offset"] == _NOT_SOUGHT).any())
