"""Pure functions on tensors: where the formula of every method is."""

from lightning_robust.functional.activation_map import robust_activation_map
from lightning_robust.functional.jafr import jacobian_frequency_bias, jacobian_spectrum, spectrum_frequency_bias
from lightning_robust.functional.pixel_deflection import pixel_deflection
from lightning_robust.functional.pooling import blur_pool2d, frequency_lowpass2d, frequency_pool2d, released_pool2d
from lightning_robust.functional.sharpening import (
    alpha_for_psnr,
    laplacian_sharpen,
    texture_intensity,
    undo_sharpening,
)

__all__ = [
    "alpha_for_psnr",
    "blur_pool2d",
    "frequency_lowpass2d",
    "frequency_pool2d",
    "jacobian_frequency_bias",
    "jacobian_spectrum",
    "laplacian_sharpen",
    "pixel_deflection",
    "released_pool2d",
    "robust_activation_map",
    "spectrum_frequency_bias",
    "texture_intensity",
    "undo_sharpening",
]
