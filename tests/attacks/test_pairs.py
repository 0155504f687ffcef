from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_robust.attacks import pairs
from lightning_robust.attacks.pairs import best_pair

INF = float("inf")


def _reference_score(a, b):
    """The best score over the map of all pairs, or None."""
    sum_a, sum_b = a[:, None] + a, b[:, None] + b
    allowed = (sum_a > 0) & (sum_b > 0) & ~torch.eye(len(a), dtype=torch.bool)
    return (sum_a * sum_b)[allowed].max().item() if allowed.any() else None


def check(a, b):
    pair, possible = best_pair(a, b)
    for row in range(len(a)):
        expected = _reference_score(a[row], b[row])
        assert bool(possible[row]) == (expected is not None)
        if expected is not None:
            p, q = pair[row].tolist()
            assert p < q
            found = ((a[row, p] + a[row, q]) * (b[row, p] + b[row, q])).item()
            assert found == pytest.approx(expected, rel=1e-12)


@st.composite
def rows(draw):
    count, size = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    # few different integers make ties, which a strict comparison must survive
    values = st.integers(-4, 4) | st.just(-INF)
    table = [draw(st.lists(values, min_size=2 * size, max_size=2 * size)) for _ in range(count)]
    a, b = torch.tensor(table, dtype=torch.float64).split(size, dim=1)
    taken_out = (a == -INF) | (b == -INF)
    return a.masked_fill(taken_out, -INF), b.masked_fill(taken_out, -INF)


@given(rows())
def test_pair_is_the_best_of_all_pairs_with_ties_and_features_taken_out(ab):
    check(*ab)


@given(st.integers(0, 2**31), st.integers(2, 80), st.floats(-1, 1))
def test_pair_is_the_best_of_all_pairs_of_random_features(seed, size, likeness):
    generator = torch.Generator().manual_seed(seed)
    a, noise = torch.randn(2, 3, size, generator=generator, dtype=torch.float64)
    check(a, likeness * a + (1 - abs(likeness)) * noise)


def test_features_that_all_trade_one_slope_for_the_other_are_searched_block_by_block(monkeypatch):
    monkeypatch.setattr(pairs, "_BLOCK", 1000)
    a = torch.linspace(0.1, 3, 301, dtype=torch.float64)
    check(torch.stack((a, a.flip(0))), torch.stack((1 / a, 2 - a.flip(0))))


def test_tiny_slopes_do_not_underflow():
    a = torch.tensor([[1e-30, 3e-30, 2e-30, -1e-30]])
    pair, possible = best_pair(a, a)
    assert pair.tolist() == [[1, 2]]
    assert possible.item()


def test_runs_at_the_size_of_imagenet():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 150_528, generator=generator)
    # the best two features hidden among the rest
    a[0, 77], b[0, 77], a[0, 140_000], b[0, 140_000] = 9.0, 8.0, 8.0, 9.0
    pair, possible = best_pair(a, b)
    assert pair.tolist() == [[77, 140_000]]
    assert possible.item()
