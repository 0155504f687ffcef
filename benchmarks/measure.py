"""Interleaved timing, peak memory and the table of the speed benchmarks."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

# seconds of one timed run
Contestant = Callable[[], float]
Times = Mapping[str, list[float]]

_SHORTEST = 0.02
_M_MMAP_THRESHOLD = -3


@dataclass(frozen=True)
class Row:
    """A comparison; ``faster`` means the peer's time over ours, ``share`` ours over the peer's."""

    name: str
    ours: str
    peer: str
    kind: Literal["faster", "share"]
    target: float | None = None
    goal: float | None = None


def repeated(run: Callable[[], Any]) -> Contestant:
    """Time ``run`` by as many calls as last at least 20 ms; the first call warms up."""
    run()
    start = time.perf_counter()
    run()
    calls = max(1, round(_SHORTEST / (time.perf_counter() - start)))

    def contestant() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    return contestant


def interleave(contestants: Mapping[str, Contestant], repeats: int) -> dict[str, list[float]]:
    """Run everybody once per round, each round beginning with another one."""
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(repeats):
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(contestants[name]())
    return times


def ratios(row: Row, times: Times) -> list[float]:
    """One ratio per round, so that a load on the machine that comes and goes hits both sides of it."""
    over, under = (row.peer, row.ours) if row.kind == "faster" else (row.ours, row.peer)
    return [a / b for a, b in zip(times[over], times[under], strict=True)]


def peak_memory(run: Callable[[], Any]) -> float | None:
    """MiB by which the resident set grows above its level during the second call; None where Linux does not tell.

    Small blocks too are mapped one by one from here on, so that what earlier work freed cannot hide an allocation.
    Measure times before.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
        run()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return max(_status("VmHWM") - before, 0) / 1024
    except (OSError, AttributeError):
        return None


def table(rows: list[Row], times: Times, peaks: Mapping[str, float | None]) -> list[str]:
    """Render rows as markdown, with columns for peak memory where it was measured."""
    heads = ["what", "peer", "ms", "peer ms", "ratio (quartiles)", "must reach", ""]
    heads += ["peak MiB", "peer peak MiB"] if peaks else []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        milliseconds = (f"{1000 * statistics.median(times[name]):.3g}" for name in (row.ours, row.peer))
        memory = [_mebibytes(peaks.get(name)) for name in (row.ours, row.peer)] if peaks else []
        cells = [row.name, row.peer.split(": ")[-1], *milliseconds, _ratio(ratios(row, times), row.kind)]
        lines.append("| " + " | ".join([*cells, _target(row), verdict(row, times), *memory]) + " |")
    return lines


def geometric_mean(rows: list[Row], times: Times, target: float, name: str) -> str:
    """A table line for the geometric mean of the rows' ratios."""
    value = statistics.geometric_mean([statistics.median(ratios(row, times)) for row in rows])
    met = "meets" if value >= target else "**misses**"
    return f"| {name} | {rows[0].peer.split(': ')[-1]} | | | {value:.2f}x faster | at least {target:g}x | {met} | | |"


def verdict(row: Row, times: Times) -> str:
    """Whether the median ratio reaches the target; unsettled where a quarter of the rounds says otherwise."""
    if row.target is None:
        return "reported"
    values = ratios(row, times)
    met, *quartiles = (
        value >= row.target if row.kind == "faster" else value <= row.target
        for value in (statistics.median(values), *_quartiles(values))
    )
    return ("meets" if met else "**misses**") + ("" if all(one == met for one in quartiles) else ", unsettled")


def machine() -> str:
    """Versions and processor in a sentence."""
    versions = ", ".join(
        f"{name} {getattr(__import__(name), '__version__', '?')}" for name in ("torch", "kornia", "numpy")
    )
    return f"Python {platform.python_version()}, {versions}; {_processor()}, {torch.get_num_threads()} threads."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in lines if line.count(":"))
    names = {key.strip(): value.strip() for key, value in found.items()}
    return f"{names.get('model name', platform.machine())} (model {names.get('model', '?')})"


def _ratio(values: list[float], kind: str) -> str:
    unit = "x faster" if kind == "faster" else ""
    low, high = _quartiles(values)
    return f"{statistics.median(values):.2f}{unit} ({low:.2f} to {high:.2f})"


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def _target(row: Row) -> str:
    goal = "" if row.goal is None else f" (goal {row.goal:g})"
    if row.target is None:
        return goal.strip()
    return (f"at least {row.target:g}x" if row.kind == "faster" else f"at most {row.target:g}") + goal


def _mebibytes(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
