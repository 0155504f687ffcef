"""Watch for catastrophic overfitting: PGD accuracy on fixed training images, every so many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_robust.attacks import fgsm, frozen_model, pgd
from lightning_robust.errors import InputError
from lightning_robust.seeds import derive


@dataclass(frozen=True)
class OverfittingGuard:
    """What to watch and what to do.

    Single-step adversarial training can collapse within an epoch: FGSM accuracy rises and PGD accuracy falls to zero
    (Wong et al., ICLR 2020, whose code stops at a fall of more than 0.2).

    The images are the first of the run, before this package's callbacks change them; a resumed run collects anew and
    takes its first check as the baseline. ``restore`` loads weights only: the optimizer keeps its momentum.

    Args:
        every_n_steps: optimizer steps between two checks.
        images: how many training images are kept, over all processes; at most those of one epoch.
        steps: of PGD.
        drop: fall of PGD accuracy between two checks that counts as collapse.
        action: "warn", "stop" training, or "restore" the weights of the last good check and go on.
    """

    every_n_steps: int = 200
    images: int = 256
    steps: int = 10
    drop: float = 0.2
    action: Literal["warn", "stop", "restore"] = "warn"

    def __post_init__(self) -> None:
        if self.every_n_steps < 1 or self.images < 1 or self.steps < 1 or not 0 < self.drop <= 1:
            raise InputError(f"{self} should have positive counts and a drop in (0, 1].")
        if self.action not in ("warn", "stop", "restore"):
            raise InputError(f'action={self.action!r} of OverfittingGuard should be "warn", "stop" or "restore".')


class GuardSet:
    """The fixed images of one process: the first of the run's training images, as the data pipeline made them."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.refused: str | None = None
        self._images: list[Tensor] = []
        self._targets: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(images) for images in self._images)

    def collect(self, image: Any, target: Any) -> None:
        """Keep images and their class indices until there are enough."""
        if len(self) >= self.wanted:
            return
        if not isinstance(target, Tensor) or target.is_floating_point() or target.ndim != 1:
            self.refused = "targets are no class indices"
            return
        room = self.wanted - len(self)
        self._images.append(image[:room].detach().clone())
        self._targets.append(target[:room].detach().clone())

    def counts(
        self, network: nn.Module, *, eps: float, norm: Literal["linf", "l2"], steps: int
    ) -> tuple[int, int, int]:
        """Return how many images stay right under FGSM, how many under PGD, and how many there are."""
        single = iterated = 0
        with frozen_model(network):
            for number, (image, target) in enumerate(zip(self._images, self._targets, strict=True)):
                seeds = derive(torch.arange(len(image), device=image.device), "guard", number)
                once = fgsm(network, image, target, eps=eps, norm=norm, seeds=seeds)
                often = pgd(network, image, target, eps=eps, norm=norm, seeds=seeds, steps=steps)
                with torch.no_grad():
                    single += int((network(once).argmax(1) == target).sum())
                    iterated += int((network(often).argmax(1) == target).sum())
        return single, iterated, len(self)
