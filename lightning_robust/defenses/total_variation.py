"""Images of small total variation near the given one: Chambolle's denoiser, and the inpainting of Guo et al."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.defenses._planes import check_choice, check_range, check_whole
from lightning_robust.defenses.contract import Defense


class TotalVariationChambolle(Defense):
    """Minimize ``sum (u - image)^2 / (2 weight) + TV(u)`` in every channel by Chambolle's projection.

    The same steps and the same stopping rule as scikit-image's ``denoise_tv_chambolle``, for all channels of the batch
    at once: a channel that has converged is kept while the others go on. The gradient is that of the unrolled
    iterations and holds all of them in memory.

    Args:
        weight: strength. 0.1 is what the released code of pixel deflection passes.
        tolerance: stop where the objective changes by less than this share of its first value.
        iterations: at most.

    Raises:
        InputError: if an argument is out of range.

    Source:
        Chambolle, JMIV 2004; parameters from the released code of Prakash et al., CVPR 2018.
    """

    def __init__(self, *, weight: float = 0.1, tolerance: float = 2e-4, iterations: int = 200) -> None:
        super().__init__()
        check_range("weight", weight, 1e-6)
        check_range("tolerance", tolerance, 0)
        check_whole("iterations", iterations, 1)
        self.weight = weight
        self.tolerance = tolerance
        self.iterations = iterations

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"weight={self.weight:g}, tolerance={self.tolerance:g}, iterations={self.iterations}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Denoise the batch."""
        del seeds
        result = image
        gradient = _gradient(image)
        length = _square_length(gradient).sqrt()
        first = previous = self.weight * _plane_sum(length.detach())
        done = torch.zeros_like(first, dtype=torch.bool)
        dual = [torch.zeros_like(image), torch.zeros_like(image)]
        for _ in range(self.iterations - 1):
            shrink = 1 / (1 + (0.25 / self.weight) * length)
            dual = [(old + 0.25 * new) * shrink for old, new in zip(dual, gradient, strict=True)]
            change = _divergence(dual)
            result = torch.where(done, result, image + change)
            gradient = _gradient(image + change)
            length = _square_length(gradient).sqrt()
            objective = _plane_sum(change.detach().square()) + self.weight * _plane_sum(length.detach())
            done = done | ((previous - objective).abs() <= self.tolerance * first)
            if bool(done.all()):
                break
            previous = objective
        return result


class TotalVariationMinimization(Defense):
    """Drop half of the values at random and fill them by minimizing total variation (TVM).

    Minimizes ``sum over kept values of (u - image)^2 + weight * TV(u)`` with the isotropic total variation, one channel
    at a time and with no flux over the border. The released codes solve it by split Bregman steps from pixel to pixel;
    here a primal-dual method of as many steps does all pixels at once.
    The gradient is that of the unrolled steps and holds all of them in memory.

    Args:
        drop_rate: probability of dropping a value. 0 denoises without a draw.
        weight: of the total variation. 0.03 is the paper's; its attackers' code solves exactly this, the authors' own
            weighs the data half as much (``weight=0.06`` here).
        drop: ``value`` draws for every channel of a pixel, as the authors do; ``pixel`` once, as the attackers do.
        iterations: steps.

    Raises:
        InputError: if an argument is out of range.

    Source:
        Guo et al., ICLR 2018, section 4.2 and released code; Athalye et al., ICML 2018, released code. Solver:
        Chambolle and Pock, JMIV 2011, algorithm 1.
    """

    def __init__(
        self,
        *,
        drop_rate: float = 0.5,
        weight: float = 0.03,
        drop: Literal["value", "pixel"] = "value",
        iterations: int = 100,
    ) -> None:
        super().__init__()
        check_range("drop_rate", drop_rate, 0, 0.99)
        check_range("weight", weight, 1e-6)
        check_choice("drop", drop, ("value", "pixel"))
        check_whole("iterations", iterations, 1)
        self.drop_rate = drop_rate
        self.weight = weight
        self.drop = drop
        self.iterations = iterations

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether values are dropped."""
        return self.drop_rate > 0

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"drop_rate={self.drop_rate:g}, weight={self.weight:g}, drop={self.drop!r}, iterations={self.iterations}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Drop and fill."""
        channels = image.shape[1] if self.drop == "value" else 1
        kept = streams.uniform(seeds, (channels, *image.shape[2:]), "total_variation") >= self.drop_rate
        # of the steps tried on photographs at weight 0.03, the one that converged fastest; the objective scales it
        primal_step = 2 / 3 * self.weight
        dual_step = 1 / (8 * primal_step)
        pull = kept.to(image.dtype) * (2 * primal_step / self.weight)
        data, damping = pull * image, 1 / (1 + pull)
        solution = leading = _fill(image, kept)
        dual = [torch.zeros_like(image), torch.zeros_like(image)]
        for _ in range(self.iterations):
            dual = [old.add(new, alpha=dual_step) for old, new in zip(dual, _gradient(leading), strict=True)]
            shrink = _square_length(dual).clamp_min(1).rsqrt()
            dual = [part * shrink for part in dual]
            updated = (data + solution.add(_divergence(dual), alpha=primal_step)) * damping
            leading = 2 * updated - solution
            solution = updated
        return solution


def _fill(image: Tensor, kept: Tensor) -> Tensor:
    """Put the mean of the kept values around it in the place of each dropped one, so that nothing of it remains."""
    share = F.avg_pool2d(kept.to(image.dtype), 7, stride=1, padding=3)
    around = F.avg_pool2d(torch.where(kept, image, 0.0), 7, stride=1, padding=3)
    return torch.where(kept, image, torch.where(share > 0, around / share.clamp_min(1e-6), 0.5))


def _gradient(plane: Tensor) -> list[Tensor]:
    """Forward differences down and right, zero at the last row and column."""
    return [F.pad(plane.diff(dim=-2), (0, 0, 0, 1)), F.pad(plane.diff(dim=-1), (0, 1))]


def _divergence(field: list[Tensor]) -> Tensor:
    """The negative transpose of :func:`_gradient`, for fields that are zero where it is."""
    down, right = field
    return down - F.pad(down[..., :-1, :], (0, 0, 1, 0)) + (right - F.pad(right[..., :-1], (1, 0)))


def _square_length(field: list[Tensor]) -> Tensor:
    # never zero, where its root has no derivative
    return field[0].square().add(1e-24).addcmul(field[1], field[1])


def _plane_sum(values: Tensor) -> Tensor:
    # in float64, so that the step at which a channel stops does not depend on the order of a sum
    return values.sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
