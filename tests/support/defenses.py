"""Defenses small enough to compute by hand."""

from __future__ import annotations

from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.defenses import Defense


class Grain(Defense):
    """Adds uniform noise."""

    is_random = True

    def __init__(self, amount: float = 0.2) -> None:
        super().__init__()
        self.amount = amount

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        return image + self.amount * (streams.uniform(seeds, tuple(image.shape[1:])).to(image) - 0.5)


class Coarse(Defense):
    """Keeps few levels."""

    is_differentiable = False

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.levels = levels

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        return (image * (self.levels - 1)).round() / (self.levels - 1)
