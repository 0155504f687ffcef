from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.defenses import WienerFilter
from lightning_robust.errors import InputError


def test_it_equals_the_golden_array(golden):
    image = torch.from_numpy(golden["rgb_even"]).permute(2, 0, 1)[None]
    expected = torch.from_numpy(golden["wiener3"]).permute(2, 0, 1)[None]
    torch.testing.assert_close(WienerFilter()(image), expected, rtol=0, atol=2e-6)


@settings(max_examples=20)
@given(size=st.sampled_from([3, 5]), height=st.integers(5, 14), width=st.integers(5, 14), seed=st.integers(0, 99))
def test_it_equals_scipy_channel_by_channel(size, height, width, seed):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = [[scipy.signal.wiener(plane.numpy(), size) for plane in one] for one in image]
    np.testing.assert_allclose(WienerFilter(size=size)(image).numpy(), np.clip(expected, 0, 1), rtol=0, atol=1e-12)


def test_an_even_window_is_refused():
    with pytest.raises(InputError, match="size=4 has no middle pixel"):
        WienerFilter(size=4)
