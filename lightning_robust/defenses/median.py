"""Median of a small window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kornia.filters import median_blur
from torch import Tensor

from lightning_robust.defenses._planes import check_whole
from lightning_robust.defenses.contract import Defense


class MedianFilter(Defense):
    """Replace every value by the median of its window in its own channel.

    The even window reaches one pixel up and left and takes the upper of its two middle values; borders are mirrored
    about the edge of the image. Both are what SciPy's filter does, which Feature Squeezing calls.

    Args:
        size: 2 or 3, the windows of Feature Squeezing and of the pixel-deflection paper (Table 4 c, d).

    Raises:
        InputError: for any other size.

    Source:
        Xu, Evans and Qi, NDSS 2018, section II.C, and its released code (EvadeML-Zoo).
    """

    def __init__(self, *, size: int = 2) -> None:
        super().__init__()
        check_whole("size", size, 2, 3)
        self.size = size

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"size={self.size}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Take the medians."""
        del seeds
        if self.size == 3:
            # replicate mirrors about the edge where the window reaches one pixel
            return median_blur(image, 3, border_type="replicate")
        padded = F.pad(image, (1, 0, 1, 0), mode="replicate")
        top, bottom = padded[..., :-1, :], padded[..., 1:, :]
        larger, smaller = torch.maximum(top, bottom), torch.minimum(top, bottom)
        # the third smallest of four, from the two pairs
        return torch.maximum(
            torch.minimum(larger[..., :-1], larger[..., 1:]), torch.maximum(smaller[..., :-1], smaller[..., 1:])
        )
