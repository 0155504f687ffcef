"""Records as Markdown tables: accuracies with intervals, and paired differences from a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_robust.errors import InputError
from lightning_robust.evaluation.intervals import Interval, PairedTest, holm
from lightning_robust.evaluation.records import Record


def accuracy_table(models: Mapping[str, Sequence[Record]], *, confidence: float = 0.95) -> str:
    """Return accuracies in percent with their Wilson intervals, one row per model and one column per record.

    Args:
        models: records by the model's name.
        confidence: level of the intervals.

    Returns:
        A Markdown table.
    """
    columns = _columns(models)
    rows = []
    for name, records in models.items():
        found = {record.column: _percent(record.accuracy(confidence=confidence)) for record in records}
        rows.append([name, str(max(len(record.ids) for record in records)), *(found.get(c, "") for c in columns)])
    return _markdown(["model", "n", *columns], rows)


def difference_table(models: Mapping[str, Sequence[Record]], baseline: str, *, confidence: float = 0.95) -> str:
    """Return differences from a baseline in points, each with its paired interval and McNemar's exact test.

    The p-values are adjusted for the number of comparisons in the table (Holm). Where the adjusted test does not
    reject, the cell says "not distinguishable".

    Args:
        models: records by the model's name, all on the same samples.
        baseline: name of the model that the others are compared with.
        confidence: level of intervals and tests.

    Returns:
        A Markdown table with a row for every other model.

    Raises:
        InputError: if the baseline is missing, or the samples of two records differ.
    """
    if baseline not in models:
        raise InputError(f"There is no model {baseline!r} to compare with: choose one of {', '.join(models)}.")
    columns = [column for column in _columns(models) if column in {record.column for record in models[baseline]}]
    reference = {record.column: record for record in models[baseline]}
    tests = {
        (name, record.column): record.compare(reference[record.column], confidence=confidence)
        for name, records in models.items()
        for record in records
        if name != baseline and record.column in reference
    }
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    rows = [
        [name, *(_difference(tests.get((name, column)), adjusted.get((name, column), 1.0)) for column in columns)]
        for name in models
        if name != baseline
    ]
    return _markdown([f"difference from {baseline}", *columns], rows)


def _difference(test: PairedTest | None, p_value: float) -> str:
    if test is None:
        return ""
    difference = test.difference
    text = f"{100 * difference.estimate:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    if p_value >= 1 - test.confidence:
        return f"{text}, not distinguishable"
    return f"{text}, p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _columns(models: Mapping[str, Sequence[Record]]) -> list[str]:
    return list(dict.fromkeys(record.column for records in models.values() for record in records))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
