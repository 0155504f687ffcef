"""What is handed to the check of one shard, and what it hands back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lightning_robust.shards.cache import RemoteShard, ShardCache
from lightning_robust.shards.members import MemberTable
from lightning_robust.shards.scan import Fields, SampleTable

DIGEST_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8")])
Digests = npt.NDArray[np.void]


@dataclass(frozen=True)
class Fault:
    """Something in a shard set that is not as it must be.

    Attributes:
        shard: path or URL of the shard, or of the folder or index where it concerns no single shard.
        key: of the sample; None where the whole shard is concerned.
        what: a sentence on what was found.
    """

    shard: str
    key: str | None
    what: str


@dataclass(frozen=True)
class Listed:
    """What the index says of a shard; None for what it does not say.

    Attributes:
        count: samples.
        size: bytes.
        checksum: name of the hash and its digits.
        rows: where images lie, and labels.
        members: by extension, where further members lie.
    """

    count: int
    size: int | None
    checksum: tuple[str, str] | None
    rows: SampleTable | None
    members: dict[str, MemberTable] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardTask:
    """A shard to verify.

    Attributes:
        name: path or URL for messages.
        path: the file, or the URL if there is a cache.
        fields: what is read of a sample.
        classes: how many classes the set has; None if that is not known.
        listed: what the index says; None for a shard that is not indexed.
        cache: through which a shard at a URL is read.
        source: the shard at a URL as the index knows it.
    """

    name: str
    path: str
    fields: Fields
    classes: int | None
    listed: Listed | None
    cache: ShardCache | None = None
    source: RemoteShard | None = None


@dataclass(frozen=True, eq=False)
class ShardFindings:
    """What was found in a shard, small to send from process to process.

    Attributes:
        faults: in the order of their places in the shard.
        keys: of the samples, as a JSON list.
        key_digests: 128-bit hash of each key.
        image_digests: 128-bit hash of each sample's image bytes; zero for a sample without an image.
        histogram: samples per class number.
        checksum_compared: whether the shard has the size that the index says, and was compared with its checksum.
    """

    faults: list[Fault]
    keys: bytes
    key_digests: Digests
    image_digests: Digests
    histogram: Counter[int]
    checksum_compared: bool
