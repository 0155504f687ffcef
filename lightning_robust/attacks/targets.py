"""Which class an attack aims at."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.attacks.minimum import surely_wrong
from lightning_robust.attacks.problem import Problem, slope
from lightning_robust.errors import InputError

TargetRule: TypeAlias = Literal["second", "least_likely", "random"]


def resolve_toward(toward: Tensor | TargetRule, logits: Tensor, target: Tensor, seeds: Tensor) -> Tensor:
    """Return one class per sample to aim at, never the sample's own.

    Args:
        toward: class indices (B,); or ``second``, the most likely other class; ``least_likely``; or ``random``,
            uniform among the other classes, drawn from the seeds.
        logits: of the clean images, shape (B, K).
        target: the samples' own classes, shape (B,).
        seeds: int64, shape (B,).

    Returns:
        int64, shape (B,).

    Raises:
        InputError: if the rule is unknown, the model tells fewer than two classes apart, or the given classes are not
            one int64 other than the sample's own, per image.
    """
    count = logits.shape[1]
    if count < 2:
        raise InputError(f"The model tells {count} class apart: an attack needs another class to aim at.")
    if isinstance(toward, Tensor):
        return _checked(toward, target, count)
    own = target[:, None]
    if toward == "second":
        return logits.scatter(1, own, -torch.inf).argmax(dim=1)
    if toward == "least_likely":
        return logits.scatter(1, own, torch.inf).argmin(dim=1)
    if toward == "random":
        draw = streams.integers(seeds, (), count - 1, "toward")
        return draw + (draw >= target)
    raise InputError(
        f"toward={toward!r} is unknown: choose 'second', 'least_likely' or 'random', or give one class per image."
    )


def nearest_rival(problem: Problem, candidates: int = 10) -> Tensor:
    """Return the other class whose linearized boundary is nearest to the image, as DeepFool's first step finds it.

    Args:
        problem: its images are looked at.
        candidates: classes compared, the own one among them: those of the highest logits.

    Returns:
        int64, shape (B,).
    """
    leaf = problem.image.detach().requires_grad_()
    logits = problem.logits(leaf)
    own = problem.target[:, None]
    count = min(candidates, logits.shape[1]) - 1
    rivals = logits.detach().scatter(1, own, -torch.inf).topk(count, dim=1).indices
    gaps = (logits.gather(1, own) - logits.gather(1, rivals)).unbind(1)
    steepness = [
        problem.norm.size(slope(gap, leaf, retain_graph=rank + 1 < len(gaps))) for rank, gap in enumerate(gaps)
    ]
    distance = torch.stack(gaps, dim=1).detach() / torch.stack(steepness, dim=1)
    return rivals.gather(1, torch.nan_to_num(distance, nan=torch.inf).argmin(dim=1, keepdim=True))[:, 0]


def _checked(toward: Tensor, target: Tensor, count: int) -> Tensor:
    if toward.dtype != torch.int64 or toward.shape != target.shape:
        raise InputError(
            f"toward is a {toward.dtype} tensor of shape {tuple(toward.shape)}: give one int64 class per image, shape "
            f"({len(target)},)."
        )
    toward = toward.to(target.device)
    if len(toward) and (int(toward.min()) < 0 or int(toward.max()) >= count):
        raise InputError(
            f"toward names classes from {int(toward.min())} to {int(toward.max())}, but the model tells {count} "
            f"classes apart, from 0 to {count - 1}."
        )
    if bool((toward == target).any()):
        raise InputError("toward names the image's own class for some images: an attack aims at another one.")
    return toward


def surely_is(logits: Tensor, toward: Tensor) -> Tensor:
    """Whether a class leads all others, by more than the rounding of another batch could turn.

    Args:
        logits: shape (B, K).
        toward: classes, shape (B,).

    Returns:
        Shape (B,).
    """
    runner_up = logits.scatter(1, toward[:, None], -torch.inf).argmax(dim=1)
    return (logits.argmax(dim=1) == toward) & surely_wrong(logits, runner_up)
