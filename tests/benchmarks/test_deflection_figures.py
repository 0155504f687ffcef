"""The counts behind the figures of pixel deflection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    import deflection_bench

    yield deflection_bench
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_share_of_a_change_in_the_object_s_half(bench):
    height = torch.linspace(1, 0, 6).expand(3, 4, 6)
    change = torch.zeros(3, 4, 6)
    change[0] = 0.5
    change[1, :, :3] = 1
    change[2, 1, 1], change[2, 2, 5] = 1, 3
    assert bench.share_inside(height, change).tolist() == pytest.approx([0.5, 1, 0.25])


def test_shares_of_ranks(bench):
    top = torch.tensor([[7, 1, 2, 3, 4], [7, 1, 2, 3, 4], [5, 6, 7, 8, 9], [1, 2, 3, 4, 5]])
    assert bench.shares(top, torch.tensor([1, 7, 9, 0])) == [25, 25, 0, 0, 25, 25]


def test_maps_are_alike_up_to_level_and_contrast(bench):
    heat = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    other = torch.stack([0.1 + 0.5 * heat[0], 1 - heat[1]])
    torch.testing.assert_close(bench.correlation(heat, other), torch.tensor([1.0, -1.0]))
    assert bench.correlation(heat, torch.ones(2, 5, 5)).tolist() == [0, 0]
