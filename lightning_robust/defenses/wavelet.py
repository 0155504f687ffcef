"""Wavelet denoising before an unchanged net: the second half of pixel deflection."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_robust.defenses.contract import Defense
from lightning_robust.functional._wavelet_options import Method, Shrinkage, SigmaScale, check_denoising
from lightning_robust.functional.wavelet_denoising import wavelet_denoise


class WaveletDenoising(Defense):
    """Shrink the wavelet coefficients of each image, as :func:`~lightning_robust.functional.wavelet_denoise` does.

    Not random, and differentiable almost everywhere: an attacker who knows of it takes the gradient through it. The
    surrogate for BPDA is the identity.

    Args:
        sigma: standard deviation of the noise, one number or one per channel; None estimates it.
        wavelet: name of a discrete wavelet of PyWavelets.
        method: rule of the thresholds.
        mode: soft or hard thresholding.
        sigma_scale: ``"channel"`` as the paper's scikit-image, ``"rgb"`` as today's.
        ycbcr: work in YCbCr; None does for three channels.
        levels: number of wavelet levels; None takes three less than the most, at least one.

    Raises:
        InputError: for an unknown option.

    Source: "Deflecting Adversarial Attacks with Pixel Deflection" (CVPR 2018), section 6; the defaults are those of its
    released code.
    """

    def __init__(
        self,
        sigma: float | Sequence[float] | None = 0.04,
        *,
        wavelet: str = "db1",
        method: Method = "BayesShrink",
        mode: Shrinkage = "soft",
        sigma_scale: SigmaScale = "channel",
        ycbcr: bool | None = None,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        check_denoising(sigma=sigma, wavelet=wavelet, method=method, mode=mode, sigma_scale=sigma_scale, levels=levels)
        self.sigma = sigma
        self.wavelet = wavelet
        self.method: Method = method
        self.mode: Shrinkage = mode
        self.sigma_scale: SigmaScale = sigma_scale
        self.ycbcr = ycbcr
        self.levels = levels

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Denoise the images; the seeds have no part in it."""
        del seeds
        return wavelet_denoise(
            image,
            self.sigma,
            self.wavelet,
            self.method,
            mode=self.mode,
            sigma_scale=self.sigma_scale,
            ycbcr=self.ycbcr,
            levels=self.levels,
        )

    def extra_repr(self) -> str:
        """Show the options."""
        return (
            f"sigma={self.sigma}, wavelet={self.wavelet}, method={self.method}, mode={self.mode}, "
            f"sigma_scale={self.sigma_scale}, ycbcr={self.ycbcr}, levels={self.levels}"
        )
