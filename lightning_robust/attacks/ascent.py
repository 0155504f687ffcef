"""The loop that gradient attacks share: signed or normalized steps, projected, the best point kept."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.attacks.problem import Evaluation, Problem


class Best:
    """The best point of every sample so far: a wrong prediction beats a right one, then the higher loss wins.

    Args:
        image: the clean images; what is returned for a sample whose loss was never a number and never wrong.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image.clone()
        self.loss = torch.full_like(image[:, 0, 0, 0], -torch.inf)
        self.wrong = torch.zeros_like(self.loss, dtype=torch.bool)
        self.trace: list[Tensor] = []

    def update(self, index: Tensor, point: Tensor, found: Evaluation) -> None:
        """Offer points of the samples at ``index``."""
        row = torch.full_like(self.loss, torch.nan)
        row[index] = found.loss
        self.trace.append(row)
        old_loss, old_wrong = self.loss[index], self.wrong[index]
        better = (found.wrong & ~old_wrong) | ((found.wrong == old_wrong) & (found.loss > old_loss))
        chosen = index[better]
        self.image[chosen] = point[better]
        self.loss[chosen] = found.loss[better]
        self.wrong[chosen] = found.wrong[better]


def single_step(problem: Problem, step_size: Tensor, *, random_start: bool) -> Tensor:
    """Return the point after one projected step, which is not judged.

    Args:
        problem: what to maximize.
        step_size: shape (B,).
        random_start: start from a random point of the ball, else from the clean image.

    Returns:
        Images, shape (B, C, H, W).
    """
    point = problem.start("restart", 0) if random_start else problem.image
    _, gradient = problem.ascend(point)
    return problem.inside(point + step_size.view(-1, 1, 1, 1) * problem.norm.direction(gradient))


def climb(
    problem: Problem,
    step_size: Tensor,
    best: Best,
    *,
    steps: int,
    random_start: bool,
    restart: int,
    early_stop: bool,
) -> None:
    """Run one restart on the samples whose best point is not yet wrong, and offer every point to ``best``.

    Args:
        problem: of all samples.
        step_size: shape (B,).
        best: updated in place.
        steps: gradient steps; one more point than that is judged.
        random_start: start from a random point of the ball, else from the clean image.
        restart: names the random stream.
        early_stop: leave a sample as soon as one of its points is wrong.
    """
    index = (~best.wrong).nonzero()[:, 0]
    part, size = problem.select(index), step_size[index].view(-1, 1, 1, 1)
    point = part.start("restart", restart) if random_start else part.image
    for _ in range(steps):
        if len(index) == 0:
            return
        found, gradient = part.ascend(point)
        best.update(index, point, found)
        point = part.inside(point + size * part.norm.direction(gradient))
        if early_stop and bool(found.wrong.any()):
            keep = ~found.wrong
            index, part, size, point = index[keep], part.select(keep), size[keep], point[keep]
    best.update(index, point, part.evaluate(point))
