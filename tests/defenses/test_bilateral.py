from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.filters import bilateral_blur

from lightning_robust.defenses import BilateralFilter
from lightning_robust.errors import InputError


@pytest.mark.parametrize(
    ("sigma_color", "name"),
    [(None, "bilateral_exact_win7_ss1_scstd_div3"), (0.1, "bilateral_exact_win7_ss1_sc0.1_div1")],
)
def test_it_equals_the_golden_arrays(golden, sigma_color, name):
    image = torch.from_numpy(golden["rgb_even"]).permute(2, 0, 1)[None]
    expected = torch.from_numpy(golden[name]).permute(2, 0, 1)[None]
    torch.testing.assert_close(BilateralFilter(sigma_color=sigma_color)(image), expected, rtol=0, atol=1e-6)


@settings(max_examples=10)
@given(
    window=st.sampled_from([1, 3, 7]),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    scale=st.floats(0.3, 3),
)
def test_it_equals_kornia(window, channels, height, width, scale):
    generator = torch.Generator().manual_seed(window)
    image = torch.rand(2, channels, height, width, generator=generator, dtype=torch.float64)
    expected = bilateral_blur(image, window, 0.2, (scale, scale), "constant", "l2")
    found = BilateralFilter(window=window, sigma_space=scale, sigma_color=0.2)(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_color_scale_is_each_images_own():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 12, 12, generator=generator, dtype=torch.float64)
    image[1] = 0.5 + 0.1 * image[1]
    scale = 3 * image.flatten(1).std(1, correction=0)
    expected = bilateral_blur(image, 7, scale, (1.0, 1.0), "constant", "l2")
    torch.testing.assert_close(BilateralFilter()(image), expected, rtol=0, atol=1e-10)


def test_an_even_window_is_refused():
    with pytest.raises(InputError, match="window=4 has no middle pixel"):
        BilateralFilter(window=4)
