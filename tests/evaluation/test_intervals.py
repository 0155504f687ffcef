from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_robust.errors import InputError
from lightning_robust.evaluation.intervals import holm, mean_interval, paired_test, wilson


@pytest.mark.parametrize(("count", "half"), [(100, 0.096), (1000, 0.031), (5000, 0.0139), (10_000, 0.0098)])
def test_wilson_half_widths_at_one_half(count, half):
    interval = wilson(count // 2, count)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, abs=5e-4 if count < 5000 else 5e-5)


def test_wilson_of_none_and_of_all():
    assert (wilson(0, 100).low, round(wilson(0, 100).high, 3)) == (0.0, 0.037)
    assert (round(wilson(100, 100).low, 3), wilson(100, 100).high) == (0.963, 1.0)


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(counts):
    successes, count = counts
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    interval = wilson(successes, count)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def bits(both, only_first, only_second, neither):
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


def test_mcnemar_of_30_against_15():
    test = paired_test(*bits(500, 30, 15, 455))
    assert (test.only_first, test.only_second) == (30, 15)
    assert round(test.p_value, 3) == 0.036
    assert round(test.mid_p, 3) == 0.026
    assert test.difference.estimate == pytest.approx(0.015)
    assert test.distinguishable
    assert not paired_test(*bits(500, 30, 15, 455), confidence=0.99).distinguishable


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_test(first, second):
    test = paired_test(*bits(3, first, second, 2))
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert test.p_value == pytest.approx(expected, rel=1e-9)
    assert 0 < test.mid_p <= test.p_value


def test_mcnemar_of_many_discordant_samples_is_a_number():
    test = paired_test(*bits(0, 6000, 4000, 0))
    assert 0 <= test.p_value < 1e-80
    assert math.isfinite(test.mid_p)


def test_paired_interval_is_narrower_than_an_unpaired_one():
    # 6 % discordant samples: half-width 1.5 points at n = 1000
    difference = paired_test(*bits(870, 30, 30, 70)).difference
    assert (difference.high - difference.low) / 2 == pytest.approx(0.015, abs=1e-3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_paired_interval_holds_the_estimate_and_turns_with_the_order(pairs):
    first, second = zip(*pairs, strict=True)
    one, other = paired_test(first, second).difference, paired_test(second, first).difference
    assert -1 - 1e-9 <= one.low <= one.estimate <= one.high <= 1 + 1e-9
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)


def test_paired_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    shares, count, covered = np.array([0.60, 0.12, 0.06, 0.22]), 150, 0
    tables = generator.multinomial(count, shares, size=1000)
    for table in tables:
        difference = paired_test(*bits(*table.tolist())).difference
        covered += difference.low <= 0.06 <= difference.high
    assert 0.93 <= covered / 1000 <= 0.975


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
def test_mean_interval_equals_scipy(values):
    interval = mean_interval(values)
    error = stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error
    assert interval.estimate == pytest.approx(np.mean(values), abs=1e-9)
    assert interval.high - interval.estimate == pytest.approx(half, rel=1e-6, abs=1e-9)
    assert interval.estimate - interval.low == pytest.approx(half, rel=1e-6, abs=1e-9)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), "3 successes of 2 samples"),
        (lambda: wilson(0, 0), "0 successes of 0 samples"),
        (lambda: wilson(1, 2, confidence=95), "confidence=95 is not between 0 and 1"),
        (lambda: paired_test([True], [True, False]), "1 against 2 samples"),
        (lambda: mean_interval([0.5]), "at least two"),
    ],
)
def test_impossible_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
