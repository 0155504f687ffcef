"""JPEG compression."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor

from lightning_robust.defenses._eight_bit import Bytes, map_bytes
from lightning_robust.defenses._planes import check_channels, check_choice, check_whole
from lightning_robust.defenses.contract import Defense


class JPEG(Defense):
    """Compress to JPEG and decode, by libjpeg, with color at half resolution (4:2:0).

    The images are rounded to 8 bits and pass the codec one after another on the CPU.

    Args:
        quality: 1 to 100. The pixel-deflection paper names none; 75 is what Guo et al. and their attackers use.
        backward: of :meth:`straight_through`: ``identity``, or ``kornia`` for the differentiable codec of kornia, which
            rounds smoothly. It is close to JPEG but slow on the CPU (about a second for a 224 x 224 image).

    Raises:
        InputError: if an argument is out of range, or, in the call, the images have neither 1 nor 3 channels.

    Source:
        Dziugaite, Ghahramani and Roy, 2016 (arXiv 1608.00853); Guo et al., ICLR 2018, section 3.
    """

    is_differentiable = False

    def __init__(self, *, quality: int = 75, backward: Literal["identity", "kornia"] = "identity") -> None:
        super().__init__()
        check_whole("quality", quality, 1, 100)
        check_choice("backward", backward, ("identity", "kornia"))
        self.quality = quality
        self.backward = backward

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"quality={self.quality}, backward={self.backward!r}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Compress and decode."""
        del seeds
        check_channels(image, "JPEG")
        return map_bytes(self._round_trip, image)

    def surrogate(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Return the image, or kornia's differentiable JPEG of it."""
        del seeds
        if self.backward == "identity":
            return image
        quality = torch.tensor([self.quality], dtype=image.dtype, device=image.device)
        color = image.expand(-1, 3, -1, -1)
        return jpeg_codec_differentiable(color, quality)[:, : image.shape[1]]

    def _round_trip(self, pixels: Bytes) -> Bytes:
        import cv2

        # 4:2:0 is the default of today's OpenCV; older ones did not promise it
        flags = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
        _, data = cv2.imencode(".jpg", pixels, flags)
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), dtype=np.uint8)
