"""What an attack found, sample by sample."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_robust.attacks.norms import NormName
from lightning_robust.attacks.problem import Problem


@dataclasses.dataclass(frozen=True)
class AttackRecord:
    """The result of an attack, judged in a forward pass of its own on the returned image.

    Args:
        image: adversarial images in [0, 1], shape (B, C, H, W).
        success: whether the model is wrong on the returned image, shape (B,); None where targets are not class
            indices.
        loss: the attack's loss there, shape (B,).
        distance: size of the change in the attack's norm, shape (B,).
        norm: ``linf`` or ``l2``.
        trace: the loss at every point that was judged on the way, shape (points, B); NaN where a sample was left
            alone.
    """

    image: Tensor
    success: Tensor | None
    loss: Tensor
    distance: Tensor
    norm: NormName
    trace: Tensor


def make_record(problem: Problem, image: Tensor, norm: NormName, trace: list[Tensor]) -> AttackRecord:
    """Judge the image that an attack returns; call it inside the attack's context.

    Args:
        problem: what was attacked.
        image: what is returned, in the caller's precision.
        norm: name of the problem's norm.
        trace: losses per judged point.

    Returns:
        The record.
    """
    point = image.to(problem.image.dtype)
    found = problem.evaluate(point)
    judged = problem.target.ndim == 1 and not problem.target.is_floating_point()
    return AttackRecord(
        image=image,
        success=found.wrong if judged else None,
        loss=found.loss,
        distance=problem.norm.size(point - problem.image),
        norm=norm,
        trace=torch.stack(trace) if trace else found.loss.new_empty(0, len(image)),
    )
