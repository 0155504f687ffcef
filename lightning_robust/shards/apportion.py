"""How many samples of each class go to each part, and which."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lightning_robust.seeds import derive

# open entries of a table that is being rounded: the neighbors of each row (0, 1, ...) and each column (-1, -2, ...)
_Graph = list[dict[int, None]]


def assign(labels: npt.NDArray[np.int64], fractions: Sequence[Fraction], seed: int) -> npt.NDArray[np.int64]:
    """Draw a part for every sample.

    Args:
        labels: class of each sample, (N,); all alike if the classes do not matter.
        fractions: share of each part; they sum to 1.
        seed: of the draw.

    Returns:
        Number of the part of each sample, int64 (N,). Every part has its share of each class and of all samples,
        rounded up or down.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    counts = np.array(apportion(sizes.tolist(), fractions), dtype=np.int64)
    drawn = derive(np.arange(len(labels), dtype=np.int64), "split", seed)
    parts = np.empty(len(labels), np.int64)
    parts[np.lexsort((drawn, labels))] = np.repeat(np.tile(np.arange(len(fractions)), len(classes)), counts.ravel())
    return parts


def apportion(sizes: Sequence[int], fractions: Sequence[Fraction]) -> list[list[int]]:
    """Divide groups into parts so that each entry, and each column's sum, is its exact value rounded up or down.

    Rounding each group by itself would not do: of a hundred groups of five, a part of one tenth could get nothing or a
    fifth. Here the table of exact values gets a row that completes its columns to whole sums, and is rounded along
    cycles, which change no sum (Cox, "A constructive procedure for unbiased controlled rounding", 1987, without the
    random choice).

    Args:
        sizes: of the groups.
        fractions: of the parts; they sum to 1.

    Returns:
        For each group, how much of it each part gets.

    Example:
        >>> apportion([5, 5, 5, 5], [Fraction(9, 10), Fraction(1, 10)])
        [[5, 0], [4, 1], [5, 0], [4, 1]]
    """
    columns = [sum(sizes) * fraction for fraction in fractions]
    exact = [[size * fraction for fraction in fractions] for size in sizes]
    exact.append([math.ceil(column) - column for column in columns])
    rounded = [[math.floor(value) for value in row] for row in exact]
    rest = [[value - math.floor(value) for value in row] for row in exact]
    graph: _Graph = [{-1 - c: None for c, value in enumerate(row) if value} for row in rest]
    graph += [{r: None for r, row in enumerate(rest) if row[c]} for c in reversed(range(len(fractions)))]
    for row in range(len(rest)):
        while graph[row]:
            cycle = list(_cycle(graph, row))
            up, down = cycle[::2], cycle[1::2]
            step = min(min(1 - rest[r][c] for r, c in up), min(rest[r][c] for r, c in down))
            for (r, c), sign in itertools.chain(zip(up, itertools.repeat(1)), zip(down, itertools.repeat(-1))):
                rest[r][c] += sign * step
                if rest[r][c] in (0, 1):
                    rounded[r][c] += int(rest[r][c])
                    del graph[r][-1 - c], graph[-1 - c][r]
    return rounded[:-1]


def _cycle(graph: _Graph, row: int) -> Iterator[tuple[int, int]]:
    """Entries (row, column) along a cycle; there is one, as whole sums leave no line with a single open entry."""
    walk, place = [row], {row: 0}
    while True:
        here = walk[-1]
        before = walk[-2] if len(walk) > 1 else None
        following = next(node for node in graph[here] if node != before)
        if following in place:
            loop = [*walk[place[following] :], following]
            return ((a, -1 - b) if a >= 0 else (b, -1 - a) for a, b in itertools.pairwise(loop))
        place[following] = len(walk)
        walk.append(following)
