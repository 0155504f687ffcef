"""The random streams against arithmetic on Python integers, and their statistics."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_robust import seeds

MASK = (1 << 64) - 1


def _reference_splitmix(state: int) -> int:
    """SplitMix64's finalizer, on unbounded integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@given(st.integers(-(2**63), 2**63 - 1))
def test_first_hash_is_that_of_splitmix64(seed):
    found = seeds.derive(torch.tensor([seed])).item() & MASK
    assert found == _reference_splitmix((seed + 0x9E3779B97F4A7C15) & MASK)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.integers(0, 10**6), st.text(max_size=5))
def test_torch_numpy_and_any_split_agree(values, counter, name):
    whole = seeds.derive(torch.tensor(values), name, counter)
    assert np.array_equal(whole.numpy(), seeds.derive(np.array(values, dtype=np.int64), name, counter))
    apart = [seeds.uniform(torch.tensor([v]), (3,), name) for v in values]
    assert torch.equal(torch.cat(apart), seeds.uniform(torch.tensor(values), (3,), name))


def test_derive_int_is_what_generators_take():
    number = seeds.derive_int(2**64 + 3, "stage", 7)
    assert 0 <= number < 2**63
    assert number == seeds.derive_int(3, "stage", 7)
    torch.Generator().manual_seed(number)


def test_streams_are_uniform_and_independent():
    drawn = seeds.uniform(torch.arange(64), (10_000,))
    counts = torch.histc(drawn, bins=256, min=0, max=1)
    expected = drawn.numel() / 256
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 160 < chi_square < 370  # 255 degrees of freedom, six sigma
    assert drawn.max() < 1
    correlation = torch.corrcoef(drawn)
    assert (correlation - torch.eye(64)).abs().max() < 0.06
    assert (seeds.uniform(torch.arange(64), (10_000,), "other") != drawn).float().mean() > 0.999


def test_normal_and_integers_have_their_moments():
    drawn = seeds.normal(torch.arange(20), (20_000,)).double()
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    assert abs((drawn**4).mean() - 3) < 0.1
    whole = seeds.integers(torch.arange(20), (20_000,), 7)
    assert torch.equal(whole.unique(), torch.arange(7))
    assert abs(whole.float().mean() - 3) < 0.03
