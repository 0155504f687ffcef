"""Run a function of OpenCV on each image of a batch, in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes: TypeAlias = npt.NDArray[np.uint8]


def map_bytes(function: Callable[[Bytes], Bytes], image: Tensor) -> Tensor:
    """Apply a function to every image, one after another on the CPU.

    OpenCV knows no batches. A pool of threads gained nothing where it was measured (two cores): one JPEG takes less
    than a millisecond, and non-local means uses all cores by itself.

    Args:
        function: uint8 of shape (H, W) or, for three channels, (H, W, 3) in OpenCV's order BGR, to the same.
        image: in [0, 1], shape (B, C, H, W), with C of 1 or 3; rounded to 8 bits.

    Returns:
        Shape (B, C, H, W), of the type and on the device of ``image``, without a gradient.
    """
    if image.numel() == 0:
        return image.detach().clone()
    levels = (image.detach() * 255).round().to(torch.uint8).cpu()
    # BGR is RGB backwards
    pixels = levels.squeeze(1) if image.shape[1] == 1 else levels.permute(0, 2, 3, 1).flip(-1)
    results = np.stack([function(np.ascontiguousarray(one)) for one in pixels.numpy()])
    back = torch.from_numpy(results).view(len(image), *image.shape[2:], image.shape[1]).flip(-1).permute(0, 3, 1, 2)
    return back.contiguous().to(image.device, image.dtype) / 255
