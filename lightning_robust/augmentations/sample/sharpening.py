"""Laplacian sharpening as an Albumentations transform."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from albumentations.core.pydantic import check_range_bounds, nondecreasing
from albumentations.core.transforms_interface import BaseTransformInitSchema, ImageOnlyTransform
from pydantic import AfterValidator, BeforeValidator, Field

from lightning_robust.functional.sharpening import laplacian_sharpen


def _as_range(alpha: Any) -> Any:
    return (alpha, alpha) if isinstance(alpha, int | float) else alpha


class LaplacianSharpening(ImageOnlyTransform):  # type: ignore[misc]
    """Sharpen an image by a strength drawn at random; the same bits as ``RandomLaplacianSharpening`` at that strength.

    Needs the extra ``lightning-robust[albumentations]``. Targets: image, images, volume, volumes.

    Args:
        alpha: range (low, high) of the strength, or one number for a fixed strength.
        neighbors: as for :func:`~lightning_robust.functional.laplacian_sharpen`, like the next three.
        normalize: see there.
        padding: see there.
        levels: see there; uint8 images take 256 only.
        p: probability for each image.

    Shape:
        (H, W, C) or (H, W), uint8 or float32 in [0, 1]; unchanged.

    Raises:
        ValueError: for a range that is not ``0 <= low <= high``, or an unknown option.
    """

    class InitSchema(BaseTransformInitSchema):  # type: ignore[misc]
        """What the constructor accepts; read by Albumentations."""

        alpha: Annotated[
            tuple[float, float],
            BeforeValidator(_as_range),
            AfterValidator(check_range_bounds(0, None)),
            AfterValidator(nondecreasing),
        ]
        neighbors: Literal[4, 8]
        normalize: bool
        padding: Literal["replicate", "reflect", "zeros"]
        levels: Annotated[int, Field(ge=2)] | None

    def __init__(
        self,
        alpha: float | tuple[float, float] = (0.0, 0.3),
        neighbors: Literal[4, 8] = 4,
        normalize: bool = False,
        padding: Literal["replicate", "reflect", "zeros"] = "replicate",
        levels: int | None = 256,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.alpha = _as_range(alpha)
        self.neighbors = neighbors
        self.normalize = normalize
        self.padding = padding
        self.levels = levels

    def get_params(self) -> dict[str, float]:
        """Draw a strength; called by Albumentations."""
        return {"alpha": self.py_random.uniform(*self.alpha)}

    def apply(self, img: np.ndarray[Any, Any], alpha: float, **params: Any) -> np.ndarray[Any, Any]:  # noqa: ARG002
        """Sharpen one image; called by Albumentations."""
        image = torch.from_numpy(np.ascontiguousarray(img))
        planes = image.permute(2, 0, 1) if image.ndim == 3 else image.unsqueeze(0)
        sharp = laplacian_sharpen(
            planes,
            alpha,
            neighbors=self.neighbors,
            normalize=self.normalize,
            padding=self.padding,
            levels=self.levels,
        )
        result: np.ndarray[Any, Any] = (sharp.permute(1, 2, 0) if image.ndim == 3 else sharp.squeeze(0)).numpy()
        return np.ascontiguousarray(result)
