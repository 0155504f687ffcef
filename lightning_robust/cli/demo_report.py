"""The demo's table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_robust.cli.demo_train import PLAIN, ROBUST, DemoResult
from lightning_robust.evaluation import Interval, Record, holm

_COLORS = {PLAIN: "#7f7f7f", ROBUST: "#1f77b4"}


def demo_table(results: Mapping[str, DemoResult]) -> str:
    """Return a Markdown table with a row per column of the evaluation.

    Accuracies are in percent with 95% Wilson intervals; differences are paired (McNemar's exact test, adjusted by
    Holm's method over the rows).

    Args:
        results: of the two nets.
    """
    plain, robust = results[PLAIN], results[ROBUST]
    tests = [record.compare(other) for record, other in zip(robust.records, plain.records, strict=True)]
    rows = [["", PLAIN, ROBUST, "difference"]]
    for before, after, test, p_value in zip(
        plain.records, robust.records, tests, holm([test.p_value for test in tests]), strict=True
    ):
        verdict = ", not distinguishable" if p_value >= 0.05 else ""
        difference = f"{100 * test.difference.estimate:+.1f} {_range(test.difference, '+')}{verdict}"
        rows.append([before.column, _accuracy(before), _accuracy(after), difference])
    ratio = robust.seconds_per_epoch / plain.seconds_per_epoch
    rows.append(
        ["seconds per epoch", f"{plain.seconds_per_epoch:.1f}", f"{robust.seconds_per_epoch:.1f}", f"{ratio:.1f} times"]
    )
    return _markdown(rows)


def demo_figure(results: Mapping[str, DemoResult], title: str, path: Path) -> None:
    """Draw the accuracies with their intervals.

    Args:
        results: of the two nets.
        title: above the bars.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [record.column for record in results[PLAIN].records]
    for place, (name, result) in enumerate(results.items()):
        intervals = [record.accuracy() for record in result.records]
        heights = [100 * one.estimate for one in intervals]
        below = [100 * (one.estimate - one.low) for one in intervals]
        above = [100 * (one.high - one.estimate) for one in intervals]
        positions = [row + 0.4 * place - 0.2 for row in range(len(names))]
        axes.bar(positions, heights, 0.38, yerr=[below, above], capsize=3, label=name, color=_COLORS[name])
    axes.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    axes.set_ylabel("accuracy (%), 95% intervals")
    axes.set_ylim(0, 105)
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)


def _accuracy(record: Record) -> str:
    interval = record.accuracy()
    return f"{100 * interval.estimate:.1f} {_range(interval)}"


def _range(interval: Interval, sign: str = "") -> str:
    return f"[{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
