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
from lightning_robust.functional.thresholds import (
    bayes_shrink_threshold,
    estimate_noise,
    hard_threshold,
    soft_threshold,
    sure_shrink_threshold,
    visu_shrink_threshold,
)
from lightning_robust.functional.wavelet_denoising import wavelet_denoise
from lightning_robust.functional.wavelets import wavedec2, waverec2

__all__ = [
    "alpha_for_psnr",
    "bayes_shrink_threshold",
    "blur_pool2d",
    "estimate_noise",
    "frequency_lowpass2d",
    "frequency_pool2d",
    "hard_threshold",
    "jacobian_frequency_bias",
    "jacobian_spectrum",
    "laplacian_sharpen",
    "pixel_deflection",
    "released_pool2d",
    "robust_activation_map",
    "soft_threshold",
    "spectrum_frequency_bias",
    "sure_shrink_threshold",
    "texture_intensity",
    "undo_sharpening",
    "visu_shrink_threshold",
    "wavedec2",
    "wavelet_denoise",
    "waverec2",
]
