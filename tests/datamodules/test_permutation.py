from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_robust.datamodules.permutation import permuted
from lightning_robust.seeds import derive


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5), key=st.integers(-(2**63), 2**63 - 1))
def test_every_key_and_size_has_its_own_permutation(sizes, key):
    keys = derive(np.full(len(sizes), key), np.arange(len(sizes)))
    places = np.concatenate([np.arange(size) for size in sizes])
    together = permuted(places, np.repeat(sizes, sizes), np.repeat(keys, sizes))
    for found, size, own in zip(np.split(together, np.cumsum(sizes)[:-1]), sizes, keys, strict=True):
        assert sorted(found.tolist()) == list(range(size))
        np.testing.assert_array_equal(found, permuted(np.arange(size), np.full(size, size), np.full(size, own)))


def test_sizes_beyond_memory():
    places = np.array([0, 1, 10**15 - 1])
    found = permuted(places, np.full(3, 10**15), np.full(3, 4))
    assert len(set(found.tolist())) == 3
    assert (found >= 0).all()
    assert (found < 10**15).all()


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_small_permutations_are_equally_frequent(size):
    count = 50 * math.factorial(size)
    keys = np.repeat(derive(np.arange(count)), size)
    found = permuted(np.tile(np.arange(size), count), np.full(count * size, size), keys).reshape(count, size)
    frequency = dict.fromkeys(itertools.permutations(range(size)), 0)
    for order in map(tuple, found.tolist()):
        frequency[order] += 1
    chi_square = sum((seen - 50) ** 2 / 50 for seen in frequency.values())
    freedom = len(frequency) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_pairs_are_spread_evenly():
    size, count = 37, 20_000
    keys = np.repeat(derive(np.arange(count)), 2)
    found = permuted(np.tile([3, 4], count), np.full(2 * count, size), keys).reshape(count, 2)
    table = np.bincount(found[:, 0] * size + found[:, 1], minlength=size * size).reshape(size, size)
    expected = count / (size * (size - 1))
    chi_square = (((table - expected) ** 2)[~np.eye(size, dtype=bool)] / expected).sum()
    freedom = size * (size - 1) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)
