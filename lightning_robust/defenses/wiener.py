"""The local Wiener filter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_robust.defenses._planes import check_whole, mean
from lightning_robust.defenses.contract import Defense
from lightning_robust.errors import InputError


class WienerFilter(Defense):
    """Pull every value to the mean of its window, fully where the window varies less than the average one.

    The row "Deconv" of the pixel-deflection paper (Table 9) cannot be redone: the released call names no point-spread
    function and does not run. This is the filter of SciPy's ``signal.wiener``, channel by channel, which we take to be
    meant; it assumes no blur. The noise is estimated as the mean of all local variances, and zeros lie beyond the
    border, as there.

    Args:
        size: width of the window in pixels, odd.

    Raises:
        InputError: if the window is even or smaller than 3.

    Source:
        Lim, Two-Dimensional Signal and Image Processing, 1990, section 9.2.4, as in SciPy.
    """

    def __init__(self, *, size: int = 3) -> None:
        super().__init__()
        check_whole("size", size, 3)
        if size % 2 == 0:
            raise InputError(f"size={size} has no middle pixel: give an odd number of at least 3.")
        self.size = size

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"size={self.size}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Filter the batch."""
        del seeds
        local_mean = self._box(image)
        variance = (self._box(image.square()) - local_mean.square()).clamp_min(0)
        noise = mean(variance, (2, 3))
        # below the noise nothing of the deviation is kept; the floor keeps flat images finite
        gain = (variance - noise).clamp_min(0) / torch.maximum(variance, noise).clamp_min(1e-12)
        return local_mean + gain * (image - local_mean)

    def _box(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, self.size, stride=1, padding=self.size // 2)
