from __future__ import annotations

import torch

from lightning_robust.corruptions import contrast


def test_scales_around_the_mean_of_each_channel():
    image = torch.tensor([[[[0.2, 0.4]], [[0.5, 0.9]]]])
    expected = torch.tensor([[[[0.25, 0.35]], [[0.6, 0.8]]]])
    torch.testing.assert_close(contrast(image, factor=0.5), expected)


def test_ends_of_the_scale():
    image = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(contrast(image, factor=1), image)
    torch.testing.assert_close(contrast(image, factor=0), image.mean((2, 3), keepdim=True).expand_as(image))
