"""Shrinkage of the discrete cosine transform of small blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_ycbcr, ycbcr_to_rgb
from torch import Tensor

from lightning_robust.defenses._planes import check_channels, check_range, check_whole, mean
from lightning_robust.defenses.contract import Defense


class BlockDCT(Defense):
    """Soft-threshold the cosine coefficients of small blocks by the BayesShrink rule (ours).

    The pixel-deflection paper has a row with a DCT in the place of its wavelets (Table 4) and says no more of it. This
    is the nearest counterpart of its wavelet denoiser: luma and chroma apart, orthonormal DCT-II of disjoint blocks,
    for every frequency but zero the threshold ``T = sigma^2 / sqrt(mean(c^2) - sigma^2)`` over all blocks of a plane;
    a frequency with less energy than the noise is zeroed. The edge is repeated to whole blocks and cut off again.

    Args:
        block: width of the blocks in pixels; 8 as in JPEG.
        sigma: standard deviation of the noise, as a share of each plane's range of values: what the 0.04 of the paper
            meant in the scikit-image of its time.

    Raises:
        InputError: if an argument is out of range, or, in the call, the images have neither 1 nor 3 channels.

    Source:
        Ours; the threshold is that of Chang, Yu and Vetterli, IEEE TIP 2000.
    """

    def __init__(self, *, block: int = 8, sigma: float = 0.04) -> None:
        super().__init__()
        check_whole("block", block, 2)
        check_range("sigma", sigma, 0)
        self.block = block
        self.sigma = sigma

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"block={self.block}, sigma={self.sigma:g}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Transform, shrink, transform back."""
        del seeds
        check_channels(image, "BlockDCT")
        if image.shape[1] == 1:
            return self._shrink(image)
        return ycbcr_to_rgb(self._shrink(rgb_to_ycbcr(image)))

    def _shrink(self, planes: Tensor) -> Tensor:
        count, channels, height, width = planes.shape
        size = self.block
        value_range = planes.amax((2, 3), keepdim=True) - planes.amin((2, 3), keepdim=True)
        noise = (self.sigma * value_range).square()[..., None, None]
        padded = F.pad(planes, (0, -width % size, 0, -height % size), mode="replicate")
        rows, columns = padded.shape[2] // size, padded.shape[3] // size
        blocks = padded.reshape(count, channels, rows, size, columns, size).transpose(3, 4)
        basis = _basis(size).to(planes)
        coefficients = basis @ blocks @ basis.T
        signal = mean(coefficients.square(), (2, 3)) - noise
        # the floor keeps the gradient finite where a frequency is zeroed
        threshold = torch.where(signal > 0, noise / signal.clamp_min(1e-12).sqrt(), torch.inf)
        kept = F.relu(coefficients - threshold) - F.relu(-coefficients - threshold)
        kept = torch.where(_is_mean(size, planes.device), coefficients, kept)
        back = (basis.T @ kept @ basis).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        return back[..., :height, :width].reshape(count, channels, height, width)


def _basis(size: int) -> Tensor:
    """Rows are the orthonormal DCT-II; float64."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    position = torch.arange(size, dtype=torch.float64) + 0.5
    basis = torch.cos(math.pi / size * frequency * position) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def _is_mean(size: int, device: torch.device) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool, device=device)
    mask[0, 0] = True
    return mask
