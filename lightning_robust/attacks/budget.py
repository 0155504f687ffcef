"""How large a change is by the measures of the literature, and images scaled to one size of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_robust.attacks.problem import check_image, per_sample
from lightning_robust.errors import InputError

Measure: TypeAlias = Literal["relative", "rmse", "hw"]

# after as many halvings two float64 bounds are neighbors for any practical purpose
_HALVINGS = 50
_DOUBLINGS = 60


@dataclasses.dataclass(frozen=True)
class NormalizedL2:
    """Three readings of "normalized L2" of one change, each of shape (B,).

    Args:
        relative: length of the change over that of the clean image (the dissimilarity of Guo et al., ICLR 2018).
        rmse: length over the root of the number of values, C H W.
        hw: length over the root of the number of pixels, H W.
    """

    relative: Tensor
    rmse: Tensor
    hw: Tensor


def normalized_l2(image: Tensor, adversarial: Tensor) -> NormalizedL2:
    """Measure changes in every way that the literature calls "normalized L2" without saying which.

    Args:
        image: clean images in [0, 1], shape (B, C, H, W).
        adversarial: changed images of the same shape.

    Returns:
        All three readings in float64. Relative to a black image, any change is infinite and none is 0.

    Raises:
        InputError: if shapes or values do not fit.

    Example:
        >>> image = torch.full((1, 3, 8, 8), 0.5)
        >>> size = normalized_l2(image, image + 0.03)
        >>> [round(value.item(), 3) for value in (size.relative, size.rmse, size.hw)]
        [0.06, 0.03, 0.052]
    """
    _check_pair(image, adversarial)
    length = _length(adversarial.double() - image.double())
    return NormalizedL2(**{name: torch.where(length == 0, 0, length / unit) for name, unit in _units(image).items()})


def scale_to_budget(
    image: Tensor, adversarial: Tensor, budget: float | Tensor, *, measure: Measure = "relative"
) -> Tensor:
    """Stretch or shrink every change, clipped to the box, until it has the wanted size.

    This is how attacks that choose their own size are brought to the budget of a table. Clipping makes the size a
    monotone but not a linear function of the factor, which is found by bisection. A shrunk change need not fool the
    model any more: judge the result anew.

    Args:
        image: clean images in [0, 1], shape (B, C, H, W).
        adversarial: changed images of the same shape, in [0, 1].
        budget: wanted size, one number or one per sample.
        measure: as in :class:`NormalizedL2`. "Deflecting Adversarial Attacks with Pixel Deflection" (CVPR 2018) does
            not define its |L2|; ``relative`` is the likeliest reading.

    Returns:
        Images in [0, 1] of the type of ``adversarial``, not above the budget but for rounding. An image without a
        change stays as it is; a change that cannot reach the budget inside the box ends as long as it can be.

    Raises:
        InputError: if shapes, values or the measure do not fit.

    Example:
        >>> image, changed = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.9)
        >>> scaled = scale_to_budget(image, changed, 0.06)
        >>> round(normalized_l2(image, scaled).relative.item(), 4)
        0.06
    """
    _check_pair(image, adversarial)
    if measure not in ("relative", "rmse", "hw"):
        raise InputError(f"measure={measure!r} is unknown: choose 'relative', 'rmse' or 'hw'.")
    with torch.no_grad():
        clean = image.double().clamp(0, 1)
        change = adversarial.double().clamp(0, 1) - clean
        wanted = per_sample(budget, clean, "budget") * _units(image)[measure]
        low, high = _bracket(clean, change, wanted)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            short = _length(_moved(clean, change, middle) - clean) <= wanted
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return _moved(clean, change, low).to(adversarial.dtype)


def _bracket(clean: Tensor, change: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors that are too small and too large; the first is exact where nothing is clipped."""
    length = _length(change)
    low = torch.where(length > 0, wanted / length, 0)
    high = 2 * low
    for _ in range(_DOUBLINGS):
        moved = _moved(clean, change, high)
        stuck = ((moved == 0) | (moved == 1) | (change == 0)).flatten(1).all(dim=1)
        enough = stuck | (_length(moved - clean) >= wanted)
        if bool(enough.all()):
            break
        low, high = torch.where(enough, low, high), torch.where(enough, high, 2 * high)
    return low, high


def _moved(clean: Tensor, change: Tensor, factor: Tensor) -> Tensor:
    return (clean + factor.view(-1, 1, 1, 1) * change).clamp(0, 1)


def _length(change: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
    return length


def _units(image: Tensor) -> dict[str, Tensor]:
    """Return the length of a change whose size is 1, for every measure."""
    length = _length(image.double())
    channels, height, width = image.shape[1:]
    return {
        "relative": length,
        "rmse": torch.full_like(length, math.sqrt(channels * height * width)),
        "hw": torch.full_like(length, math.sqrt(height * width)),
    }


def _check_pair(image: Tensor, adversarial: Tensor) -> None:
    check_image(image)
    check_image(adversarial)
    if image.shape != adversarial.shape:
        raise InputError(
            f"The images have shape {tuple(image.shape)} and the adversarial ones {tuple(adversarial.shape)}: give "
            "each image its own."
        )
