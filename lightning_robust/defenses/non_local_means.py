"""Averages of similar patches."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from lightning_robust.defenses._eight_bit import Bytes, map_bytes
from lightning_robust.defenses._planes import check_channels, check_choice, check_range, check_whole
from lightning_robust.defenses.contract import Defense
from lightning_robust.errors import InputError


class NonLocalMeans(Defense):
    """Average every pixel with those around which the image looks alike, by OpenCV.

    Feature Squeezing names its filters search-patch-strength: 11-3-2 and 13-3-4, the rows of the pixel-deflection paper
    (Table 4 e, f). The images are rounded to 8 bits and filtered one after another on the CPU, RGB in the color space
    Lab with ``strength`` for lightness and color alike.

    Args:
        search: width of the window that is searched, in pixels, odd.
        patch: width of the patches that are compared, in pixels, odd.
        strength: of the filter, in 8-bit values.
        variant: ``released`` hands RGB to OpenCV as if it were BGR, as the released code does, which compares colors in
            another space; ``corrected`` does not.

    Raises:
        InputError: if a window is even, an argument out of range or unknown, or, in the call, the images have neither
            1 nor 3 channels.

    Source:
        Buades, Coll and Morel, CVPR 2005; Xu, Evans and Qi, NDSS 2018, section II.C, and its released code.
    """

    is_differentiable = False

    def __init__(
        self,
        *,
        search: int = 13,
        patch: int = 3,
        strength: float = 4.0,
        variant: Literal["corrected", "released"] = "corrected",
    ) -> None:
        super().__init__()
        for name, width in (("search", search), ("patch", patch)):
            check_whole(name, width, 1)
            if width % 2 == 0:
                raise InputError(f"{name}={width} has no middle pixel: give an odd number of at least 1.")
        check_range("strength", strength, 0)
        check_choice("variant", variant, ("corrected", "released"))
        self.search = search
        self.patch = patch
        self.strength = strength
        self.variant = variant

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"search={self.search}, patch={self.patch}, strength={self.strength:g}, variant={self.variant!r}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Filter image by image."""
        del seeds
        check_channels(image, "NonLocalMeans")
        if self.variant == "released":
            return map_bytes(self._filter, image.flip(1)).flip(1)
        return map_bytes(self._filter, image)

    def _filter(self, pixels: Bytes) -> Bytes:
        import cv2

        if pixels.ndim == 2:
            filtered = cv2.fastNlMeansDenoising(pixels, None, self.strength, self.patch, self.search)
        else:
            filtered = cv2.fastNlMeansDenoisingColored(
                pixels, None, self.strength, self.strength, self.patch, self.search
            )
        return np.asarray(filtered, dtype=np.uint8)
