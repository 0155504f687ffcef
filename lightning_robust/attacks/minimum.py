"""What attacks that look for the smallest change share: inputs, the closest wrong point so far, the result."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_robust.attacks.contract import Model
from lightning_robust.attacks.losses import are_class_indices, margin
from lightning_robust.attacks.norms import L2, Norm
from lightning_robust.attacks.problem import Problem, make_problem
from lightning_robust.errors import InputError

# a margin that another batch's rounding could turn is none
_ROUNDING = 16


def minimum_problem(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None,
    norm: Norm,
    seeds: Tensor | None,
) -> Problem:
    """Check the inputs of an attack that looks for the smallest change; call it inside the attack's context.

    Args:
        model: images to logits.
        image: shape (B, C, H, W).
        target: class indices, shape (B,).
        eps: largest change worth returning, one or one per sample; None for any.
        norm: of the change.
        seeds: int64, shape (B,), or None.

    Returns:
        The problem; its loss is the margin, positive where the model is wrong.

    Raises:
        InputError: if an input does not fit.
    """
    if eps is None:
        # no change inside the box is longer than its diagonal
        eps = math.sqrt(math.prod(image.shape[1:])) + 1
    return make_problem(model, image, target, eps=eps, norm=norm, loss_fn=wrongness, seeds=seeds)


def resolve_l2(norm: str) -> Norm:
    """Return the L2 norm, the only one that these attacks measure in.

    Raises:
        InputError: if another one is asked for.
    """
    if norm != "l2":
        raise InputError(f"norm={norm!r}: this attack looks for the smallest change in 'l2'; leave norm out.")
    return L2()


def wrongness(logits: Tensor, target: Tensor) -> Tensor:
    """Largest logit of another class minus the target's, shape (B,): positive where the prediction is wrong.

    Raises:
        InputError: if there is no such thing: targets that are no class indices, or one class.
    """
    if not are_class_indices(logits, target) or logits.shape[1] < 2:
        raise InputError(
            f"The smallest change that fools a model needs class indices of shape (B,) and at least two classes, but "
            f"the targets have shape {tuple(target.shape)} and the logits {tuple(logits.shape)}: for other targets "
            "use pgd with loss_fn."
        )
    return margin(logits, target)


def surely_wrong(logits: Tensor, target: Tensor, confidence: float = 0.0) -> Tensor:
    """Whether another class leads by ``confidence``, and by more than the rounding of another batch could turn.

    Args:
        logits: shape (B, K).
        target: shape (B,).
        confidence: in units of the logits.

    Returns:
        Shape (B,); False where a logit in question is not finite.
    """
    gap = wrongness(logits, target)
    own = logits.gather(1, target[:, None])[:, 0]
    scale = torch.maximum(own.abs(), (own + gap).abs())
    return (gap > _ROUNDING * torch.finfo(logits.dtype).eps * scale) & (gap >= confidence)


def halve_line(clean: Tensor, far: Tensor, bisections: int, fooled: Callable[[Tensor], Tensor]) -> None:
    """Bisect the line from the clean to a wrong image for the boundary, offering points on the way.

    Args:
        clean: right, shape (B, C, H, W).
        far: wrong, likewise.
        bisections: points judged per line.
        fooled: judges points (B, C, H, W), keeps the wrong ones and says which are, shape (B,).
    """
    if len(clean) == 0:
        return
    low, high = torch.zeros_like(clean[:, :1, :1, :1]), torch.ones_like(clean[:, :1, :1, :1])
    for _ in range(bisections):
        middle = (low + high) / 2
        wrong = fooled(clean + middle * (far - clean)).view(-1, 1, 1, 1)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)


class Closest:
    """The smallest change of every sample so far that fools the model.

    Args:
        problem: of all samples.
        dtype: type of the caller's images; every point is judged as it would be returned.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self._problem, self._dtype = problem, dtype
        self.image = problem.image.clone()
        self.distance = torch.full_like(problem.image[:, 0, 0, 0], torch.inf)

    def start(self) -> tuple[Tensor, Tensor]:
        """Judge the clean images: one that is wrong already has distance 0.

        Returns:
            Index of the samples that have to be attacked, and the clean logits of all.
        """
        with torch.no_grad():
            logits = self._problem.logits(self._problem.image)
        wrong = wrongness(logits, self._problem.target) > 0
        self.distance[wrong] = 0
        return (~wrong).nonzero()[:, 0], logits

    def snap(self, point: Tensor) -> Tensor:
        """Return the point inside the box and in the precision that the caller gets, gradients passing through."""
        point = point.clamp(0, 1)
        return point + (point.to(self._dtype).to(point.dtype) - point).detach()

    def offer(self, index: Tensor, point: Tensor, wrong: Tensor) -> None:
        """Keep points, as snapped, of the samples at ``index`` that are wrong and closer than what was kept."""
        distance = self._problem.norm.size(point - self._problem.image[index])
        better = wrong & (distance < self.distance[index])
        chosen = index[better]
        self.image[chosen] = point[better]
        self.distance[chosen] = distance[better]

    def result(self) -> Tensor:
        """Return what was found within the budgets, checked by a forward pass of all, else the clean image."""
        clean = self._problem.image
        found = (self.distance <= self._problem.eps.flatten()) & (self.distance > 0)
        image = torch.where(found.view(-1, 1, 1, 1), self.image, clean)
        if bool(found.any()):
            found &= self._problem.evaluate(image).wrong
            image = torch.where(found.view(-1, 1, 1, 1), image, clean)
        return image.to(self._dtype)
