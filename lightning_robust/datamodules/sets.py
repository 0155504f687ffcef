"""The sets of a data module: what may be said of them, and their indexes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeAlias

from lightning_robust.errors import InputError
from lightning_robust.shards import RemoteOptions, ShardIndex, open_index

SetName: TypeAlias = Literal["train", "val", "test", "predict"]

SETS: tuple[SetName, ...] = ("train", "val", "test", "predict")
SETS_OF_STAGE: dict[str, tuple[SetName, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


def check_unindexed(
    unindexed: Collection[SetName],
    epoch_batches: int | None,
    balance: str | None,
    mix: Mapping[str, float] | None,
    streams: int,
    targets: Mapping[str, Any] | None = None,
) -> None:
    """Refuse names that are unknown, and settings that do not go with a set's having an index or none.

    Raises:
        InputError: naming the arguments.
    """
    if not set(unindexed) <= set(SETS):
        raise InputError(f"unindexed={unindexed!r} names sets that are unknown: give some of {SETS}.")
    if unindexed and targets:
        raise InputError(
            f"unindexed={unindexed!r} and targets={dict(targets)}: masks, boxes and other targets are found through an "
            "index. Index these shards, or leave targets out and read class numbers."
        )
    if ("train" in unindexed) != (epoch_batches is not None):
        raise InputError(
            f"unindexed={unindexed!r} and epoch_batches={epoch_batches}: a training set without an index needs "
            "epoch_batches, the length of its epochs on each rank; one with an index has its own length."
        )
    if "train" in unindexed and (balance, mix, streams) != (None, None, 1):
        raise InputError(
            f"balance={balance!r}, mix={mix!r}, streams={streams} and unindexed={unindexed!r}: in which order samples "
            "are drawn, and how often, needs an index to be chosen. Index the training shards, or leave these out."
        )


def check_keep_labels(
    keep_labels: Mapping[SetName, Collection[int]],
    *,
    renumber: bool,
    given: Collection[SetName],
    unindexed: Collection[SetName],
) -> None:
    """Refuse labels of sets that are not there, and new numbers that mean another class in another set.

    Args:
        keep_labels: classes to keep of each set.
        renumber: whether the kept classes get new numbers.
        given: sets that have shards.
        unindexed: sets without an index.

    Raises:
        InputError: naming the sets.
    """
    if lost := set(keep_labels) - set(given):
        raise InputError(f"keep_labels names {sorted(lost)}, of which no shards were given: these are {sorted(given)}.")
    if lost := set(keep_labels) & set(unindexed):
        raise InputError(
            f"keep_labels names {sorted(lost)}, and unindexed too: samples are chosen by label from an index alone. "
            "Index these shards, or pack those of the classes wanted (`lightning-robust shards split`)."
        )
    # targets are not looked at in prediction
    targeted = [name for name in given if name != "predict" or name in keep_labels]
    kept = {tuple(sorted(set(keep_labels.get(name, ())))) for name in targeted}
    if renumber and (not keep_labels or len(kept) > 1):
        raise InputError(
            "renumber_labels=True would give one class different numbers in different sets, since keep_labels is "
            f"{dict(keep_labels)}: keep the same labels of all of {sorted(targeted)}."
        )


def open_set(
    name: SetName,
    shards: str | list[str],
    *,
    label_key: str | None,
    num_classes: int | None,
    keep_labels: Collection[int] | None = None,
    renumber: bool = False,
    members: Collection[str] = (),
    remote: RemoteOptions,
    progress: bool = False,
) -> ShardIndex:
    """Open an index, choose samples of it, and check the labels.

    Args:
        name: of the set, for messages.
        shards: what the user named.
        label_key: extension of the member with the class number; None for a set without labels.
        num_classes: if given, every label must be below it.
        keep_labels: classes to keep; None keeps all.
        renumber: number the kept classes from 0 on.
        members: extensions of the members that targets are read from.
        remote: how shards at URLs are fetched.
        progress: show a bar while scanning.

    Raises:
        InputError: if a label is outside the classes, or no sample has one of the labels to keep.
        ShardError: as :func:`open_index`.
    """
    index = open_index(shards, label_key=label_key, progress=progress, remote=remote, members=members)
    if keep_labels is not None:
        index = index.with_labels(keep_labels, renumber=renumber)
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


def sets_of(stage: str | None, trainer: Any) -> tuple[SetName, ...]:
    """Sets that a stage reads; without a stage, those that what the Trainer is doing reads, or else all."""
    if stage is None and trainer is not None and trainer.state.fn is not None:
        stage = trainer.state.fn
    return SETS if stage is None else SETS_OF_STAGE[str(getattr(stage, "value", stage))]
