"""Common corruptions, batched and seeded: image in [0, 1] to image in [0, 1]."""

from lightning_robust.corruptions.blur import gaussian_blur
from lightning_robust.corruptions.contrast import contrast
from lightning_robust.corruptions.noise import band_noise, gaussian_noise

__all__ = [
    "band_noise",
    "contrast",
    "gaussian_blur",
    "gaussian_noise",
]
