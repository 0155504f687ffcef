"""Find the samples of a shard by walking over its headers."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import ShardError
from lightning_robust.shards.members import MemberPlaces
from lightning_robust.shards.tar import Member, walk_tar

# one row per sample; offsets count from the start of its shard, label is -1 in a set without labels
SAMPLE_DTYPE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i8")])
SampleTable = npt.NDArray[np.void]

_KEY = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_MAX_LABEL_BYTES = 32


@dataclass(frozen=True)
class Fields:
    """Which members of a sample are read: the image under the first extension present, and the class number."""

    image_keys: tuple[str, ...]
    label_key: str | None


def scan_shard(path: str, fields: Fields, *, seen: dict[str, str], others: MemberPlaces | None = None) -> SampleTable:
    """Locate image and label of every sample of a shard.

    Args:
        path: the tar file.
        fields: extensions of image and label.
        seen: keys of the whole set with the shard that holds them; this shard's are added.
        others: notes where the other members of the samples lie.

    Returns:
        One row (offset, size, label) per sample.

    Raises:
        ShardError: the tar is not sound (see :func:`walk_tar`), holds no sample, a key occurs twice in the set or its
            members are not adjacent, a sample lacks image or label, or a label is not a class number.
    """
    rows: list[tuple[int, int, int]] = []
    sample: dict[str, Member] = {}
    current = None

    def finish(key: str) -> None:
        image = image_of(path, key, sample, fields)
        if others is not None:
            others.add(len(rows), sample, image, fields.label_key)
        rows.append((image.offset, image.size, label_of(file.fileno(), path, key, sample, fields)))

    with open_shard(path) as file:
        for member in walk_tar(path):
            parts = split_name(member.name)
            if parts is None:
                continue
            key, extension = parts[0], parts[1].lower()
            if key != current:
                if current is not None:
                    finish(current)
                if key in seen:
                    raise ShardError(
                        f"Shard {path!r}: key {key!r} occurs again (first in {seen[key]!r}). The members of a sample "
                        "must stand together and keys must be unique in the set: pack the samples again."
                    )
                seen[key] = path
                current, sample = key, {}
            if extension in sample:
                raise ShardError(f"Shard {path!r}: sample {key!r} holds two members '.{extension}'.")
            sample[extension] = member
        if current is None:
            raise ShardError(f"Shard {path!r} ({Path(path).stat().st_size} bytes) holds no samples.")
        finish(current)
    return np.array(rows, dtype=SAMPLE_DTYPE)


def open_shard(path: str) -> io.BufferedReader:
    """Open a shard for reading.

    Raises:
        ShardError: it is missing, or may not be read.
    """
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb")
    except FileNotFoundError:
        raise ShardError(f"Shard {path!r} is missing. Check the path, or fetch the shard again.") from None
    except OSError as error:
        raise ShardError(f"Shard {path!r} cannot be opened: {error.strerror}.") from error


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, as they are written; None for a member that belongs to no sample."""
    match = _KEY.match(name)
    return None if match is None else (match[1], match[2])


def image_of(path: str, key: str, sample: Mapping[str, Member], fields: Fields) -> Member:
    """Find the image among the members of a sample, which are given by extension.

    Raises:
        ShardError: there is none, or it is empty.
    """
    image = next((sample[name] for name in fields.image_keys if name in sample), None)
    if image is None:
        raise ShardError(_lacks(path, key, "an image", fields.image_keys, sample))
    if image.size == 0:
        raise ShardError(f"Shard {path!r}: the image {image.name!r} is empty (0 bytes).")
    return image


def label_of(descriptor: int, path: str, key: str, sample: Mapping[str, Member], fields: Fields) -> int:
    """Read the class number of a sample from the open shard; -1 in a set without labels.

    Raises:
        ShardError: there is none, or it is not a class number.
    """
    if fields.label_key is None:
        return -1
    label = sample.get(fields.label_key)
    if label is None:
        lacks = _lacks(path, key, "a label", (fields.label_key,), sample)
        raise ShardError(
            f"{lacks} A set without labels is read with label_key=None (shards: --no-labels; fit: "
            "--data.label_key null)."
        )
    text = os.pread(descriptor, min(label.size, _MAX_LABEL_BYTES), label.offset).strip()
    if label.size > _MAX_LABEL_BYTES or not text.isdigit() or len(text) > 18:
        raise ShardError(
            f"Shard {path!r}: the label {label.name!r} holds {text!r}, not a class number (decimal digits)."
        )
    return int(text)


def _lacks(path: str, key: str, what: str, wanted: Sequence[str], sample: Mapping[str, Member]) -> str:
    extensions = ", ".join(f".{name}" for name in wanted)
    return f"Shard {path!r}: sample {key!r} lacks {what} ({extensions}); it holds {', '.join(sorted(sample))}."
