"""Average the predictions over random crops."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_robust import seeds as streams
from lightning_robust.defenses._planes import check_whole, take
from lightning_robust.errors import InputError
from lightning_robust.images import check_unit_batch


class CropEnsemble(nn.Module):
    """A classifier that averages its class probabilities over random crops of every image.

    Not a :class:`~lightning_robust.defenses.Defense`: what is averaged is predictions, so no single image comes out. To
    combine it with one, put the other inside: ``CropEnsemble(Purified(model, defense))``. The crops pass the model one
    at a time, so memory is that of one crop a sample. The gradient is exact for fixed draws.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K).
        crops: number of crops; 30 in the released attack.
        size: width and height of a crop in pixels; 90 for images of 224 (Guo et al.) and 299 (the attack).
        resize: enlarge the crops (bilinear) to the size of the image, which a pretrained net expects.

    Raises:
        InputError: if an argument is out of range, or, in the call, the images leave [0, 1] or are smaller than a
            crop.

    Source:
        Guo et al., ICLR 2018, section 4.1; released code of Athalye et al., ICML 2018.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> image = torch.rand(2, 3, 16, 16)
        >>> logits = CropEnsemble(model, crops=4, size=8)(image)  # logarithms of mean probabilities
        >>> torch.allclose(logits.exp().sum(1), torch.ones(2))
        True
    """

    def __init__(self, model: nn.Module, *, crops: int = 30, size: int = 90, resize: bool = True) -> None:
        super().__init__()
        check_whole("crops", crops, 1)
        check_whole("size", size, 1)
        self.model = model
        self.crops = crops
        self.size = size
        self.resize = resize

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"crops={self.crops}, size={self.size}, resize={self.resize}"

    def forward(self, image: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Return the logarithm of the mean probabilities, which serves wherever logits do.

        Args:
            image: in [0, 1], shape (B, C, H, W).
            seeds: int64 random seeds, shape (B,); None derives them from the pixel values.

        Returns:
            Shape (B, K).
        """
        check_unit_batch(image, "CropEnsemble and its model", "Put the normalization inside the model.")
        height, width = image.shape[2:]
        if min(height, width) < self.size:
            raise InputError(
                f"The images are {height} x {width} and the crops size={self.size}: give a smaller size, for example "
                f"{max(1, round(min(height, width) * 90 / 224))}, the share that 90 is of 224."
            )
        seeds = streams.of_content(image, "defense") if seeds is None else streams.per_image(image, seeds)
        logarithms = [F.log_softmax(self.model(self._crop(image, seeds, number)), 1) for number in range(self.crops)]
        return torch.logsumexp(torch.stack(logarithms), 0) - math.log(self.crops)

    def _crop(self, image: Tensor, seeds: Tensor, number: int) -> Tensor:
        rows, columns = (
            streams.integers(seeds, (1,), side - self.size + 1, "crop", number, axis)
            + torch.arange(self.size, device=image.device)
            for axis, side in enumerate(image.shape[2:])
        )
        crop = take(image, rows, columns)
        if not self.resize:
            return crop
        return F.interpolate(crop, tuple(image.shape[2:]), mode="bilinear", align_corners=False)
