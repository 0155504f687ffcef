"""Augmentations: Kornia modules for batches on the device, Albumentations transforms for single images.

Both libraries are slow to import and Albumentations is an extra, so each name is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_robust.augmentations.batch.pixel_deflection import RandomPixelDeflection
    from lightning_robust.augmentations.batch.sharpening import RandomLaplacianSharpening
    from lightning_robust.augmentations.batch.wavelet import RandomWaveletDenoising
    from lightning_robust.augmentations.sample.pixel_deflection import PixelDeflection
    from lightning_robust.augmentations.sample.sharpening import LaplacianSharpening
    from lightning_robust.augmentations.sample.wavelet import WaveletDenoising

__all__ = [
    "LaplacianSharpening",
    "PixelDeflection",
    "RandomLaplacianSharpening",
    "RandomPixelDeflection",
    "RandomWaveletDenoising",
    "WaveletDenoising",
]

_HOMES = {
    "LaplacianSharpening": "sample.sharpening",
    "PixelDeflection": "sample.pixel_deflection",
    "RandomLaplacianSharpening": "batch.sharpening",
    "RandomPixelDeflection": "batch.pixel_deflection",
    "RandomWaveletDenoising": "batch.wavelet",
    "WaveletDenoising": "sample.wavelet",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
