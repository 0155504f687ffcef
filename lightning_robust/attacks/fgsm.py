"""The fast gradient sign method: one step."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from lightning_robust.attacks.ascent import single_step
from lightning_robust.attacks.contract import Mode, Model, attack_context
from lightning_robust.attacks.losses import LossFunction, LossName, resolve_loss
from lightning_robust.attacks.norms import NormName, resolve_norm
from lightning_robust.attacks.problem import check_image, make_problem, per_sample, round_toward
from lightning_robust.attacks.record import AttackRecord, make_record


@overload
def fgsm(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = ...,
    random_start: bool = ...,
    step_size: float | Tensor | None = ...,
    loss: LossName = ...,
    seeds: Tensor | None = ...,
    loss_fn: LossFunction | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[False] = ...,
) -> Tensor: ...


@overload
def fgsm(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = ...,
    random_start: bool = ...,
    step_size: float | Tensor | None = ...,
    loss: LossName = ...,
    seeds: Tensor | None = ...,
    loss_fn: LossFunction | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[True],
) -> AttackRecord: ...


def fgsm(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = "linf",
    random_start: bool = False,
    step_size: float | Tensor | None = None,
    loss: LossName = "cross_entropy",
    seeds: Tensor | None = None,
    loss_fn: LossFunction | None = None,
    mode: Mode = "eval",
    keep_statistics: bool = True,
    return_record: bool = False,
) -> Tensor | AttackRecord:
    """Move every image by one gradient step that raises its loss (Goodfellow et al., ICLR 2015).

    With ``random_start`` it is FGSM-RS (Wong et al., ICLR 2020): a uniform start in the ball, one step of 1.25 eps,
    and back into the ball. The step is returned as it is, also where it does not fool the model.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits. Normalization, resizing and purification belong inside it.
        image: images in [0, 1], shape (B, C, H, W). Half precision is attacked in float32 and returned as it came.
        target: class indices (B,), class probabilities (B, K), or what ``loss_fn`` takes, one row per sample.
        eps: budget in [0, 1] image units, one number or one per sample.
        norm: of the budget; ``linf`` steps along the gradient's sign, ``l2`` along the gradient.
        random_start: start from a random point of the ball.
        step_size: length of the step; by default ``eps``, and 1.25 ``eps`` from a random start.
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
        >>> image = torch.full((2, 3, 2, 2), 0.5)
        >>> adversarial = fgsm(model, image, torch.tensor([0, 1]), eps=8 / 255)
        >>> round((adversarial - image).abs().max().item() * 255, 3)
        8.0
    """
    check_image(image)
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
            step_size = problem.eps.flatten() * (1.25 if random_start else 1.0)
        step = per_sample(step_size, problem.image, "step_size")
        point = single_step(problem, step, random_start=random_start)
        adversarial = round_toward(point, problem.image, image.dtype)
        return make_record(problem, adversarial, norm, trace=[]) if return_record else adversarial
