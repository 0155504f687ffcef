"""DeepFool: walk to the nearest boundary of the linearized model."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from lightning_robust.attacks.contract import Mode, Model, attack_context
from lightning_robust.attacks.minimum import Closest, minimum_problem, resolve_l2, surely_wrong
from lightning_robust.attacks.problem import Problem, check_image, slope
from lightning_robust.attacks.record import AttackRecord, make_record
from lightning_robust.errors import InputError

# added to every step's length, as in the released code, so that a point on the boundary leaves it
_PUSH = 1e-4


@overload
def deepfool(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = ...,
    norm: Literal["l2"] = ...,
    steps: int = ...,
    candidates: int = ...,
    overshoot: float = ...,
    seeds: Tensor | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[False] = ...,
) -> Tensor: ...


@overload
def deepfool(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = ...,
    norm: Literal["l2"] = ...,
    steps: int = ...,
    candidates: int = ...,
    overshoot: float = ...,
    seeds: Tensor | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[True],
) -> AttackRecord: ...


def deepfool(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = None,
    norm: Literal["l2"] = "l2",
    steps: int = 50,
    candidates: int = 10,
    overshoot: float = 0.02,
    seeds: Tensor | None = None,
    mode: Mode = "eval",
    keep_statistics: bool = True,
    return_record: bool = False,
) -> Tensor | AttackRecord:
    """Find a small L2 change that fools the model, by steps to its nearest linearized boundary.

    Moosavi-Dezfooli et al., CVPR 2016, algorithm 2; defaults and the small push across the boundary are those of the
    released code. The overshoot applies to the whole change, which is clipped to the box. An image that the model
    gets wrong anyway comes back as it is and counts as a success of distance 0: leave it out of statistics of distance.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits. Normalization, resizing and purification belong inside it.
        image: images in [0, 1], shape (B, C, H, W). Half precision is attacked in float32 and returned as it came.
        target: class indices, shape (B,); for the attack as published, the model's own predictions.
        eps: largest L2 change worth returning, in [0, 1] image units, one number or one per sample: an image that
            needs more comes back clean, without success. None returns whatever was found.
        norm: ``l2``, the only one; taken so that all attacks are called alike.
        steps: at most, at least 1.
        candidates: classes looked at, that of the target and the highest clean logits.
        overshoot: share of the change added to it.
        seeds: int64, shape (B,). Nothing is drawn; taken so that all attacks are called alike.
        mode: ``eval`` makes each sample's result independent of its neighbors. ``train`` attacks with batch statistics
            and dropout on.
        keep_statistics: in ``train`` mode, leave the running statistics as they are.
        return_record: return an :class:`AttackRecord` with success, margin and distance per sample; no trace.

    Returns:
        Adversarial images, detached, finite, in [0, 1] and within the budget; or the record that holds them. Where the
        attack found nothing the image comes back bit for bit.

    Raises:
        InputError: if images, targets, budget or options do not fit, or the model gives no gradient.

    Example:
        >>> model = lambda image: torch.stack([image.sum((1, 2, 3)), image.new_tensor([2.0])], dim=1)
        >>> record = deepfool(model, torch.full((1, 1, 2, 2), 0.6), torch.tensor([0]), return_record=True)
        >>> record.success.item(), round(record.distance.item(), 3)  # the boundary is 0.2 away
        (True, 0.204)
    """
    check_image(image)
    if steps < 1 or candidates < 2 or overshoot < 0:
        raise InputError(
            f"steps={steps}, candidates={candidates}, overshoot={overshoot}: give at least one step and two candidate "
            "classes, and an overshoot of at least 0."
        )
    with attack_context(model, image.device, mode=mode, keep_statistics=keep_statistics):
        problem = minimum_problem(model, image, target, eps=eps, norm=resolve_l2(norm), seeds=seeds)
        closest = Closest(problem, image.dtype)
        _walk(problem, closest, steps=steps, candidates=candidates, stretch=1 + overshoot)
        adversarial = closest.result()
        return make_record(problem, adversarial, norm, trace=[]) if return_record else adversarial


def _walk(problem: Problem, closest: Closest, *, steps: int, candidates: int, stretch: float) -> None:
    index, logits = closest.start()
    part, rivals = problem.select(index), _rivals(logits, problem.target, candidates)[index]
    point, change = part.image, torch.zeros_like(part.image)
    for _ in range(steps):
        if len(index) == 0:
            return
        change = change + _to_nearest_boundary(part, point, rivals)
        point = closest.snap(part.image + stretch * change)
        # a forward pass to judge costs less than backward passes through the samples that are done
        with torch.no_grad():
            wrong = surely_wrong(part.logits(point), part.target)
        closest.offer(index, point, wrong)
        if bool(wrong.any()):
            keep = ~wrong
            index, part, rivals = index[keep], part.select(keep), rivals[keep]
            point, change = point[keep], change[keep]


def _rivals(logits: Tensor, target: Tensor, candidates: int) -> Tensor:
    others = logits.scatter(1, target[:, None], -torch.inf)
    count = min(candidates, logits.shape[1]) - 1
    return others.topk(count, dim=1).indices


def _to_nearest_boundary(problem: Problem, point: Tensor, rivals: Tensor) -> Tensor:
    """Return the step to the nearest of the linearized boundaries, zero where there is none; one forward pass."""
    leaf = point.detach().requires_grad_()
    logits = problem.logits(leaf)
    own = logits.gather(1, problem.target[:, None])
    nearest, step = torch.full_like(leaf[:, :1, :1, :1], torch.inf), torch.zeros_like(leaf)
    # a step across the whole box is long enough, and far from what overflows
    longest = math.sqrt(leaf[0].numel())
    gaps = (logits.gather(1, rivals) - own).unbind(1)
    for rank, gap in enumerate(gaps):
        gradient = slope(gap, leaf, retain_graph=rank + 1 < len(gaps))
        direction = problem.norm.direction(gradient)
        steepness = (direction * gradient).sum((1, 2, 3), keepdim=True)
        distance = gap.detach().abs().view(-1, 1, 1, 1) / steepness
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        step = torch.where(nearer, direction * (distance + _PUSH).clamp(max=longest), step)
    return step
