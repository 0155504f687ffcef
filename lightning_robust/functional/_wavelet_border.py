"""What a signal is taken for beyond its ends, after PyWavelets' modes."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_robust.errors import InputError

BorderMode: TypeAlias = Literal["symmetric", "reflect", "zero", "constant", "periodic", "periodization"]
BORDER_MODES = ("symmetric", "reflect", "zero", "constant", "periodic", "periodization")


def extend(x: Tensor, before: int, after: int, mode: str, dim: int) -> Tensor:
    """Extend an axis by any number of samples, more than the axis holds included.

    ``periodization`` repeats the last sample of an odd axis and then continues periodically.

    Args:
        x: (..., H, W).
        before: samples to add in front, at least 0.
        after: samples to add behind; negative takes some away.
        mode: one of ``BORDER_MODES``.
        dim: -1 or -2.

    Raises:
        InputError: if a single sample is to be reflected.
    """
    if mode == "reflect" and x.shape[dim] < 2:
        raise InputError(
            "mode='reflect' needs at least 2 samples along an axis and found 1: choose mode='symmetric', or fewer "
            "levels."
        )
    if before == 0 and after == 0:
        return x
    if mode == "zero":
        return pad(x, (before, after) if dim == -1 else (0, 0, before, after))
    size = x.shape[dim]
    kept = x.narrow(dim, 0, size + min(after, 0))
    parts = [
        x.index_select(dim, _sources(-before, 0, size, mode, x.device)),
        kept,
        x.index_select(dim, _sources(size, size + max(after, 0), size, mode, x.device)),
    ]
    return torch.cat([part for part in parts if part.shape[dim]], dim)


def _sources(start: int, stop: int, size: int, mode: str, device: torch.device) -> Tensor:
    """The sample that stands at each position from ``start`` to ``stop``."""
    position = torch.arange(start, stop, device=device)
    if mode == "symmetric":
        position = position.remainder(2 * size)
        return torch.minimum(position, 2 * size - 1 - position)
    if mode == "reflect":
        position = position.remainder(2 * (size - 1))
        return torch.minimum(position, 2 * (size - 1) - position)
    if mode == "periodic":
        return position.remainder(size)
    if mode == "periodization":
        return position.remainder(size + size % 2).clamp(max=size - 1)
    return position.clamp(0, size - 1)
