"""Wavelet denoising as a Kornia augmentation."""

from __future__ import annotations

from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from kornia.augmentation import random_generator as rg
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional._wavelet_options import Method, Shrinkage, SigmaScale, check_denoising
from lightning_robust.functional.wavelet_denoising import wavelet_denoise


class RandomWaveletDenoising(IntensityAugmentationBase2D):
    """Denoise each image of a batch by a noise level drawn at random.

    Masks, boxes, keypoints and labels pass through ``AugmentationSequential`` unchanged. It acts in ``eval`` mode too,
    as every Kornia augmentation does, and belongs before a normalization. Denoising in training is ours: the pixel
    deflection paper denoises at inference only.

    Args:
        sigma: range (low, high) of the standard deviation of the noise, or one number for a fixed one.
        wavelet: as for :func:`~lightning_robust.functional.wavelet_denoise`, like the next four.
        method: see there.
        mode: see there.
        sigma_scale: see there.
        levels: see there.
        p: probability for each image.
        same_on_batch: draw once for the whole batch.
        keepdim: return (C, H, W) for (C, H, W).

    Shape:
        (B, C, H, W) or (C, H, W), floating in [0, 1], to (B, C, H, W), in [0, 1].

    Raises:
        InputError: if the range is not ``0 <= low <= high``, or for an unknown option.
    """

    def __init__(
        self,
        sigma: float | tuple[float, float] = (0.0, 0.08),
        *,
        wavelet: str = "db1",
        method: Method = "BayesShrink",
        mode: Shrinkage = "soft",
        sigma_scale: SigmaScale = "channel",
        levels: int | None = None,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, keepdim=keepdim)
        low, high = (sigma, sigma) if isinstance(sigma, int | float) else sigma
        if not 0 <= low <= high:
            raise InputError(f"sigma={sigma} is not a range of noise: give (low, high) with 0 <= low <= high.")
        check_denoising(sigma=low, wavelet=wavelet, method=method, mode=mode, sigma_scale=sigma_scale, levels=levels)
        bounds = torch.tensor([low, high], dtype=torch.float32)
        self._param_generator = rg.PlainUniformGenerator((bounds, "sigma", None, None))
        self.flags = {
            "wavelet": wavelet,
            "method": method,
            "mode": mode,
            "sigma_scale": sigma_scale,
            "levels": levels,
        }

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Denoise by the drawn noise levels; called by Kornia."""
        options = {name: flags[name] for name in ("wavelet", "method", "mode", "sigma_scale", "levels")}
        return wavelet_denoise(input, params["sigma"][:, None], **options).clamp(0, 1)
