"""Projected gradient descent on the negative loss: many steps, random starts, the best point kept."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from lightning_robust.attacks.ascent import Best, climb
from lightning_robust.attacks.contract import Mode, Model, attack_context
from lightning_robust.attacks.losses import LossFunction, LossName, resolve_loss
from lightning_robust.attacks.norms import NormName, resolve_norm
from lightning_robust.attacks.problem import check_image, make_problem, per_sample, round_toward
from lightning_robust.attacks.record import AttackRecord, make_record
from lightning_robust.errors import InputError


@overload
def pgd(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = ...,
    steps: int = ...,
    step_size: float | Tensor | None = ...,
    random_start: bool = ...,
    restarts: int = ...,
    early_stop: bool = ...,
    loss: LossName = ...,
    seeds: Tensor | None = ...,
    loss_fn: LossFunction | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[False] = ...,
) -> Tensor: ...


@overload
def pgd(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = ...,
    steps: int = ...,
    step_size: float | Tensor | None = ...,
    random_start: bool = ...,
    restarts: int = ...,
    early_stop: bool = ...,
    loss: LossName = ...,
    seeds: Tensor | None = ...,
    loss_fn: LossFunction | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[True],
) -> AttackRecord: ...


def pgd(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = "linf",
    steps: int = 20,
    step_size: float | Tensor | None = None,
    random_start: bool = True,
    restarts: int = 1,
    early_stop: bool = False,
    loss: LossName = "cross_entropy",
    seeds: Tensor | None = None,
    loss_fn: LossFunction | None = None,
    mode: Mode = "eval",
    keep_statistics: bool = True,
    return_record: bool = False,
) -> Tensor | AttackRecord:
    """Climb the loss inside the ball around every image and return the best point seen (Madry et al., ICLR 2018).

    Best is a wrong prediction before a right one, then the higher loss. Where targets are not class indices the loss
    alone decides.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits. Normalization, resizing and purification belong inside it.
        image: images in [0, 1], shape (B, C, H, W). Half precision is attacked in float32 and returned as it came.
        target: class indices (B,), class probabilities (B, K), or what ``loss_fn`` takes, one row per sample.
        eps: budget in [0, 1] image units, one number or one per sample.
        norm: of the budget; ``linf`` steps along the gradient's sign, ``l2`` along the gradient at unit length.
        steps: gradient steps per restart, at least 1.
        step_size: length of a step; by default 2.5 ``eps / steps``, the rule of thumb of Madry et al.
        random_start: start from a random point of the ball (uniform in volume), else from the clean image.
        restarts: runs with starts of their own; each works on the samples that the earlier ones did not fool.
        early_stop: leave a sample at its first wrong prediction. Faster for an evaluation, weaker for training.
        loss: ``cross_entropy``, or ``margin``, which keeps its gradient where a confident model's probabilities
            are 0 or 1.
        seeds: int64 random seeds, shape (B,); None takes them from the position in the batch.
        loss_fn: (logits, target) to losses of shape (B,), in place of ``loss``.
        mode: ``eval`` makes each sample's result independent of its neighbors. ``train`` attacks with batch statistics
            and dropout on, as released training recipes do.
        keep_statistics: in ``train`` mode, leave the running statistics as they are.
        return_record: return an :class:`AttackRecord` with success, loss and distance per sample.

    Returns:
        Adversarial images, detached, finite, in [0, 1] and within the budget; or the record that holds them. An image
        with a budget of zero comes back bit for bit.

    Raises:
        InputError: if images, targets, budget or options do not fit, or the model gives no gradient.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> record = pgd(model, torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]), eps=1.0, return_record=True)
        >>> record.success.tolist()
        [True, True, True, True]
    """
    check_image(image)
    if steps < 1 or restarts < 1 or (restarts > 1 and not random_start):
        raise InputError(
            f"steps={steps}, restarts={restarts}, random_start={random_start}: give at least one step and one restart, "
            "and random_start=True where there are several, since they would all be the same."
        )
    with attack_context(model, image.device, mode=mode, keep_statistics=keep_statistics):
        problem = make_problem(
            model,
            image,
            target,
            eps=eps,
            norm=resolve_norm(norm),
            loss_fn=resolve_loss(loss, loss_fn),
            seeds=seeds,
        )
        if step_size is None:
            step_size = problem.eps.flatten() * (2.5 / steps)
        step = per_sample(step_size, problem.image, "step_size")
        best = Best(problem.image)
        for restart in range(restarts):
            climb(
                problem,
                step,
                best,
                steps=steps,
                random_start=random_start,
                restart=restart,
                early_stop=early_stop,
            )
        adversarial = round_toward(best.image, problem.image, image.dtype)
        return make_record(problem, adversarial, norm, best.trace) if return_record else adversarial
