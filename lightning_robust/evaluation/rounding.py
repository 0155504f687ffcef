"""Images as they travel: 8 bits per value, and never farther from the published image than the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.attacks.norms import NormName, resolve_norm

_LEVELS = 255
_SLACK = 1e-4
_ATTEMPTS = 4


def round_to_8_bits(image: Tensor) -> Tensor:
    """Round images in [0, 1] to the 256 levels of 8 bits."""
    return (image * _LEVELS).round() / _LEVELS


def straight_through_8_bits(image: Tensor) -> Tensor:
    """Round like :func:`round_to_8_bits` with the gradient of the identity, for an attacker who knows of it."""
    return image + (round_to_8_bits(image) - image).detach()


def whole_levels(eps: float) -> float:
    """Return the largest budget of whole 8-bit levels within ``eps``: what an Linf attacker can make use of.

    Example:
        >>> [round(whole_levels(eps) * 255, 6) for eps in (8 / 255, 0.05, 0.5 / 255)]
        [8.0, 12.0, 0.0]
    """
    # a budget of 8 / 255 is 8 levels, whatever float32 makes of it
    return int(eps * _LEVELS + _SLACK) / _LEVELS


def receive(adversarial: Tensor, published: Tensor, *, eps: float, norm: NormName) -> Tensor:
    """Round adversarial images to 8 bits without leaving the budget that the attack kept.

    Rounding goes to the nearest level. Where that is outside the budget: for ``linf`` the value takes the last level
    inside; for ``l2`` the change is shortened and rounded again, and in the end cut toward the published image.

    Args:
        adversarial: images within ``eps`` of ``published``, shape (B, C, H, W).
        published: 8-bit images in [0, 1].
        eps: budget in [0, 1] image units.
        norm: of the budget.

    Returns:
        8-bit images in [0, 1] within the budget.
    """
    base, change = (published * _LEVELS).round(), (adversarial - published) * _LEVELS
    if norm == "linf":
        most = round(whole_levels(eps) * _LEVELS)
        return (base + change.round().clamp(-most, most)).clamp(0, _LEVELS) / _LEVELS
    measure, budget = resolve_norm(norm).size, eps * _LEVELS * (1 + _SLACK)
    for _ in range(_ATTEMPTS):
        size = measure(change.round())
        excess = (size / max(budget, _SLACK)).clamp(min=1)
        change = change / excess.view(-1, 1, 1, 1)
    rounded = change.round()
    inside = measure(rounded).view(-1, 1, 1, 1) <= budget
    return (base + torch.where(inside, rounded, change.trunc())).clamp(0, _LEVELS) / _LEVELS
