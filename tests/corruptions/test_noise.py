from __future__ import annotations

import pytest
import torch

from lightning_robust.corruptions import band_noise, gaussian_noise
from lightning_robust.errors import InputError

GREY = torch.full((8, 3, 33, 48), 0.5, dtype=torch.float64)


def test_gaussian_noise_has_the_wanted_deviation():
    noise = gaussian_noise(GREY, std=0.1) - GREY
    assert noise.mean().abs() < 2e-3
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    # kurtosis of a normal distribution
    assert (noise**4).mean().item() / noise.var().item() ** 2 == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("band", ["low", "middle", "high"])
def test_band_noise_has_the_exact_rmse_in_every_image(band):
    noise = band_noise(GREY, band=band, rmse=0.03) - GREY
    rmse = noise.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rmse, torch.full_like(rmse, 0.03), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("band", "low", "high"), [("low", 0, 1 / 3), ("middle", 1 / 3, 2 / 3), ("high", 2 / 3, 2)])
def test_band_noise_lives_in_its_band_alone(band, low, high):
    noise = band_noise(GREY, band=band, rmse=0.03) - GREY
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    radius = torch.hypot(torch.fft.fftfreq(33)[:, None] * 2, torch.fft.fftfreq(48) * 2)
    inside = (radius >= low) & (radius < high)
    assert power[inside].sum() / power.sum() > 1 - 1e-9
    assert power[0, 0] / power.sum() < 1e-9
    # no frequency of the band is left out
    assert power[inside & (radius > 0)].min() > 1e-3 * power[inside].mean()


def test_bands_and_seeds_give_other_noise():
    first = band_noise(GREY, band="low", rmse=0.03)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, band_noise(GREY, band="low", rmse=0.03, seeds=torch.arange(8)))


def test_band_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="band='ultra' is unknown"):
        band_noise(GREY, band="ultra", rmse=0.1)
    with pytest.raises(InputError, match="2 x 2 pixels have no frequency in the low band"):
        band_noise(torch.zeros(1, 3, 2, 2), band="low", rmse=0.1)
