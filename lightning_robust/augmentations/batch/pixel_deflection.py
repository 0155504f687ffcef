"""Pixel deflection as a Kornia augmentation."""

from __future__ import annotations

from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from lightning_robust.functional._deflection_draws import Sampling
from lightning_robust.functional.pixel_deflection import Replacement, check_deflection_options, pixel_deflection


class RandomPixelDeflection(IntensityAugmentationBase2D):
    """Replace random pixels of each image of a batch by neighbors, without an activation map.

    Masks, boxes, keypoints and labels pass through ``AugmentationSequential`` unchanged. It acts in ``eval`` mode too,
    as every Kornia augmentation does, and belongs before a normalization. Deflection in training is our ablation:
    Prakash et al. deflect at inference only.

    Args:
        deflections: as for :func:`~lightning_robust.functional.pixel_deflection`, like the next three.
        window: see there.
        sampling: see there.
        replacement: see there.
        p: probability for each image.
        same_on_batch: draw once for the whole batch.
        keepdim: return (C, H, W) for (C, H, W).

    Shape:
        (B, C, H, W) or (C, H, W), floating in [0, 1], to (B, C, H, W).

    Raises:
        InputError: for an unknown option.
    """

    def __init__(
        self,
        deflections: int = 100,
        window: int = 10,
        *,
        sampling: Sampling = "uniform",
        replacement: Replacement = "random",
        p: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, keepdim=keepdim)
        check_deflection_options(deflections, window, "paper", sampling, replacement)
        self.flags = {"deflections": deflections, "window": window, "sampling": sampling, "replacement": replacement}

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw one seed per image; called by Kornia."""
        seeds = torch.randint(1 << 62, (1 if self.same_on_batch else batch_shape[0],))
        return {"seeds": seeds.expand(batch_shape[0]).contiguous()}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Deflect by the drawn seeds; called by Kornia."""
        options = {name: flags[name] for name in ("deflections", "window", "sampling", "replacement")}
        return pixel_deflection(input, **options, seeds=params["seeds"])
