"""Pixel deflection as a defense, with or without an activation map that spares the objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from lightning_robust.defenses.contract import Defense
from lightning_robust.errors import InputError
from lightning_robust.functional._deflection_draws import Sampling
from lightning_robust.functional.pixel_deflection import (
    DeflectionProtocol,
    Replacement,
    check_deflection_options,
    pixel_deflection,
)
from lightning_robust.nn.activation_map import RobustActivationMap


class PixelDeflection(Defense):
    """Replace random pixels by neighbors (Prakash et al., CVPR 2018).

    An attacker who knows of it brings accuracy to about 0% at 4/255 (Athalye and Carlini, arXiv 1804.03286): it is a
    purifier to study and a baseline, not security. For given seeds it is linear in the image and carries the exact
    gradient; the activation map is held fixed.

    Args:
        deflections: as for :func:`~lightning_robust.functional.pixel_deflection`, like all but the next two.
        window: see there.
        activation_map: from images (B, C, H, W) to maps (B, H, W) in [0, 1], computed anew for every call; None
            deflects everywhere alike.
        protocol: see there.
        sampling: see there.
        replacement: see there.

    Raises:
        InputError: for an unknown option.
    """

    is_random: ClassVar[bool] = True

    def __init__(
        self,
        deflections: int = 100,
        window: int = 10,
        activation_map: RobustActivationMap | Callable[[Tensor], Tensor] | None = None,
        *,
        protocol: DeflectionProtocol = "paper",
        sampling: Sampling = "uniform",
        replacement: Replacement = "random",
    ) -> None:
        super().__init__()
        check_deflection_options(deflections, window, protocol, sampling, replacement)
        if activation_map is not None and not callable(activation_map):
            raise InputError(
                f"activation_map is a {type(activation_map).__name__}: give what makes maps of images, such as "
                "RobustActivationMap(). A map that is there already goes to functional.pixel_deflection."
            )
        self.deflections, self.window, self.activation_map = deflections, window, activation_map
        self.protocol, self.sampling, self.replacement = protocol, sampling, replacement

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Deflect."""
        return pixel_deflection(
            image,
            self.deflections,
            self.window,
            None if self.activation_map is None else self.activation_map(image.detach()),
            protocol=self.protocol,
            sampling=self.sampling,
            replacement=self.replacement,
            seeds=seeds,
        )
