from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_robust.defenses import AnisotropicDiffusion
from lightning_robust.errors import InputError


def _reference_step(plane: np.ndarray, kappa: float, step_size: float, conductance: str) -> np.ndarray:
    """Every pixel by itself, from its four neighbors."""
    height, width = plane.shape
    result = plane.copy()
    for row in range(height):
        for column in range(width):
            for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                if 0 <= row + down < height and 0 <= column + right < width:
                    difference = plane[row + down, column + right] - plane[row, column]
                    relative = (difference / kappa) ** 2
                    share = math.exp(-relative) if conductance == "exponential" else 1 / (1 + relative)
                    result[row, column] += step_size * share * difference
    return result


@pytest.mark.parametrize("conductance", ["exponential", "rational"])
def test_it_equals_the_steps_taken_pixel_by_pixel(conductance):
    image = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    defense = AnisotropicDiffusion(iterations=3, kappa=0.3, step_size=0.2, conductance=conductance)
    for found, plane in zip(defense(image)[0], image[0].numpy(), strict=True):
        for _ in range(3):
            plane = _reference_step(plane, 0.3, 0.2, conductance)
        np.testing.assert_allclose(found.numpy(), plane, rtol=0, atol=1e-12)


def test_the_mean_stays_and_the_range_does_not_grow():
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    diffused = AnisotropicDiffusion(iterations=50, step_size=0.25)(image)
    torch.testing.assert_close(diffused.mean((2, 3)), image.mean((2, 3)))
    assert (diffused.amax((2, 3)) <= image.amax((2, 3))).all()
    assert (diffused.amin((2, 3)) >= image.amin((2, 3))).all()


def test_edges_stay_and_noise_goes():
    noise = 0.02 * (torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(2)) - 0.5)
    image = (torch.arange(20) >= 10).float() * 0.8 + 0.1 + noise
    diffused = AnisotropicDiffusion(iterations=40)(image)
    assert diffused[..., :8].std() < 0.3 * image[..., :8].std()
    assert (diffused[..., 10] - diffused[..., 9]).min() > 0.75


def test_an_unstable_step_is_refused():
    with pytest.raises(InputError, match=r"step_size=0\.3 is out of range: give a number from 0 to 0\.25"):
        AnisotropicDiffusion(step_size=0.3)
