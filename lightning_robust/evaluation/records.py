"""What an evaluation found: one bit per sample, so that any two results can be paired later."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_robust.errors import InputError
from lightning_robust.evaluation.intervals import Interval, PairedTest, paired_test, wilson

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Record:
    """One column of one model's evaluation.

    Args:
        column: name of the column.
        kind: ``clean``, ``attack`` or ``corruption``.
        ids: sample ids, ascending and each once.
        correct: whether the model is right, one entry per id.
        settings: what was done to the images, as plain data.
        seed: of the evaluation.
    """

    column: str
    kind: str
    ids: tuple[int, ...]
    correct: tuple[bool, ...]
    settings: Mapping[str, Any]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.correct):
            raise InputError(f"Record {self.column!r} has {len(self.ids)} ids and {len(self.correct)} results.")
        if any(a >= b for a, b in zip(self.ids, self.ids[1:], strict=False)):
            raise InputError(f"The ids of record {self.column!r} do not ascend: sort them and count each sample once.")

    def accuracy(self, *, confidence: float = 0.95) -> Interval:
        """Return the share of correct samples with its Wilson interval."""
        return wilson(sum(self.correct), len(self.correct), confidence=confidence)

    def compare(self, other: Record, *, confidence: float = 0.95) -> PairedTest:
        """Return the paired test of this record against another of the same samples.

        Raises:
            InputError: if the samples differ.
        """
        _check_same_samples(self, other)
        return paired_test(self.correct, other.correct, confidence=confidence)

    def to_plain(self) -> dict[str, Any]:
        """Return the record as data that JSON can hold."""
        return {
            "column": self.column,
            "kind": self.kind,
            "seed": self.seed,
            "settings": dict(self.settings),
            "ids": list(self.ids),
            "correct": "".join("1" if bit else "0" for bit in self.correct),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Record:
        """Return the record that :meth:`to_plain` wrote."""
        return cls(
            column=plain["column"],
            kind=plain["kind"],
            ids=tuple(plain["ids"]),
            correct=tuple(bit == "1" for bit in plain["correct"]),
            settings=plain["settings"],
            seed=plain["seed"],
        )


def worst_case(records: Sequence[Record], column: str) -> Record:
    """Combine attacks on the same samples: a sample counts as right where every one of them left it right.

    Args:
        records: at least one.
        column: name of the result.

    Returns:
        A record whose settings list the parts.

    Raises:
        InputError: if there are none, or their samples differ.
    """
    if not records:
        raise InputError(f"The worst case {column!r} of no records: give at least one.")
    for other in records[1:]:
        _check_same_samples(records[0], other)
    correct = tuple(all(bits) for bits in zip(*(record.correct for record in records), strict=True))
    parts = [{"column": record.column, **record.settings} for record in records]
    return Record(column, "attack", records[0].ids, correct, {"worst_of": parts}, records[0].seed)


def save_records(path: str | os.PathLike[str], models: Mapping[str, Sequence[Record]]) -> None:
    """Write the records of several models, with the versions they were made with, as JSON.

    Args:
        path: of the file.
        models: records by the model's name.
    """
    document = {
        "format": _FORMAT,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "models": {name: [record.to_plain() for record in records] for name, records in models.items()},
    }
    # a killed run must not leave half a file in the place of a whole one
    partial = Path(f"{os.fspath(path)}.partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def load_records(path: str | os.PathLike[str]) -> dict[str, list[Record]]:
    """Read what :func:`save_records` wrote.

    Args:
        path: of the file.

    Returns:
        Records by the model's name.

    Raises:
        InputError: if the file is of another kind.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise InputError(f"{path} has format {document['format']}: this version reads format {_FORMAT}.")
        return {name: [Record.from_plain(plain) for plain in records] for name, records in document["models"].items()}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} does not hold evaluation records: give a file written by save_records.") from error


def _check_same_samples(first: Record, second: Record) -> None:
    if first.ids != second.ids:
        shared = len(set(first.ids) & set(second.ids))
        raise InputError(
            f"{first.column!r} has {len(first.ids)} samples and {second.column!r} {len(second.ids)}, of which {shared} "
            "are the same: only results on the same samples can be paired. Evaluate both on the same data."
        )
