from __future__ import annotations

import pytest
import torch

from lightning_robust.corruptions import gaussian_blur

scipy_ndimage = pytest.importorskip("scipy.ndimage")


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1.0, 3.0])
def test_equals_scipy(sigma):
    image = torch.rand(2, 3, 15, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = scipy_ndimage.gaussian_filter(image.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4)
    torch.testing.assert_close(gaussian_blur(image, sigma=sigma), torch.from_numpy(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_width_below_a_pixel_leaves_the_image(sigma):
    image = torch.rand(1, 3, 4, 4)
    result = gaussian_blur(image, sigma=sigma)
    assert torch.equal(result, image)
    assert result.data_ptr() != image.data_ptr()
