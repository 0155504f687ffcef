"""Pixel deflection as an Albumentations transform."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from albumentations.core.transforms_interface import BaseTransformInitSchema, ImageOnlyTransform
from pydantic import Field

from lightning_robust.functional.pixel_deflection import pixel_deflection


class PixelDeflection(ImageOnlyTransform):  # type: ignore[misc]
    """Replace random pixels of an image by neighbors; the same bits as ``RandomPixelDeflection`` for the same seed.

    Needs the extra ``lightning-robust[albumentations]``. Targets: image, images, volume, volumes; the images of a stack
    share their draws.

    Args:
        deflections: as for :func:`~lightning_robust.functional.pixel_deflection`, like the next three.
        window: see there.
        sampling: see there.
        replacement: see there.
        p: probability for each image.

    Shape:
        (H, W, C) or (H, W), uint8 or float32 in [0, 1]; unchanged. ``mean`` is rounded in uint8.

    Raises:
        ValueError: for an unknown option.
    """

    class InitSchema(BaseTransformInitSchema):  # type: ignore[misc]
        """What the constructor accepts; read by Albumentations."""

        deflections: Annotated[int, Field(ge=0)]
        window: Annotated[int, Field(ge=0)]
        sampling: Literal["uniform", "gaussian"]
        replacement: Literal["random", "min", "max", "mean"]

    def __init__(
        self,
        deflections: int = 100,
        window: int = 10,
        sampling: Literal["uniform", "gaussian"] = "uniform",
        replacement: Literal["random", "min", "max", "mean"] = "random",
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.deflections = deflections
        self.window = window
        self.sampling = sampling
        self.replacement = replacement

    def get_params(self) -> dict[str, int]:
        """Draw a seed; called by Albumentations."""
        return {"seed": self.py_random.getrandbits(62)}

    def apply(self, img: np.ndarray[Any, Any], seed: int, **params: Any) -> np.ndarray[Any, Any]:  # noqa: ARG002
        """Deflect one image; called by Albumentations."""
        image = torch.from_numpy(np.ascontiguousarray(img))
        planes = image.permute(2, 0, 1) if image.ndim == 3 else image.unsqueeze(0)
        unit = planes.float() / 255 if image.dtype == torch.uint8 else planes
        deflected = pixel_deflection(
            unit[None],
            self.deflections,
            self.window,
            sampling=self.sampling,
            replacement=self.replacement,
            seeds=torch.tensor([seed]),
        )[0]
        if image.dtype == torch.uint8:
            deflected = (deflected * 255).round_().to(torch.uint8)
        result: np.ndarray[Any, Any] = (deflected.permute(1, 2, 0) if image.ndim == 3 else deflected.squeeze(0)).numpy()
        return np.ascontiguousarray(result)
