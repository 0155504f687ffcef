"""Laplacian sharpening as a Kornia augmentation."""

from __future__ import annotations

from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from kornia.augmentation import random_generator as rg
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional._sharpening_laplacian import Neighbors
from lightning_robust.functional._sharpening_options import check_choices
from lightning_robust.functional._sharpening_planes import Padding
from lightning_robust.functional.sharpening import laplacian_sharpen


class RandomLaplacianSharpening(IntensityAugmentationBase2D):
    """Sharpen each image of a batch by a strength drawn at random.

    Masks, boxes, keypoints and labels pass through ``AugmentationSequential`` unchanged. It acts in ``eval`` mode too,
    as every Kornia augmentation does, and belongs before a normalization. Sharpening in training is our ablation: Liang
    and Pun sharpen published images only.

    Args:
        alpha: range (low, high) of the strength, or one number for a fixed strength.
        neighbors: as for :func:`~lightning_robust.functional.laplacian_sharpen`, like the next three.
        normalize: see there.
        padding: see there.
        levels: see there.
        p: probability for each image.
        same_on_batch: draw once for the whole batch.
        keepdim: return (C, H, W) for (C, H, W).

    Shape:
        (B, C, H, W) or (C, H, W), floating in [0, 1], to (B, C, H, W).

    Raises:
        InputError: if the range is not ``0 <= low <= high``, or for an unknown option.
    """

    def __init__(
        self,
        alpha: float | tuple[float, float] = (0.0, 0.3),
        *,
        neighbors: Neighbors = 4,
        normalize: bool = False,
        padding: Padding = "replicate",
        levels: int | None = 256,
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, keepdim=keepdim)
        low, high = (alpha, alpha) if isinstance(alpha, int | float) else alpha
        if not 0 <= low <= high:
            raise InputError(f"alpha={alpha} is not a range of strengths: give (low, high) with 0 <= low <= high.")
        check_choices(neighbors=neighbors, padding=padding, levels=levels)
        bounds = torch.tensor([low, high], dtype=torch.float32)
        self._param_generator = rg.PlainUniformGenerator((bounds, "alpha", None, None))
        self.flags = {"neighbors": neighbors, "normalize": normalize, "padding": padding, "levels": levels}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Sharpen by the drawn strengths; called by Kornia."""
        options = {name: flags[name] for name in ("neighbors", "normalize", "padding", "levels")}
        return laplacian_sharpen(input, params["alpha"], **options)
