"""What an attack drives up: one value per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from lightning_robust.errors import InputError

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
LossName: TypeAlias = Literal["cross_entropy", "margin"]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy per sample.

    Args:
        logits: shape (B, K).
        target: class indices, shape (B,), or class probabilities, shape (B, K).

    Returns:
        Losses in nats, shape (B,).

    Raises:
        InputError: if the targets are neither.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]))
        tensor([0.6931])
    """
    if logits.ndim == 2 and not are_class_indices(logits, target) and not _are_probabilities(logits, target):
        raise InputError(
            f"Cross-entropy needs class indices of shape (B,), integers, or class probabilities of shape (B, K), "
            f"floats, but got {target.dtype} targets of shape {tuple(target.shape)} for logits of shape "
            f"{tuple(logits.shape)}: convert them, or pass loss_fn(logits, target)."
        )
    return F.cross_entropy(logits, target, reduction="none")


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Largest logit of another class minus the target's: positive where the prediction is wrong.

    The target is masked with minus infinity. A mask by multiplication leaves a zero in the target's place, which wins
    where all other logits are negative, and the attack then fails without a word.

    Args:
        logits: shape (B, K), K at least 2.
        target: class indices, shape (B,).

    Returns:
        Margins, shape (B,).

    Raises:
        InputError: if the targets are not class indices or there is one class only.

    Example:
        >>> import torch
        >>> margin(torch.tensor([[-30.0, -32.0, -35.0]]), torch.tensor([0]))
        tensor([-2.])
    """
    if not are_class_indices(logits, target) or logits.shape[1] < 2:
        raise InputError(
            f"The margin needs class indices of shape (B,) and logits of at least two classes, but got targets of "
            f"shape {tuple(target.shape)} and logits of shape {tuple(logits.shape)}: use loss='cross_entropy' or "
            "pass loss_fn(logits, target)."
        )
    index = target[:, None]
    others = logits.scatter(1, index, float("-inf")).amax(dim=1)
    return others - logits.gather(1, index)[:, 0]


def resolve_loss(loss: LossName, loss_fn: LossFunction | None) -> LossFunction:
    """Return the user's loss function, or the named one.

    Raises:
        InputError: if the name is unknown.
    """
    if loss_fn is not None:
        return loss_fn
    losses: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "margin": margin}
    if loss not in losses:
        raise InputError(f"loss={loss!r} is unknown: choose 'cross_entropy' or 'margin', or pass loss_fn.")
    return losses[loss]


def are_class_indices(logits: Tensor, target: Tensor) -> bool:
    """Whether targets name one class per sample, so that a prediction is right or wrong."""
    integral = not (target.is_floating_point() or target.is_complex())
    return logits.ndim == 2 and target.ndim == 1 and integral


def _are_probabilities(logits: Tensor, target: Tensor) -> bool:
    return target.shape == logits.shape and target.is_floating_point()
