"""L-BFGS inside the box on size plus misclassification, and a search for the price of the latter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_robust.attacks.box_minimizer import minimize_in_box
from lightning_robust.attacks.contract import Mode, Model, attack_context
from lightning_robust.attacks.losses import LossFunction, cross_entropy
from lightning_robust.attacks.minimum import Closest, halve_line, minimum_problem, resolve_l2, surely_wrong
from lightning_robust.attacks.problem import Problem, check_image, slope
from lightning_robust.attacks.record import AttackRecord, make_record
from lightning_robust.attacks.targets import TargetRule, nearest_rival, resolve_toward, surely_is
from lightning_robust.errors import InputError

# (logits, target, aim) to values of shape (B,)
_Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

_LARGEST = 1e10
# CleverHans ends with the highest price that is still open if the search has this many rounds
_LAST_RESORT = 10


@overload
def lbfgs(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = ...,
    norm: Literal["l2"] = ...,
    toward: Tensor | TargetRule | None = ...,
    steps: int = ...,
    searches: int = ...,
    constant: float = ...,
    history: int = ...,
    bisections: int = ...,
    seeds: Tensor | None = ...,
    loss_fn: LossFunction | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[False] = ...,
) -> Tensor: ...


@overload
def lbfgs(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = ...,
    norm: Literal["l2"] = ...,
    toward: Tensor | TargetRule | None = ...,
    steps: int = ...,
    searches: int = ...,
    constant: float = ...,
    history: int = ...,
    bisections: int = ...,
    seeds: Tensor | None = ...,
    loss_fn: LossFunction | None = ...,
    mode: Mode = ...,
    keep_statistics: bool = ...,
    return_record: Literal[True],
) -> AttackRecord: ...


def lbfgs(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor | None = None,
    norm: Literal["l2"] = "l2",
    toward: Tensor | TargetRule | None = None,
    steps: int = 1000,
    searches: int = 5,
    constant: float = 1e-2,
    history: int = 10,
    bisections: int = 10,
    seeds: Tensor | None = None,
    loss_fn: LossFunction | None = None,
    mode: Mode = "eval",
    keep_statistics: bool = True,
    return_record: bool = False,
) -> Tensor | AttackRecord:
    """Find a small L2 change that fools the model: minimize c times a loss plus the squared change, for several c.

    Szegedy et al., ICLR 2014, section 4.1, with the search and the constants of CleverHans 3.1: the price c grows
    tenfold until the solution fools the model and is then bisected, per sample. Every sample is a problem of its own,
    solved by a batched projected L-BFGS in place of SciPy's L-BFGS-B. The closest wrong point of all that were
    evaluated is kept.

    The paper aims at a given class (``toward``) by that class's cross-entropy. It has no untargeted form. Ours, the
    default, aims at the class with the nearest linearized boundary and takes the cross-entropy between that and
    the own class alone, so that on a linear model nothing pulls the solution away from the nearest point. CleverHans
    minimizes the negative cross-entropy of the own class instead: ``loss_fn=cross_entropy``.

    An image that the model gets wrong anyway comes back as it is and counts as a success of distance 0: leave it out of
    statistics of distance.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits. Normalization, resizing and purification belong inside it.
        image: images in [0, 1], shape (B, C, H, W). Half precision is attacked in float32 and returned as it came.
        target: class indices, shape (B,).
        eps: largest L2 change worth returning, in [0, 1] image units, one number or one per sample: an image that
            needs more comes back clean, without success. None returns whatever was found.
        norm: ``l2``, the only one; taken so that all attacks are called alike.
        toward: None for the form above; class indices (B,) that have to be reached; or a rule that names the class
            to aim at, where any other class counts: ``second`` (the most likely other one), ``least_likely``,
            ``random``.
        steps: evaluations of the loss per price, at least 1.
        searches: prices tried, at least 1. With 10 or more the last one is the highest still open, as in CleverHans.
        constant: first price.
        history: steps that the quasi-Newton method remembers, at least 1.
        bisections: of the line from the clean image to the result, at the end, toward the boundary. Ours: five prices
            are a coarse search. 0 leaves it out.
        seeds: int64, shape (B,); drawn from by ``toward="random"`` only. None takes them from the position in the
            batch.
        loss_fn: (logits, target) to losses of shape (B,) that the attack drives up; with ``toward``,
            (logits, toward) to losses that it drives down.
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
        >>> record = lbfgs(model, image, torch.tensor([0]), return_record=True)
        >>> record.success.item(), round(record.distance.item(), 2)
        (True, 0.2)
    """
    check_image(image)
    if min(steps, searches, history) < 1 or constant <= 0 or bisections < 0:
        raise InputError(
            f"steps={steps}, searches={searches}, history={history}, constant={constant}, bisections={bisections}: "
            "give at least one step, search and remembered step, a positive constant, and no negative number."
        )
    with attack_context(model, image.device, mode=mode, keep_statistics=keep_statistics):
        problem = minimum_problem(model, image, target, eps=eps, norm=resolve_l2(norm), seeds=seeds)
        closest = Closest(problem, image.dtype)
        index, logits = closest.start()
        part = problem.select(index)
        if toward is None:
            aim = nearest_rival(part)
        else:
            aim = resolve_toward(toward, logits, problem.target, problem.seeds)[index]
        search = _Search(
            problem=part,
            index=index,
            aim=aim,
            must_reach=isinstance(toward, Tensor),
            loss=_resolve_loss(loss_fn, aimed=toward is not None),
            closest=closest,
        )
        search.run(steps=steps, searches=searches, constant=constant, history=history)
        search.approach(bisections)
        adversarial = closest.result()
        return make_record(problem, adversarial, norm, trace=[]) if return_record else adversarial


def _resolve_loss(loss_fn: LossFunction | None, *, aimed: bool) -> _Loss:
    """Return what is driven up."""
    if aimed:
        return lambda logits, target, aim: -(loss_fn or cross_entropy)(logits, aim)
    if loss_fn is not None:
        return lambda logits, target, aim: loss_fn(logits, target)
    return _rivalry


def _rivalry(logits: Tensor, target: Tensor, aim: Tensor) -> Tensor:
    """Log-probability of the class aimed at, if it and the own class were the only ones."""
    return F.logsigmoid((logits.gather(1, aim[:, None]) - logits.gather(1, target[:, None]))[:, 0])


@dataclasses.dataclass(frozen=True)
class _Search:
    """The search for the right price, of the samples that have to be attacked.

    Args:
        problem: of these samples.
        index: where they stand among all.
        aim: classes to aim at.
        must_reach: that class alone counts, else any other than the target.
        loss: driven up.
        closest: where results go.
    """

    problem: Problem
    index: Tensor
    aim: Tensor
    must_reach: bool
    loss: _Loss
    closest: Closest

    def run(self, *, steps: int, searches: int, constant: float, history: int) -> None:
        """Solve for one price after another, each time from the clean image."""
        if len(self.index) == 0:
            return
        start = self.problem.image.flatten(1)
        low, price = torch.zeros_like(start[:, 0]), torch.full_like(start[:, 0], constant)
        high = torch.full_like(price, _LARGEST)
        for search in range(searches):
            if searches >= _LAST_RESORT and search == searches - 1:
                price = high
            solution = self._solve(start, price, steps, history)
            solved = self._fooled(solution.view_as(self.problem.image), torch.arange(len(start), device=start.device))
            low = torch.where(solved, low, torch.maximum(low, price))
            high = torch.where(solved, torch.minimum(high, price), high)
            price = torch.where(high < _LARGEST, (low + high) / 2, price * 10)

    def approach(self, bisections: int) -> None:
        """Halve the line between the clean image and the closest point as often, keeping its wrong end."""
        rows = torch.isfinite(self.closest.distance[self.index]).nonzero()[:, 0]
        far = self.closest.image[self.index[rows]]
        halve_line(self.problem.image[rows], far, bisections, lambda point: self._fooled(point, rows))

    def _solve(self, start: Tensor, price: Tensor, steps: int, history: int) -> Tensor:
        def objective(point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            part, clean, cost = self.problem.select(rows), start[rows], price[rows]
            leaf = point.view_as(part.image).detach().requires_grad_()
            logits = part.logits(leaf)
            loss = self.loss(logits, part.target, self.aim[rows])
            if loss.shape != cost.shape:
                raise InputError(
                    f"The loss has shape {tuple(loss.shape)} for {len(cost)} samples: loss_fn(logits, target) has to "
                    "return one value per sample, for example with reduction='none'."
                )
            gradient = slope(loss, leaf).flatten(1)
            self._offer(leaf.detach(), logits.detach(), rows)
            change = point - clean
            value = change.square().sum(dim=1) - cost * loss.detach()
            return value, 2 * change - cost[:, None] * gradient

        return minimize_in_box(objective, start, evaluations=steps, history=history)

    def _fooled(self, point: Tensor, rows: Tensor) -> Tensor:
        """Judge points as they would be returned, and offer them."""
        point = self.closest.snap(point)
        with torch.no_grad():
            logits = self.problem.select(rows).logits(point)
        return self._offer(point, logits, rows)

    def _offer(self, point: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        snapped = self.closest.snap(point)
        if self.must_reach:
            wrong = surely_is(logits, self.aim[rows])
        else:
            wrong = surely_wrong(logits, self.problem.target[rows])
        # rounded to half precision, a point is another one, whose own logits count
        as_returned = wrong & (snapped == point).flatten(1).all(dim=1)
        self.closest.offer(self.index[rows], snapped, as_returned)
        return wrong
