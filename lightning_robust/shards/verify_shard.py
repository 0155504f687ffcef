"""Read one shard from end to end, decode all its samples, and collect every fault."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import ShardError
from lightning_robust.shards.annotations import check_annotation
from lightning_robust.shards.cache import RemoteShard, ShardCache
from lightning_robust.shards.checksums import checksum_of
from lightning_robust.shards.decode import decode_image
from lightning_robust.shards.download import persist
from lightning_robust.shards.members import MemberTable, is_sought, no_members
from lightning_robust.shards.remote import open_object
from lightning_robust.shards.scan import SAMPLE_DTYPE, SampleTable, image_of, label_of, open_shard, split_name
from lightning_robust.shards.tar import Member, walk_tar
from lightning_robust.shards.verify_records import DIGEST_DTYPE, Fault, ShardFindings, ShardTask


def verify_shard(task: ShardTask) -> ShardFindings:
    """Read a shard to its end, or as far as it can be read, and compare it with its index.

    Args:
        task: the shard, and what is known of it.

    Returns:
        The faults, and what is needed to compare the shard with the others of its set.
    """
    check = _ShardCheck(task)
    path = task.path
    with ExitStack() as stack:
        try:
            if task.cache is not None:
                source = task.source or _source_now(task.path, task.cache)
                stack.enter_context(task.cache.pins()).hold([source])
                path = str(task.cache.fetch(source))
            with open_shard(path) as file:
                check.read(path, file.fileno())
            check.compare(path)
            if check.cut and task.cache is not None:
                task.cache.discard(source)
        except OSError as error:
            check.fault(_without_name(error, task.name if task.cache else path))
    return check.findings()


@dataclass
class _ShardCheck:
    task: ShardTask
    cut: bool = False
    compared: bool = False
    faults: list[Fault] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    rows: list[tuple[int, int, int]] = field(default_factory=list)
    members: list[dict[str, Member]] = field(default_factory=list)
    histogram: Counter[int] = field(default_factory=Counter)

    def fault(self, what: str, key: str | None = None) -> None:
        self.faults.append(Fault(self.task.name, key, what))

    def read(self, path: str, descriptor: int) -> None:
        """Check all samples that can be reached."""
        seen: set[str] = set()
        keyed = ((parts, member) for member in self._members(path) if (parts := split_name(member.name)))
        for key, group in itertools.groupby(keyed, key=lambda item: item[0][0]):
            members = self._by_extension(key, [(parts[1].lower(), member) for parts, member in group])
            if self.cut and not self._is_whole(members):  # the fault is told already
                return
            if key in seen:
                self.fault("the key occurs again: the members of a sample must stand together and keys be unique.", key)
            seen.add(key)
            self._sample(path, descriptor, key, members)
        if not seen and not self.cut:
            self.fault("holds no samples.")

    def compare(self, path: str) -> None:
        """Compare what was read with the index."""
        listed = self.task.listed
        if listed is None:
            return
        size = Path(path).stat().st_size
        same_size = listed.size in (None, size)
        if not same_size:
            self.fault(f"has {size} bytes; the index says {listed.size} bytes. It was cut or replaced: fetch it again.")
        if len(self.keys) != listed.count:
            until = " before the damage" if self.cut else ""
            self.fault(f"holds {len(self.keys)} samples{until}; the index says {listed.count}.")
        elif listed.rows is not None:
            self._compare_rows(listed.rows)
            for extension, places in listed.members.items():
                self._compare_members(extension, places)
        if listed.checksum is not None and same_size:
            method, digits = listed.checksum
            self.compared = True
            if (found := checksum_of(Path(path), method)) != digits:
                self.fault(f"has the {method} {found}; the index says {digits}. Its bytes changed: fetch it again.")

    def findings(self) -> ShardFindings:
        keys = [_digest(key.encode("utf-8", "surrogateescape")) for key in self.keys]
        return ShardFindings(
            faults=self.faults,
            keys=json.dumps(self.keys).encode(),
            key_digests=np.frombuffer(b"".join(keys), DIGEST_DTYPE),
            image_digests=np.frombuffer(b"".join(self.images), DIGEST_DTYPE),
            histogram=self.histogram,
            checksum_compared=self.compared,
        )

    def _members(self, path: str) -> Iterator[Member]:
        try:
            yield from walk_tar(path)
        except OSError as error:
            self.cut = True
            self.fault(_without_name(error, path))

    def _by_extension(self, key: str, group: list[tuple[str, Member]]) -> dict[str, Member]:
        members: dict[str, Member] = {}
        for extension, member in group:
            if extension in members:
                self.fault(f"the sample holds two members '.{extension}': two samples may have one key.", key)
            members.setdefault(extension, member)
        return members

    def _is_whole(self, members: dict[str, Member]) -> bool:
        fields = self.task.fields
        return any(name in members for name in fields.image_keys) and (fields.label_key or "") in {"", *members}

    def _sample(self, path: str, descriptor: int, key: str, members: dict[str, Member]) -> None:
        self.keys.append(key)
        label = self._label(path, descriptor, key, members)
        offset, size, digest = self._image(path, descriptor, key, members)
        self._others(descriptor, key, members, offset)
        self.images.append(digest)
        self.rows.append((offset, size, -2 if label is None else label))
        self.members.append(members)

    def _label(self, path: str, descriptor: int, key: str, members: dict[str, Member]) -> int | None:
        try:
            label = label_of(descriptor, path, key, members, self.task.fields)
        except ShardError as error:
            self.fault(_without_name(error, path), key)
            return None
        if self.task.fields.label_key is not None:
            self.histogram[label] += 1
        classes = self.task.classes
        if classes is not None and label >= classes:
            self.fault(f"the label is {label}; the index names {classes} classes, 0 to {classes - 1}.", key)
        return label

    def _image(self, path: str, descriptor: int, key: str, members: dict[str, Member]) -> tuple[int, int, bytes]:
        try:
            image = image_of(path, key, members, self.task.fields)
            data = os.pread(descriptor, image.size, image.offset)
        except OSError as error:
            self.fault(_without_name(error, path), key)
            return 0, 0, bytes(DIGEST_DTYPE.itemsize)
        try:
            decode_image(data)
        except ShardError as error:
            self.fault(str(error), key)
        return image.offset, image.size, _digest(data)

    def _others(self, descriptor: int, key: str, members: dict[str, Member], image_offset: int) -> None:
        for extension, member in members.items():
            if member.offset == image_offset or extension == self.task.fields.label_key:
                continue
            try:
                check_annotation(os.pread(descriptor, member.size, member.offset), extension)
            except ShardError as error:
                self.fault(f"the member '.{extension}' is bad: {error}", key)

    def _compare_rows(self, listed: SampleTable) -> None:
        found = np.array(self.rows, dtype=SAMPLE_DTYPE)
        moved = (found["size"] > 0) & ((found["offset"] != listed["offset"]) | (found["size"] != listed["size"]))
        relabeled = (found["label"] != -2) & (found["label"] != listed["label"])
        self._misplaced(moved, "the index places the image elsewhere")
        self._misplaced(relabeled, "the index has another label")

    def _compare_members(self, extension: str, listed: MemberTable) -> None:
        found = no_members(len(self.members))
        own = np.zeros(len(found), dtype=bool)
        for row, (members, image) in enumerate(zip(self.members, self.rows, strict=True)):
            if (member := members.get(extension)) is not None:
                found[row] = member.offset, member.size
                own[row] = member.offset == image[0] or extension == self.task.fields.label_key
        # image and label are among them only where they were asked for by their extension
        expected = is_sought(listed) & ~(own & (listed["offset"] == 0))
        self._misplaced(expected & (found != listed), f"the index places the member '.{extension}' elsewhere")

    def _misplaced(self, wrong: npt.NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            first = int(np.argmax(wrong))
            more = f" (so for {int(wrong.sum())} samples of this shard)" if wrong.sum() > 1 else ""
            self.fault(f"{what}{more}. Run `lightning-robust shards index --rebuild`.", self.keys[first])


def _source_now(url: str, cache: ShardCache) -> RemoteShard:
    info = persist(open_object(url, cache.options).stat, url, cache.options)
    return RemoteShard(url, info.size, None, info.version)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_DTYPE.itemsize).digest()


def _without_name(error: OSError, path: str) -> str:
    """The message of an error on a shard that is named beside it."""
    if not isinstance(error, ShardError):
        return f"cannot be read: {error.strerror or error}."
    return str(error).removeprefix("Shard ").removeprefix(repr(path)).lstrip(":, ")
