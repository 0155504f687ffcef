"""Fewer gray levels."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.defenses._planes import check_whole
from lightning_robust.defenses.contract import Defense


class BitDepth(Defense):
    """Round every value to one of ``2**bits`` levels, 0 and 1 among them; halves go to the even level.

    This is the form of Feature Squeezing, whose rows at 2 and 5 bits the pixel-deflection paper prints (Table 4 a, b).
    kornia's ``posterize`` and the bit shift of other releases cut instead of rounding and darken the image.

    Args:
        bits: 1 to 8.

    Raises:
        InputError: if ``bits`` is out of range.

    Source:
        Xu, Evans and Qi, NDSS 2018, section II.B, and its released code (EvadeML-Zoo).

    Example:
        >>> import torch
        >>> BitDepth(bits=1)(torch.tensor([0.2, 0.5, 0.6]).view(1, 1, 1, 3)).flatten().tolist()
        [0.0, 0.0, 1.0]
    """

    is_differentiable = False

    def __init__(self, *, bits: int = 5) -> None:
        super().__init__()
        check_whole("bits", bits, 1, 8)
        self.bits = bits

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"bits={self.bits}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Round to the levels."""
        del seeds
        steps = (1 << self.bits) - 1
        return torch.round(image * steps) / steps
