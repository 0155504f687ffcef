from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_robust.defenses import BitDepth
from lightning_robust.errors import InputError


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_it_equals_the_golden_arrays(golden, bits):
    image = torch.from_numpy(golden["rgb_even"]).permute(2, 0, 1)[None]
    expected = torch.from_numpy(golden[f"bits{bits}"]).permute(2, 0, 1)[None]
    torch.testing.assert_close(BitDepth(bits=bits)(image), expected, rtol=0, atol=1e-7)


@given(bits=st.integers(1, 8))
def test_it_keeps_black_and_white_and_has_a_power_of_two_of_levels(bits):
    image = torch.linspace(0, 1, 4001, dtype=torch.float64).view(1, 1, 1, -1)
    reduced = BitDepth(bits=bits)(image)
    assert len(reduced.unique()) == 2**bits
    assert (reduced[..., 0], reduced[..., -1]) == (0, 1)
    assert (reduced - image).abs().max() <= 0.5 / (2**bits - 1) + 1e-12
    assert torch.equal(BitDepth(bits=bits)(reduced), reduced)


def test_bits_out_of_range_are_refused():
    with pytest.raises(InputError, match="bits=9 is out of range"):
        BitDepth(bits=9)
