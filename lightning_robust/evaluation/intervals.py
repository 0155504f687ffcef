"""How sure a measured accuracy, a mean over seeds, or a difference between two models is."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from lightning_robust.errors import InputError


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it, all as fractions.

    Args:
        estimate: of a proportion, a mean or a difference.
        low: lower end of the interval.
        high: upper end.
    """

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Comparison of two models on the same samples.

    Args:
        difference: accuracy of the first minus that of the second, with its interval.
        only_first: samples that only the first gets right.
        only_second: samples that only the second gets right.
        p_value: exact two-sided McNemar test.
        mid_p: its mid-p variant, which is less conservative.
        confidence: level of the interval and, as its complement, of the test.
    """

    difference: Interval
    only_first: int
    only_second: int
    p_value: float
    mid_p: float
    confidence: float

    @property
    def distinguishable(self) -> bool:
        """Whether the exact test rejects that both models are equally accurate."""
        return self.p_value < 1 - self.confidence


def wilson(successes: int, count: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a proportion (Wilson, 1927), which stays in [0, 1] and is right for 0 of n.

    Args:
        successes: samples that succeeded.
        count: samples in all, at least 1.
        confidence: level, between 0 and 1.

    Returns:
        The proportion and its interval.

    Raises:
        InputError: if the counts or the level are impossible.

    Example:
        >>> round(wilson(0, 100).high, 3)
        0.037
    """
    if not 0 <= successes <= count or count == 0:
        raise InputError(f"{successes} successes of {count} samples: give 0 <= successes <= count and count >= 1.")
    z = _normal_quantile(confidence)
    share = successes / count
    scale = 1 + z * z / count
    center = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    # at the ends of the scale the formula is exact and its rounding is not
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == count else center + half
    return Interval(share, low, high)


def paired_test(first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95) -> PairedTest:
    """Compare two models that were judged on the same samples in the same order.

    The test is McNemar's, on the samples where exactly one of them is right. The interval of the difference is that of
    Newcombe (Statistics in Medicine 17, 1998, method 10), from two Wilson intervals and their correlation.

    Args:
        first: whether the first model is right, one entry per sample.
        second: the same for the second model.
        confidence: level, between 0 and 1.

    Returns:
        Difference, counts and p-values.

    Raises:
        InputError: if the lengths differ or there are no samples.
    """
    if len(first) != len(second) or not first:
        raise InputError(f"A paired test of {len(first)} against {len(second)} samples: give the same samples to both.")
    both = sum(a and b for a, b in zip(first, second, strict=True))
    only_first, only_second = sum(first) - both, sum(second) - both
    neither = len(first) - both - only_first - only_second
    p_value, mid_p = _mcnemar(only_first, only_second)
    difference = _paired_difference(both, only_first, only_second, neither, confidence)
    return PairedTest(difference, only_first, only_second, p_value, mid_p, confidence)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Interval of the mean of a few independent runs, by Student's t.

    Args:
        values: one value per run (training seed), at least 2.
        confidence: level, between 0 and 1.

    Returns:
        Mean and interval.

    Raises:
        InputError: if there are fewer than two values.
    """
    if len(values) < 2:
        raise InputError(f"The spread of {len(values)} runs is unknown: give at least two.")
    mean = statistics.fmean(values)
    half = _student_quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several comparisons so that each may be read on its own (Holm, 1979).

    Args:
        p_values: of the comparisons.

    Returns:
        Adjusted p-values in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    count, fewer = only_first + only_second, min(only_first, only_second)
    term = total = 1
    for k in range(fewer):
        term = term * (count - k) // (k + 1)
        total += term
    # integers of any length, divided once: no underflow for ten thousand discordant samples
    point = term / 2**count
    if only_first == only_second:
        return 1.0, 1.0 - point / 2
    p_value = 2 * total / 2**count
    return p_value, p_value - point


def _paired_difference(both: int, only_first: int, only_second: int, neither: int, confidence: float) -> Interval:
    count = both + only_first + only_second + neither
    first = wilson(both + only_first, count, confidence=confidence)
    second = wilson(both + only_second, count, confidence=confidence)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    product = both * neither - only_first * only_second
    # method 10 corrects a positive association for continuity
    product_corrected = max(product - count / 2, 0.0) if product > 0 else float(product)
    phi = product_corrected / math.sqrt(margins) if margins else 0.0
    difference = first.estimate - second.estimate
    below = _combine(first.estimate - first.low, second.high - second.estimate, phi)
    above = _combine(first.high - first.estimate, second.estimate - second.low, phi)
    return Interval(difference, difference - below, difference + above)


def _combine(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} is not between 0 and 1: give 0.95, for example.")
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


def _student_quantile(confidence: float, freedom: int) -> float:
    low, high = _normal_quantile(confidence), 1.0
    while _student_mass(high, freedom) < confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, freedom) < confidence else (low, middle)
    return high


def _student_mass(t: float, freedom: int) -> float:
    """Probability of |T| <= t by the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * ((2 * k) / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series
