"""The Jacobian-based saliency map attack: two features a step, to the end of their range."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from lightning_robust.attacks.contract import Mode, Model, attack_context
from lightning_robust.attacks.minimum import Closest, minimum_problem, resolve_l2, surely_wrong
from lightning_robust.attacks.pairs import best_pair
from lightning_robust.attacks.problem import Problem, check_image, slope
from lightning_robust.attacks.record import AttackRecord, make_record
from lightning_robust.attacks.targets import TargetRule, resolve_toward, surely_is
from lightning_robust.errors import InputError

OutputName = Literal["logits", "probabilities"]


@overload
def jsma(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = ...,
    norm: Literal["l2"] = ...,
    toward: Tensor | TargetRule = ...,
    theta: float = ...,
    gamma: float = ...,
    output: OutputName = ...,
    seeds: Tensor | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[False] = ...,
) -> Tensor: ...


@overload
def jsma(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = ...,
    norm: Literal["l2"] = ...,
    toward: Tensor | TargetRule = ...,
    theta: float = ...,
    gamma: float = ...,
    output: OutputName = ...,
    seeds: Tensor | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[True],
) -> AttackRecord: ...


def jsma(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = None,
    norm: Literal["l2"] = "l2",
    toward: Tensor | TargetRule = "second",
    theta: float = 1.0,
    gamma: float = 0.145,
    output: OutputName = "logits",
    seeds: Tensor | None = None,
    mode: Mode = "eval",
    keep_statistics: bool = True,
    return_record: bool = False,
) -> Tensor | AttackRecord:
    """Change few features, two at a time, until the model answers another class (Papernot et al., EuroS&P 2016).

    With the slopes A of the output of the class to aim at and B of the sum of all other outputs, each step takes the
    pair of features p, q that maximizes ``-(A_p + A_q) (B_p + B_q)`` where the first sum is positive and the second
    negative (the paper's algorithm 3; signs reversed for a negative ``theta``), and moves both by ``theta``. A feature
    is one channel value of one pixel. The pair is the exact best of all pairs of features that can still move, found
    without a map of them (see :func:`~lightning_robust.attacks.pairs.best_pair`), and a step takes two backward passes
    for any number of classes. A sample stops at its first success, when no pair qualifies, or when its budget is spent.
    An image that the model gets wrong anyway comes back as it is and counts as a success.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits. Normalization, resizing and purification belong inside it.
        image: images in [0, 1], shape (B, C, H, W). Half precision is attacked in float32 and returned as it came.
        target: class indices, shape (B,).
        eps: largest L2 change, in [0, 1] image units, one number or one per sample: a sample that would have to
            go farther comes back clean, without success. None leaves ``gamma`` as the only budget.
        norm: of ``eps`` and of the record's distance: ``l2``, the only one; the number of changed features is
            ``(result != image).flatten(1).sum(1)``.
        toward: class indices (B,) that have to be reached; or a rule that names the class to aim at, where any other
            class counts: ``second`` (the most likely other one), ``least_likely``, or ``random`` (CleverHans 3.1,
            which wants that class reached).
        theta: change per step and feature, in [-1, 1], not 0; the features' range ends at 0 and 1.
        gamma: largest share of features to change; there are ``floor(gamma d / 2)`` steps. 0.145 is the paper's,
            CleverHans has 1.
        output: whose slopes to take: ``logits`` (CleverHans 3.1), or ``probabilities``, for which B is -A and one
            backward pass suffices.
        seeds: int64, shape (B,); drawn from by ``toward="random"`` only. None takes them from the position in the
            batch.
        mode: ``eval`` makes each sample's result independent of its neighbors. ``train`` attacks with batch statistics
            and dropout on.
        keep_statistics: in ``train`` mode, leave the running statistics as they are.
        return_record: return an :class:`AttackRecord` with success, margin and distance per sample; no trace.

    Returns:
        Adversarial images, detached, finite, in [0, 1] and within the budgets; or the record that holds them. Where the
        attack found nothing the image comes back bit for bit.

    Raises:
        InputError: if images, targets, budgets or options do not fit, or the model gives no gradient.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, -1.0, 2.0]])
        >>> model = lambda image: image.flatten(1) @ weight.T - image.new_tensor([0.0, 4.5])
        >>> jsma(model, torch.zeros(1, 1, 2, 2), torch.tensor([0]), gamma=1.0, output="probabilities").flatten()
        tensor([0., 1., 0., 1.])
    """
    check_image(image)
    if not 0 < abs(theta) <= 1 or not 0 <= gamma <= 1:
        raise InputError(f"theta={theta}, gamma={gamma}: give a theta in [-1, 1] that is not 0, and a gamma in [0, 1].")
    if output not in ("logits", "probabilities"):
        raise InputError(f"output={output!r} is unknown: choose 'logits' or 'probabilities'.")
    with attack_context(model, image.device, mode=mode, keep_statistics=keep_statistics):
        problem = minimum_problem(model, image, target, eps=eps, norm=resolve_l2(norm), seeds=seeds)
        closest = Closest(problem, image.dtype)
        index, logits = closest.start()
        aim = resolve_toward(toward, logits, problem.target, problem.seeds)[index]
        any_class = not isinstance(toward, Tensor)
        steps = math.floor(gamma * math.prod(image.shape[1:]) / 2)
        _walk(problem, closest, index, aim, any_class=any_class, theta=theta, steps=steps, output=output)
        adversarial = closest.result()
        return make_record(problem, adversarial, norm, trace=[]) if return_record else adversarial


def _walk(
    problem: Problem,
    closest: Closest,
    index: Tensor,
    aim: Tensor,
    *,
    any_class: bool,
    theta: float,
    steps: int,
    output: OutputName,
) -> None:
    part = problem.select(index)
    point = part.image
    for step in range(steps + 1):
        if len(index) == 0:
            return
        leaf = point.detach().requires_grad_()
        with torch.set_grad_enabled(step < steps):
            logits = part.logits(leaf)
        reached = surely_wrong(logits, part.target) if any_class else surely_is(logits, aim)
        closest.offer(index, point, reached)
        if step == steps:
            return
        moved, possible = _next(point, *_slopes(logits, leaf, aim, output), theta)
        moved = closest.snap(moved)
        keep = possible & ~reached & (part.norm.size(moved - part.image) <= part.eps.flatten())
        point = moved
        if not bool(keep.all()):
            index, part, point, aim = index[keep], part.select(keep), point[keep], aim[keep]


def _slopes(logits: Tensor, leaf: Tensor, aim: Tensor, output: OutputName) -> tuple[Tensor, Tensor]:
    """Slopes of the output aimed at, and of the sum of all others; up to a positive factor per sample."""
    if output == "probabilities":
        # p times the slope of log p is that of p, which underflows; the factor leaves the best pair as it is
        rise = slope(logits.log_softmax(dim=1).gather(1, aim[:, None])[:, 0], leaf)
        return rise, -rise
    rise = slope(logits.gather(1, aim[:, None])[:, 0], leaf, retain_graph=True)
    return rise, slope(logits.sum(dim=1), leaf) - rise


def _next(point: Tensor, rise: Tensor, rest: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """Move the best pair of features that can still move; return also whether there was one."""
    sign = math.copysign(1.0, theta)
    stuck = ((point >= 1) if theta > 0 else (point <= 0)).flatten(1)
    first, second = ((sign * values).flatten(1).masked_fill(stuck, -torch.inf) for values in (rise, -rest))
    pair, possible = best_pair(first, second)
    flat = point.flatten(1)
    moved = flat.scatter(1, pair, (flat.gather(1, pair) + theta).clamp(0, 1))
    return moved.view_as(point), possible
