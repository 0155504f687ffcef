from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.shards.apportion import apportion, assign

WEIGHTS = st.lists(st.integers(1, 100), min_size=1, max_size=5)


def _fractions(weights: list[int]) -> list[Fraction]:
    return [Fraction(weight, sum(weights)) for weight in weights]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=30), weights=WEIGHTS)
def test_entries_and_columns_are_rounded_up_or_down_and_rows_are_kept(sizes, weights):
    fractions = _fractions(weights)
    counts = np.array(apportion(sizes, fractions))
    assert counts.sum(axis=1).tolist() == sizes
    for row, size in zip(counts.tolist(), sizes, strict=True):
        assert all(abs(count - size * fraction) < 1 for count, fraction in zip(row, fractions, strict=True))
    columns = zip(counts.sum(axis=0).tolist(), fractions, strict=True)
    assert all(abs(count - sum(sizes) * fraction) < 1 for count, fraction in columns)


@pytest.mark.parametrize("sizes", [[5] * 100, [1] * 10, [3, 0, 7]])
def test_what_is_rounded_class_by_class_does_not_add_up(sizes):
    counts = apportion(sizes, [Fraction(9, 10), Fraction(1, 10)])
    assert sum(part for _, part in counts) == sum(sizes) // 10


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), weights=WEIGHTS, seed=st.integers(-(2**63), 2**63 - 1)
)
def test_samples_are_drawn_as_many_as_apportioned(labels, weights, seed):
    fractions = _fractions(weights)
    parts = assign(np.array(labels), fractions, seed)
    assert parts.min() >= 0
    assert parts.max() < len(weights)
    classes, sizes = np.unique(labels, return_counts=True)
    found = [[int(((parts == part) & (labels == c)).sum()) for part in range(len(weights))] for c in classes]
    assert found == apportion(sizes.tolist(), fractions)
    np.testing.assert_array_equal(parts, assign(np.array(labels), fractions, seed))


def test_each_sample_is_as_likely_as_another_to_go_to_a_part():
    labels, fractions = np.zeros(10, np.int64), _fractions([3, 1])
    drawn = np.mean([assign(labels, fractions, seed) for seed in range(2000)], axis=0)
    expected = assign(labels, fractions, 0).mean()
    # four standard deviations of a share of 2000 draws
    np.testing.assert_allclose(drawn, expected, atol=4 * (expected * (1 - expected) / 2000) ** 0.5)
