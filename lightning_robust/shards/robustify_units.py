"""The pieces in which a set is sharpened: one shard, or the images of one folder; each is done or not."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.cache import RemoteShard, ShardCache
from lightning_robust.shards.members import MemberPlaces
from lightning_robust.shards.robustify_image import MEASURES, Measures, sharpen_encoded
from lightning_robust.shards.robustify_job import Outcome, Written, write_synced
from lightning_robust.shards.robustify_options import EXTENSIONS, Sharpening
from lightning_robust.shards.robustify_tar import copy_tar
from lightning_robust.shards.scan import SAMPLE_DTYPE, Fields, SampleTable, scan_shard, split_name
from lightning_robust.shards.tar import Member, walk_tar


class Unit(Protocol):
    """A piece of a set."""

    @property
    def name(self) -> str:
        """What it is called in the job."""

    @property
    def samples(self) -> int:
        """How many images it holds."""

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Name for messages and bytes of each image."""

    def sharpen(self, options: Sharpening, home: Path, advance: Callable[[], object]) -> Outcome:
        """Write the sharpened piece below ``home``; ``advance`` is called after each image."""


@dataclass(frozen=True, eq=False)
class ShardUnit:
    """A shard.

    Attributes:
        name: its file name, which it keeps.
        path: of the shard; of one at a URL, how messages call it.
        table: what the index says of its samples.
        fields: which member is the image.
        remote: where a shard at a URL comes from.
        members: extensions of the members whose places the index of the source tells, as that of the result shall.
    """

    name: str
    path: str
    table: SampleTable
    fields: Fields
    remote: tuple[ShardCache, RemoteShard] | None = None
    members: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """How many images it holds."""
        return len(self.table)

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Name for messages and bytes of each image."""
        path = self._local()
        return self._images(path, walk_tar(path), set(self.table["offset"].tolist()))

    def sharpen(self, options: Sharpening, home: Path, advance: Callable[[], object]) -> Outcome:
        """Write the shard anew, under its own name.

        Raises:
            ShardError: the shard is not sound, or an image cannot be decoded.
            InputError: the new name of an image is that of another member.
        """
        source, wanted = self._local(), set(self.table["offset"].tolist())
        if options.encode != "same":
            self._check_names(source, wanted, options)
        to_copy, to_read = itertools.tee(walk_tar(source))
        sharpened = sharpen_encoded(self._images(source, to_read, wanted), options)
        keys: list[str] = []
        sizes: list[int] = []
        rows: list[Measures] = []

        def new_member(member: Member) -> tuple[str, bytes] | None:
            parts = _image_name(member, wanted)
            if parts is None:
                return None
            key, extension = parts
            result, row = next(sharpened)
            keys.append(key)
            sizes.append(len(result))
            rows.append(row)
            advance()
            return f"{key}.{options.extension(extension)}", result

        aside = home / f".{self.name}.{socket.gethostname()}.{os.getpid()}.part"
        digest = hashlib.sha256()
        try:
            with aside.open("wb") as target:

                def write(block: bytes) -> None:
                    digest.update(block)
                    target.write(block)

                begins = copy_tar(source, to_copy, write, new_member)
                if len(keys) != self.samples:
                    raise ShardError(
                        f"Shard {self.path!r} holds {len(keys)} images where the index says {self.samples}. It was "
                        "replaced: run `lightning-robust shards index --rebuild`."
                    )
                target.flush()
                os.fsync(target.fileno())
            written = Written(self.name, aside.stat().st_size, digest.hexdigest())
            # by the reader, whose headers tell where all members went
            others = MemberPlaces(self.members)
            scan_shard(str(aside), written_fields(self.fields, options), seen={}, others=others)
            aside.replace(home / self.name)
        finally:
            sharpened.close()
            aside.unlink(missing_ok=True)
        table = np.array(list(zip(begins, sizes, self.table["label"].tolist(), strict=True)), SAMPLE_DTYPE)
        return Outcome([written], keys, np.array(rows, MEASURES), table, others.take(len(table)))

    def _images(self, path: str, members: Iterable[Member], wanted: set[int]) -> Iterator[tuple[str, bytes]]:
        with Path(path).open("rb") as file:
            for member in members:
                if parts := _image_name(member, wanted):
                    where = f"sample {parts[0]!r} of shard {self.path!r}"
                    yield where, os.pread(file.fileno(), member.size, member.offset)

    def _check_names(self, path: str, wanted: set[int], options: Sharpening) -> None:
        """Refuse samples with a second image where the first gets another extension: a reader could take that one."""
        renamed: dict[str, str] = {}
        others: dict[str, str] = {}
        for member in walk_tar(path):
            parts = split_name(member.name)
            if parts is None:
                continue
            key, extension = parts
            if member.offset in wanted and options.extension(extension) != extension:
                renamed[key] = options.extension(extension)
            elif member.offset not in wanted and extension.lower() in (*self.fields.image_keys, *EXTENSIONS):
                others[key] = extension
        for key in renamed.keys() & others.keys():
            raise InputError(
                f"Sample {key!r} of shard {self.path!r} holds '.{others[key]}' besides its image, which would become "
                f"'.{renamed[key]}': readers could take one for the other. Keep the format (--encode same)."
            )

    def _local(self) -> str:
        return self.path if self.remote is None else str(self.remote[0].fetch(self.remote[1]))


@dataclass(frozen=True)
class FolderUnit:
    """The files that lie directly in one folder.

    Attributes:
        name: the folder, relative to the source.
        source: of the whole set.
        files: names in the folder, sorted.
    """

    name: str
    source: str
    files: tuple[str, ...]

    @property
    def samples(self) -> int:
        """How many of the files are images."""
        return sum(map(is_image, self.files))

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Name for messages and bytes of each image."""
        for file in filter(is_image, self.files):
            path = Path(self.source) / self.name / file
            yield repr(str(path)), path.read_bytes()

    def sharpen(self, options: Sharpening, home: Path, advance: Callable[[], object]) -> Outcome:
        """Write the images anew and copy other files.

        Raises:
            ShardError: an image cannot be decoded.
            InputError: two files would get one name.
        """
        names = {file: _renamed(file, options) for file in self.files}
        if len(set(names.values())) < len(names):
            twice = next(new for old, new in names.items() if new != old and list(names.values()).count(new) > 1)
            raise InputError(
                f"Two files of {str(Path(self.source) / self.name)!r} would be named {twice!r}. Keep the format "
                "(--encode same)."
            )
        folder = home / self.name
        folder.mkdir(parents=True, exist_ok=True)
        keys: list[str] = []
        rows: list[Measures] = []
        written: list[Written] = []
        with contextlib.closing(sharpen_encoded(self.images(), options)) as sharpened:
            for file, new in names.items():
                if is_image(file):
                    data, row = next(sharpened)
                    keys.append((Path(self.name) / file).as_posix())
                    rows.append(row)
                    advance()
                else:
                    data = (Path(self.source) / self.name / file).read_bytes()
                write_synced(folder / new, data)
                relative = (Path(self.name) / new).as_posix()
                written.append(Written(relative, len(data), hashlib.sha256(data).hexdigest()))
        return Outcome(written, keys, np.array(rows, MEASURES))


def written_fields(fields: Fields, options: Sharpening) -> Fields:
    """Extensions of image and label in the result."""
    renamed = tuple(dict.fromkeys(options.extension(key) for key in fields.image_keys))
    return fields if set(renamed) <= set(fields.image_keys) else replace(fields, image_keys=renamed)


def is_image(file: str) -> bool:
    """Tell an image by its name."""
    return Path(file).suffix.lower().lstrip(".") in EXTENSIONS


def _renamed(file: str, options: Sharpening) -> str:
    if not is_image(file):
        return file
    path = Path(file)
    return f"{path.stem}.{options.extension(path.suffix[1:])}"


def _image_name(member: Member, wanted: set[int]) -> tuple[str, str] | None:
    """Key and extension of a member that is sharpened; None for any other."""
    return split_name(member.name) if member.offset in wanted else None
