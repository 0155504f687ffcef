"""Carlini and Wagner's L2 attack: Adam on size plus misclassification, and a search for the price of the latter."""

from __future__ import annotations

import dataclasses
from typing import Literal, overload

import torch
from torch import Tensor

from lightning_robust.attacks.contract import Mode, Model, attack_context
from lightning_robust.attacks.minimum import Closest, halve_line, minimum_problem, resolve_l2, surely_wrong, wrongness
from lightning_robust.attacks.problem import Problem, check_image, slope
from lightning_robust.attacks.record import AttackRecord, make_record
from lightning_robust.errors import InputError

# keeps pixels of 0 and 1 where tanh has a slope, so that they can move; the authors' constant
_INSIDE = 0.999999
_BETAS, _ADAM_EPS = (0.9, 0.999), 1e-8
# an abort wants the loss to have fallen by this share in a tenth of the steps
_PROGRESS = 0.9999
_LARGEST = 1e10
# the authors' search ends with the highest price that is still open if it has this many rounds
_LAST_RESORT = 10


@overload
def carlini_wagner(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = ...,
    norm: Literal["l2"] = ...,
    steps: int = ...,
    searches: int = ...,
    learning_rate: float = ...,
    constant: float = ...,
    confidence: float = ...,
    abort_early: bool = ...,
    bisections: int = ...,
    seeds: Tensor | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[False] = ...,
) -> Tensor: ...


@overload
def carlini_wagner(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = ...,
    norm: Literal["l2"] = ...,
    steps: int = ...,
    searches: int = ...,
    learning_rate: float = ...,
    constant: float = ...,
    confidence: float = ...,
    abort_early: bool = ...,
    bisections: int = ...,
    seeds: Tensor | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[True],
) -> AttackRecord: ...


