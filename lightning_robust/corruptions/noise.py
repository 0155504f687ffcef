"""Additive noise: white, or limited to a band of frequencies."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.corruptions.inputs import check_image, check_number
from lightning_robust.errors import InputError

Band: TypeAlias = Literal["low", "middle", "high"]

_BANDS: tuple[Band, ...] = ("low", "middle", "high")


def gaussian_noise(image: Tensor, *, std: float, seeds: Tensor | None = None) -> Tensor:
    """Add independent Gaussian noise to every value, as ImageNet-C and CIFAR-10-C do.

    Severities 1 to 5 there are 0.08, 0.12, 0.18, 0.26, 0.38 at 224 pixels and 0.04, 0.06, 0.08, 0.09, 0.10 at 32.

    Args:
        image: in [0, 1], shape (B, C, H, W).
        std: standard deviation in image units.
        seeds: int64 random seeds, shape (B,); None takes them from the position in the batch.

    Returns:
        Noisy images in [0, 1], of the image's type.

    Raises:
        InputError: if the image is not in [0, 1] or ``std`` is negative.

    Source:
        Hendrycks and Dietterich, ICLR 2019.
    """
    check_number(std, "std")
    unit = check_image(image)
    noise = streams.normal(streams.per_image(image, seeds), tuple(image.shape[1:]), "gaussian_noise").to(unit.dtype)
    return (unit + std * noise).clamp(0, 1).to(image.dtype)


def band_noise(image: Tensor, *, band: Band, rmse: float, seeds: Tensor | None = None) -> Tensor:
    """Add noise from one third of the frequencies, of the same root mean square in every image and band (ours).

    Frequency is the distance from zero in units of the Nyquist frequency: ``low`` is below 1/3 without zero itself (so
    that no band changes the brightness), ``middle`` up to 2/3, ``high`` the rest with the corners beyond 1. White noise
    is cut to the band in the Fourier domain and scaled, which makes its root mean square ``rmse`` exactly; clipping to
    [0, 1] then takes a little of it.

    Args:
        image: in [0, 1], shape (B, C, H, W).
        band: third of the frequencies.
        rmse: root mean square of each image's noise before clipping, in image units.
        seeds: int64 random seeds, shape (B,); None takes them from the position in the batch.

    Returns:
        Noisy images in [0, 1], of the image's type.

    Raises:
        InputError: if the image is not in [0, 1], an option does not fit, or the image is too small to hold the band.
    """
    check_number(rmse, "rmse")
    unit = check_image(image)
    noise = _band_limited(streams.per_image(image, seeds), tuple(image.shape[1:]), band).to(unit.dtype)
    return (unit + rmse * noise).clamp(0, 1).to(image.dtype)


def _band_limited(seeds: Tensor, shape: tuple[int, ...], band: Band) -> Tensor:
    if band not in _BANDS:
        raise InputError(f"band={band!r} is unknown: choose 'low', 'middle' or 'high'.")
    height, width = shape[-2:]
    vertical = torch.fft.fftfreq(height, d=0.5, device=seeds.device)
    horizontal = torch.fft.rfftfreq(width, d=0.5, device=seeds.device)
    radius = torch.hypot(vertical[:, None], horizontal)
    third = (3 * radius).floor().clamp(max=2)
    mask = (third == _BANDS.index(band)) & (radius > 0)
    if not bool(mask.any()):
        raise InputError(f"Images of {height} x {width} pixels have no frequency in the {band} band: use larger ones.")
    with torch.autocast(seeds.device.type, enabled=False):
        spectrum = torch.fft.rfft2(streams.normal(seeds, shape, "band_noise"))
        noise: Tensor = torch.fft.irfft2(spectrum * mask, s=(height, width))
    return noise / noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
