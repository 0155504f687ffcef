"""Watch for catastrophic overfitting: PGD accuracy on fixed training images, every so many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_robust.attacks import fgsm, pgd
from lightning_robust.errors import InputError
from lightning_robust.seeds import derive


@dataclass(frozen=True)
class OverfittingGuard:
    """What to watch and what to do.

    Single-step adversarial training can collapse within an epoch: FGSM accuracy rises and PGD accuracy falls to zero
    (Wong et al., ICLR 2020, whose code stops at a fall of more than 0.2).

    Args:
        every_n_steps: optimizer steps between two checks.
        images: how many training images are kept, over all processes.
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
    """The fixed images of one process, collected from the first batches of training."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._images: list[Tensor] = []
        self._targets: list[Tensor] = []

    @property
    def complete(self) -> bool:
        """Whether enough images are kept."""
        return sum(len(i) for i in self._images) >= self.wanted

    def collect(self, image: Tensor, target: Any) -> None:
        """Keep images and class indices until there are enough."""
        if self.complete or not isinstance(target, Tensor) or target.is_floating_point() or target.ndim != 1:
            return
        room = self.wanted - sum(len(i) for i in self._images)
        self._images.append(image[:room].detach().clone())
        self._targets.append(target[:room].detach().clone())

    def accuracy(
        self, network: nn.Module, *, eps: float, norm: Literal["linf", "l2"], steps: int
    ) -> tuple[Tensor, Tensor]:
        """Return the accuracy under FGSM and under PGD, each one number."""
        image, target = torch.cat(self._images), torch.cat(self._targets)
        seeds = derive(torch.arange(len(image), device=image.device), "guard")
        single = fgsm(network, image, target, eps=eps, norm=norm, seeds=seeds)
        iterated = pgd(network, image, target, eps=eps, norm=norm, seeds=seeds, steps=steps)
        accuracies = [_correct(network, adversarial, target).float().mean() for adversarial in (single, iterated)]
        return accuracies[0], accuracies[1]


@torch.no_grad()
def _correct(network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        logits: Tensor = network(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return logits.argmax(1) == target
