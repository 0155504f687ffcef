"""What is known of the shards of one folder, and the tables that say where their samples lie."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lightning_robust.shards.members import (
    MEMBER_DTYPE,
    FoundMembers,
    MemberTable,
    all_sought,
    members_not_sought,
    no_members,
    none_found,
)
from lightning_robust.shards.scan import SAMPLE_DTYPE, SampleTable
from lightning_robust.shards.tablefile import load_rows


@dataclass(frozen=True)
class ShardEntry:
    """What the index says of one shard; ``row`` is its first row in the table, None if its samples are not listed."""

    count: int
    size: int | None
    row: int | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The index of the shards of one folder, by file name.

    ``members`` has, by extension, the places of the members beside image and label, row by row as ``table``, or the
    file that holds them, or None where no sample has such a member. An extension that it lacks was not looked for in
    every shard; it is None as a whole for an index that was made without looking.
    """

    folder: str
    shards: dict[str, ShardEntry]
    table: SampleTable
    table_file: str | None = None
    classes: tuple[str, ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    members: dict[str, MemberTable | str | None] | None = None
    _loaded: dict[str, MemberTable] = field(default_factory=dict, init=False, repr=False)

    def row_of(self, name: str) -> int | None:
        """First row of a shard in the table; None if its samples are not listed."""
        return self.shards[name].row if name in self.shards else None

    def rows(self, name: str) -> SampleTable:
        """Rows of a shard whose samples are listed."""
        row = self.row_of(name)
        if row is None:
            raise KeyError(name)
        return self.table[row : row + self.shards[name].count]

    @property
    def mapped_members(self) -> list[str]:
        """Extensions of the members whose places are at hand without reading a file."""
        return [
            name for name, held in (self.members or {}).items() if not isinstance(held, str) or name in self._loaded
        ]

    def member_table(self, extension: str, *, checked_bytes: int = 0) -> MemberTable:
        """Places of the members with an extension that ``members`` has."""
        held = (self.members or {})[extension]
        if held is None:
            return no_members(len(self.table))
        if not isinstance(held, str):
            return held
        if extension not in self._loaded:
            self._loaded[extension] = load_rows(held, len(self.table), MEMBER_DTYPE, checked_bytes=checked_bytes)
        return self._loaded[extension]

    def member_rows(self, extension: str, name: str) -> MemberTable:
        """Places of the members with an extension in a shard whose samples are listed."""
        row, count = self.row_of(name), self.shards[name].count
        if row is None or extension not in (self.members or {}):
            return members_not_sought(count)
        return self.member_table(extension)[row : row + count]

    def has_sought(self, extensions: Collection[str], names: list[str]) -> bool:
        """Tell whether it is known which samples of these shards have members with these extensions."""
        sought = self.members is not None and self.members.keys() >= set(extensions)
        return sought and all(all_sought(self.member_rows(sort, name)) for sort in extensions for name in names)

    def holds_only(self, names: list[str]) -> bool:
        """Tell whether the table is these shards' rows, in this order, and nothing else."""
        starts = [self.shards[name].row for name in names]
        counts = [self.shards[name].count for name in names]
        expected = np.cumsum([0, *counts])
        return starts == expected[:-1].tolist() and int(expected[-1]) == len(self.table)

    def with_shards(
        self,
        tables: dict[str, SampleTable],
        *,
        sizes: dict[str, int],
        extra: dict[str, dict[str, Any]] | None = None,
        members: dict[str, FoundMembers] | None = None,
    ) -> FolderIndex:
        """Add shards, or replace what was known of them, keeping the others."""
        merged = {name: self.rows(name) for name, entry in self.shards.items() if entry.row is not None} | tables
        starts = dict(zip(merged, np.cumsum([0, *map(len, merged.values())]).tolist(), strict=False))
        shards = {name: entry for name, entry in self.shards.items() if entry.row is None}
        for name, rows in merged.items():
            known = self.shards.get(name, ShardEntry(0, None, None))
            shards[name] = ShardEntry(
                len(rows), sizes.get(name, known.size), starts[name], (extra or {}).get(name, known.extra)
            )
        table = np.concatenate([*merged.values(), np.empty(0, SAMPLE_DTYPE)])
        places = self._merged_members({name: len(rows) for name, rows in merged.items()}, tables.keys(), members)
        return replace(self, shards=dict(sorted(shards.items())), table=table, table_file=None, members=places)

    def without(self, names: set[str]) -> FolderIndex:
        """Forget shards."""
        return replace(self, shards={name: entry for name, entry in self.shards.items() if name not in names})

    def _merged_members(
        self, counts: dict[str, int], replaced: Collection[str], new: dict[str, FoundMembers] | None
    ) -> dict[str, MemberTable | str | None] | None:
        if self.members is None and new is None:
            return None

        def part(extension: str, name: str) -> MemberTable:
            if name not in replaced:
                return self.member_rows(extension, name)
            if new is None:
                return members_not_sought(counts[name])
            return new[name].table(extension, counts[name])

        extensions: set[str] = set().union(*(found.sought for found in (new or {}).values()))
        if counts.keys() - replaced:
            extensions |= set(self.members or {})
        merged: dict[str, MemberTable | str | None] = {}
        for extension in sorted(extensions):
            table = np.concatenate([*(part(extension, name) for name in counts), no_members(0)])
            if none_found(table):
                merged[extension] = None
            elif (table["offset"] >= 0).any():
                merged[extension] = table
        return merged


def empty_index(folder: str) -> FolderIndex:
    """Make the index of a folder of which nothing is known."""
    return FolderIndex(folder, {}, np.empty(0, SAMPLE_DTYPE))
