"""Averages of near pixels of near color."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_robust.defenses._planes import check_range, check_whole, mean
from lightning_robust.defenses.contract import Defense
from lightning_robust.errors import InputError


class BilateralFilter(Defense):
    """Average every pixel with its neighbors, weighted by distance and by likeness of color.

    The defaults are those of the denoiser that the released code of pixel deflection calls (Table 9): zeros beyond the
    border, and a color scale from the image itself. scikit-image 0.26 is no reference for it: its table of distances is
    sheared.

    kornia's ``bilateral_blur`` computes the same but sums in another order for larger batches, so that an image's bits
    would depend on its neighbors.

    Args:
        window: width in pixels, odd.
        sigma_space: scale of the distance, in pixels.
        sigma_color: scale of the Euclidean color distance, in [0, 1] units. None takes the standard deviation of each
            image's values times its number of channels, since the release divides the color distance by that number.

    Raises:
        InputError: if the window is even or a scale is not positive.

    Source:
        Tomasi and Manduchi, ICCV 1998; parameters from the released code of Prakash et al., CVPR 2018, and the
        scikit-image 0.13 that it runs on.
    """

    def __init__(self, *, window: int = 7, sigma_space: float = 1.0, sigma_color: float | None = None) -> None:
        super().__init__()
        check_whole("window", window, 1)
        if window % 2 == 0:
            raise InputError(f"window={window} has no middle pixel: give an odd number of at least 1.")
        check_range("sigma_space", sigma_space, 1e-3)
        if sigma_color is not None:
            check_range("sigma_color", sigma_color, 1e-6)
        self.window = window
        self.sigma_space = sigma_space
        self.sigma_color = sigma_color

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"window={self.window}, sigma_space={self.sigma_space:g}, sigma_color={self.sigma_color}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Filter the batch, one offset of the window at a time."""
        del seeds
        height, width = image.shape[-2:]
        reach = self.window // 2
        precision = -0.5 / self._color_variance(image)
        padded = F.pad(image, (reach, reach, reach, reach))
        total, weights = torch.zeros_like(image), torch.zeros_like(image[:, :1])
        for down in range(self.window):
            for right in range(self.window):
                shifted = padded[..., down : down + height, right : right + width]
                near = math.exp(-0.5 * ((down - reach) ** 2 + (right - reach) ** 2) / self.sigma_space**2)
                weight = near * torch.exp(precision * (shifted - image).square().sum(1, keepdim=True))
                total = total + weight * shifted
                weights = weights + weight
        return total / weights

    def _color_variance(self, image: Tensor) -> Tensor | float:
        if self.sigma_color is not None:
            return self.sigma_color**2
        deviation = image - mean(image, (1, 2, 3))
        # a flat image has no scale, and needs none
        return mean(deviation.square(), (1, 2, 3)).clamp_min(1e-12) * image.shape[1] ** 2
