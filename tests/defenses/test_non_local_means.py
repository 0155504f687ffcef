from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from lightning_robust.defenses import NonLocalMeans
from lightning_robust.errors import InputError


@pytest.mark.parametrize(("search", "patch", "strength"), [(11, 3, 2), (13, 3, 4)])
def test_released_equals_the_golden_bytes(golden, search, patch, strength):
    image = torch.from_numpy(golden["u8"]).permute(2, 0, 1)[None].float() / 255
    filtered = NonLocalMeans(search=search, patch=patch, strength=strength, variant="released")(image)
    found = (filtered * 255).round()[0].permute(1, 2, 0).numpy().astype(int)
    # OpenCV's builds differ by a level
    assert np.abs(found - golden[f"cv2_nlm_{search}_{patch}_{strength}"]).max() <= 1


def test_corrected_filters_in_the_order_that_opencv_expects(golden):
    pixels = golden["u8"]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
    expected = cv2.fastNlMeansDenoisingColored(pixels[..., ::-1].copy(), None, 4.0, 4.0, 3, 13)[..., ::-1]
    found = (NonLocalMeans()(image) * 255).round()[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)


def test_gray_images_are_filtered_as_gray():
    pixels = np.random.default_rng(0).integers(90, 110, (20, 23), dtype=np.uint8)
    image = torch.from_numpy(pixels)[None, None].double() / 255
    expected = cv2.fastNlMeansDenoising(pixels, None, 4.0, 3, 13)
    np.testing.assert_array_equal((NonLocalMeans()(image) * 255).round()[0, 0].numpy(), expected)


def test_red_and_blue_keep_their_places():
    image = torch.zeros(1, 3, 12, 12)
    image[:, 0] = 1.0
    assert (NonLocalMeans()(image)[0].mean((1, 2)) - torch.tensor([1.0, 0.0, 0.0])).abs().max() < 0.02


@pytest.mark.parametrize(("options", "name"), [({"search": 10}, "search=10"), ({"patch": 2}, "patch=2")])
def test_even_windows_are_refused(options, name):
    with pytest.raises(InputError, match=f"{name} has no middle pixel"):
        NonLocalMeans(**options)


def test_other_channels_are_refused():
    with pytest.raises(InputError, match="2 channels: NonLocalMeans"):
        NonLocalMeans()(torch.rand(1, 2, 8, 8))
