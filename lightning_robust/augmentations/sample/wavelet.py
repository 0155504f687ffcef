"""Wavelet denoising as an Albumentations transform."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from albumentations.core.pydantic import check_range_bounds, nondecreasing
from albumentations.core.transforms_interface import BaseTransformInitSchema, ImageOnlyTransform
from pydantic import AfterValidator, BeforeValidator, Field

from lightning_robust.functional._wavelet_banks import filter_bank
from lightning_robust.functional.wavelet_denoising import wavelet_denoise


def _as_range(sigma: Any) -> Any:
    return (sigma, sigma) if isinstance(sigma, int | float) else sigma


def _known_wavelet(wavelet: str) -> str:
    filter_bank(wavelet)
    return wavelet


class WaveletDenoising(ImageOnlyTransform):  # type: ignore[misc]
    """Denoise an image by a noise level drawn at random; ``RandomWaveletDenoising`` for single images.

    Needs the extra ``lightning-robust[albumentations]``. Targets: image, images, volume, volumes.

    Args:
        sigma: range (low, high) of the standard deviation of the noise on [0, 1] images, or one number.
        wavelet: as for :func:`~lightning_robust.functional.wavelet_denoise`, like the next four.
        method: see there.
        mode: see there.
        sigma_scale: see there.
        levels: see there.
        p: probability for each image.

    Shape:
        (H, W, C) or (H, W), uint8 or float32 in [0, 1]; unchanged. uint8 results are rounded.

    Raises:
        ValueError: for a range that is not ``0 <= low <= high``, or an unknown option.
    """

    class InitSchema(BaseTransformInitSchema):  # type: ignore[misc]
        """What the constructor accepts; read by Albumentations."""

        sigma: Annotated[
            tuple[float, float],
            BeforeValidator(_as_range),
            AfterValidator(check_range_bounds(0, None)),
            AfterValidator(nondecreasing),
        ]
        wavelet: Annotated[str, AfterValidator(_known_wavelet)]
        method: Literal["BayesShrink", "VisuShrink", "SUREShrink"]
        mode: Literal["soft", "hard"]
        sigma_scale: Literal["channel", "rgb"]
        levels: Annotated[int, Field(ge=1)] | None

    def __init__(
        self,
        sigma: float | tuple[float, float] = (0.0, 0.08),
        wavelet: str = "db1",
        method: Literal["BayesShrink", "VisuShrink", "SUREShrink"] = "BayesShrink",
        mode: Literal["soft", "hard"] = "soft",
        sigma_scale: Literal["channel", "rgb"] = "channel",
        levels: int | None = None,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.sigma = _as_range(sigma)
        self.wavelet = wavelet
        self.method = method
        self.mode = mode
        self.sigma_scale = sigma_scale
        self.levels = levels

    def get_params(self) -> dict[str, float]:
        """Draw a noise level; called by Albumentations."""
        return {"sigma": self.py_random.uniform(*self.sigma)}

    def apply(self, img: np.ndarray[Any, Any], sigma: float, **params: Any) -> np.ndarray[Any, Any]:  # noqa: ARG002
        """Denoise one image; called by Albumentations."""
        image = torch.from_numpy(np.ascontiguousarray(img))
        unit = image.float() / 255 if image.dtype == torch.uint8 else image
        denoised = wavelet_denoise(
            unit.permute(2, 0, 1) if image.ndim == 3 else unit.unsqueeze(0),
            sigma,
            self.wavelet,
            self.method,
            mode=self.mode,
            sigma_scale=self.sigma_scale,
            levels=self.levels,
        ).clamp(0, 1)
        if image.dtype == torch.uint8:
            denoised = (denoised * 255).round().to(torch.uint8)
        result: np.ndarray[Any, Any] = (denoised.permute(1, 2, 0) if image.ndim == 3 else denoised.squeeze(0)).numpy()
        return np.ascontiguousarray(result)