def carlini_wagner(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = None,
    norm: Literal["l2"] = "l2",
    steps: int = 1000,
    searches: int = 5,
    learning_rate: float = 5e-3,
    constant: float = 1e-2,
    confidence: float = 0.0,
    abort_early: bool = True,
    bisections: int = 10,
    seeds: Tensor | None = None,
    mode: Mode = "eval",
    keep_statistics: bool = True,
    return_record: bool = False,
) -> Tensor | AttackRecord:
    """Find the smallest L2 change that fools the model, by gradient descent for several prices of the prediction.

    Carlini and Wagner, S&P 2017: in the variable w of x = (tanh(w) + 1) / 2, Adam minimizes the squared change plus c
    times max(Z_target - max other Z + confidence, 0). The price c is searched per sample: by bisection once it has
    succeeded, times ten before. The closest wrong point of all steps is returned. Defaults are those of CleverHans 3.1;
    the authors' code has ``steps=10000, searches=9, learning_rate=1e-2, constant=1e-3``. There a whole batch is given
    up together; here every sample on its own, so that no result depends on its neighbors. An image that the model
    gets wrong anyway comes back as it is and counts as a success of distance 0.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits. Normalization, resizing and purification belong inside it.
        image: images in [0, 1], shape (B, C, H, W). Half precision is attacked in float32 and returned as it came.
        target: class indices, shape (B,).
        eps: largest L2 change worth returning, in [0, 1] image units, one number or one per sample: an image that
            needs more comes back clean, without success. None returns whatever was found.
        norm: ``l2``, the only one; taken so that all attacks are called alike.
        steps: of Adam per price, at least 1.
        searches: prices tried, at least 1. With 10 or more the last one is the highest still open, as in the
            authors' code.
        learning_rate: of Adam.
        constant: first price.
        confidence: lead of the other class, in units of the logits, that counts as success.
        abort_early: leave a sample whose loss did not fall in a tenth of the steps.
        bisections: of the line from the clean image to the result, at the end, toward the boundary. Ours; each costs a
            forward pass. 0 leaves it out.
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
        >>> image = torch.full((1, 1, 2, 2), 0.6)  # the boundary is 0.2 away
        >>> record = carlini_wagner(model, image, torch.tensor([0]), steps=100, constant=1.0, return_record=True)
        >>> record.success.item(), round(record.distance.item(), 2)
        (True, 0.2)
    """
    check_image(image)
    if min(steps, searches) < 1 or min(learning_rate, constant) <= 0 or min(confidence, bisections) < 0:
        raise InputError(
            f"steps={steps}, searches={searches}, learning_rate={learning_rate}, constant={constant}, "
            f"confidence={confidence}, bisections={bisections}: give at least one step and one search, a positive "
            "learning rate and constant, and no negative number."
        )
    with attack_context(model, image.device, mode=mode, keep_statistics=keep_statistics):
        problem = minimum_problem(model, image, target, eps=eps, norm=resolve_l2(norm), seeds=seeds)
        closest = Closest(problem, image.dtype)
        search = _Search(
            problem,
            closest,
            steps=steps,
            patience=max(1, steps // 10) if abort_early else steps,
            learning_rate=learning_rate,
            confidence=confidence,
        )
        search.run(searches, constant)
        search.approach(bisections)
        adversarial = closest.result()
        return make_record(problem, adversarial, norm, trace=[]) if return_record else adversarial


@dataclasses.dataclass(frozen=True)
class _Search:
    """One descent per price, on the samples that the model gets right."""

    problem: Problem
    closest: Closest
    steps: int
    patience: int
    learning_rate: float
    confidence: float

    def run(self, searches: int, constant: float) -> None:
        index, _ = self.closest.start()
        price = torch.full_like(self.problem.eps.flatten()[index], constant)
        low, high = torch.zeros_like(price), torch.full_like(price, _LARGEST)
        for search in range(searches):
            if search + 1 == searches >= _LAST_RESORT:
                price = high
            solved = self._descend(index, price)
            low = torch.where(solved, low, torch.maximum(low, price))
            high = torch.where(solved, torch.minimum(high, price), high)
            price = torch.where(high < _LARGEST, (low + high) / 2, price * 10)

    def approach(self, bisections: int) -> None:
        """Halve the line between the clean image and the closest point as often, keeping its wrong end."""
        distance = self.closest.distance
        index = (torch.isfinite(distance) & (distance > 0)).nonzero()[:, 0]
        part = self.problem.select(index)

        def fooled(point: Tensor) -> Tensor:
            point = self.closest.snap(point)
            with torch.no_grad():
                wrong = surely_wrong(part.logits(point), part.target, self.confidence)
            self.closest.offer(index, point, wrong)
            return wrong

        halve_line(part.image, self.closest.image[index], bisections, fooled)

    def _descend(self, index: Tensor, price: Tensor) -> Tensor:
        """Return which of the samples at ``index`` were fooled at their price, after a descent of their own each."""
        solved = torch.zeros_like(price, dtype=torch.bool)
        rows, part = torch.arange(len(index), device=index.device), self.problem.select(index)
        variable = torch.atanh(_INSIDE * (2 * part.image - 1))
        origin = _image_of(variable)
        mean, square = torch.zeros_like(variable), torch.zeros_like(variable)
        before = torch.full_like(price, torch.inf)
        for count in range(1, self.steps + 1):
            if len(rows) == 0:
                break
            loss, wrong, gradient = self._slope(part, index[rows], variable, origin, price[rows])
            solved[rows] |= wrong
            _adam_(variable, mean, square, gradient, count, self.learning_rate)
            if self.patience < self.steps and count % self.patience == 0:
                keep = loss <= _PROGRESS * before
                before = loss[keep]
                rows, part = rows[keep], part.select(keep)
                variable, origin, mean, square = variable[keep], origin[keep], mean[keep], square[keep]
        return solved

    def _slope(
        self, part: Problem, index: Tensor, variable: Tensor, origin: Tensor, price: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, success and gradient at a point, and offer the point."""
        point = _image_of(variable)
        snapped = self.closest.snap(point).requires_grad_()
        logits = part.logits(snapped)
        wrong = surely_wrong(logits.detach(), part.target, self.confidence)
        self.closest.offer(index, snapped.detach(), wrong)
        shortfall = price * (self.confidence - wrongness(logits, part.target)).clamp(min=0)
        change = point - origin
        loss = change.square().sum((1, 2, 3)) + shortfall.detach()
        # by the chain rule, so that the model alone is differentiated and a model without a gradient is noticed
        gradient = (slope(shortfall, snapped) + 2 * change) * (1 - torch.tanh(variable).square()) / 2
        return loss, wrong, gradient


def _image_of(variable: Tensor) -> Tensor:
    return (torch.tanh(variable) + 1) / 2


def _adam_(variable: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, count: int, rate: float) -> None:
    """Take one step in place; rows are independent, which lets samples leave."""
    mean.lerp_(gradient, 1 - _BETAS[0])
    square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    scale = square.div(1 - _BETAS[1] ** count).sqrt_().add_(_ADAM_EPS)
    variable.addcdiv_(mean, scale, value=-rate / (1 - _BETAS[0] ** count))
