"""The iterative gradient sign method: small steps from the clean image, left at the first success."""

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
def igsm(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = ...,
    steps: int = ...,
    step_size: float | Tensor | None = ...,
    loss: LossName = ...,
    seeds: Tensor | None = ...,
    loss_fn: LossFunction | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[False] = ...,
) -> Tensor: ...


@overload
def igsm(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = ...,
    steps: int = ...,
    step_size: float | Tensor | None = ...,
    loss: LossName = ...,
    seeds: Tensor | None = ...,
    loss_fn: LossFunction | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[True],
) -> AttackRecord: ...


def igsm(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: NormName = "linf",
    steps: int = 10,
    step_size: float | Tensor | None = None,
    loss: LossName = "cross_entropy",
    seeds: Tensor | None = None,
    loss_fn: LossFunction | None = None,
    mode: Mode = "eval",
    keep_statistics: bool = True,
    return_record: bool = False,
) -> Tensor | AttackRecord:
    """Step along the gradient's sign and leave every image at its first wrong prediction (Kurakin et al., 2017).

    Also known as the basic iterative method. It starts from the clean image and clips to the ball and the box after
    every step. An image that is never classified wrong comes back at its highest loss. Stopping at the first success is
    how "Deflecting Adversarial Attacks with Pixel Deflection" (CVPR 2018) describes it; the defaults are CleverHans 3's
    10 steps, and its 0.05 of a budget of 0.3 as step.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits. Normalization, resizing and purification belong inside it.
        image: images in [0, 1], shape (B, C, H, W). Half precision is attacked in float32 and returned as it came.
        target: class indices (B,), class probabilities (B, K), or what ``loss_fn`` takes, one row per sample.
        eps: budget in [0, 1] image units, one number or one per sample.
        norm: of the budget; ``linf`` steps along the gradient's sign, ``l2`` along the gradient at unit length.
        steps: at most, at least 1.
        step_size: length of a step; by default ``eps / 6``.
        loss: ``cross_entropy``, or ``margin``, which keeps its gradient where a confident model's probabilities
            are 0 or 1.
        seeds: int64, shape (B,). Nothing is drawn; taken so that all attacks are called alike.
        loss_fn: (logits, target) to losses of shape (B,), in place of ``loss``.
        mode: ``eval`` makes each sample's result independent of its neighbors. ``train`` attacks with batch statistics
            and dropout on.
        keep_statistics: in ``train`` mode, leave the running statistics as they are.
        return_record: return an :class:`AttackRecord` with success, loss and distance per sample.

    Returns:
        Adversarial images, detached, finite, in [0, 1] and within the budget; or the record that holds them. An image
        with a budget of zero comes back bit for bit, and so does one that is misclassified already.

    Raises:
        InputError: if images, targets, budget or options do not fit, or the model gives no gradient.

    Example:
        >>> import torch
        >>> model = lambda image: torch.stack([image.mean((1, 2, 3)), image.new_tensor([0.52])], dim=1)
        >>> adversarial = igsm(model, torch.full((1, 1, 2, 2), 0.54), torch.tensor([0]), eps=0.06)
        >>> round(adversarial.mean().item(), 3)
        0.51
    """
    check_image(image)
    if steps < 1:
        raise InputError(f"steps={steps}: give at least one step.")
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
        step = per_sample(problem.eps.flatten() / 6 if step_size is None else step_size, problem.image, "step_size")
        best = Best(problem.image)
        climb(problem, step, best, steps=steps, random_start=False, restart=0, early_stop=True)
        adversarial = round_toward(best.image, problem.image, image.dtype)
        return make_record(problem, adversarial, norm, best.trace) if return_record else adversarial
