"""Open the index of one set of a data module."""

from __future__ import annotations

from lightning_robust.errors import InputError
from lightning_robust.shards import RemoteOptions, ShardIndex, open_index


def open_set(
    name: str,
    shards: str | list[str],
    *,
    label_key: str | None,
    num_classes: int | None,
    remote: RemoteOptions,
    progress: bool = False,
) -> ShardIndex:
    """Open an index, and check its labels.

    Args:
        name: of the set, for messages.
        shards: what the user named.
        label_key: extension of the member with the class number; None for a set without labels.
        num_classes: if given, every label must be below it.
        remote: how shards at URLs are fetched.
        progress: show a bar while scanning.

    Raises:
        InputError: if a label is outside the classes.
        ShardError: as :func:`open_index`.
    """
    index = open_index(shards, label_key=label_key, progress=progress, remote=remote)
    if num_classes is not None and index.labels is not None:
        outside = (index.labels < 0) | (index.labels >= num_classes)
        if outside.any():
            first = int(outside.argmax())
            raise InputError(
                f"Label {index.labels[first]} of {index.describe(first)} is not one of {num_classes} classes "
                f"(0 to {num_classes - 1}); {int(outside.sum())} of {len(index)} labels are outside. Correct "
                f"num_classes={num_classes}, or the labels of the {name} shards."
            )
    return index
