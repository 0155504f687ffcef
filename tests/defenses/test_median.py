from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.defenses import MedianFilter
from lightning_robust.errors import InputError


@pytest.mark.parametrize("size", [2, 3])
def test_it_equals_the_golden_arrays(golden, size):
    image = torch.from_numpy(golden["rgb_even"]).permute(2, 0, 1)[None]
    expected = torch.from_numpy(golden[f"median{size}"]).permute(2, 0, 1)[None]
    assert torch.equal(MedianFilter(size=size)(image), expected)


@settings(max_examples=30)
@given(
    size=st.sampled_from([2, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    levels=st.sampled_from([2, 5, 255]),
    seed=st.integers(0, 99),
)
def test_it_equals_scipy_at_any_size_and_with_ties(size, height, width, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(levels + 1, (2, 3, height, width), generator=generator) / levels
    expected = scipy.ndimage.median_filter(image.numpy(), size=(1, 1, size, size), mode="reflect")
    np.testing.assert_array_equal(MedianFilter(size=size)(image).numpy(), expected)
    np.testing.assert_array_equal(MedianFilter(size=size)(image.requires_grad_()).detach().numpy(), expected)


def test_other_windows_are_refused():
    with pytest.raises(InputError, match="size=5 is out of range: give a number from 2 to 3"):
        MedianFilter(size=5)
