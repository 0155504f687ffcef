"""The two balls that attacks stay in: how to start, step, project and measure."""

from __future__ import annotations

import math
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.errors import InputError

NormName: TypeAlias = Literal["linf", "l2"]


class Norm(Protocol):
    """One norm. Budgets have shape (B, 1, 1, 1), changes (B, C, H, W), seeds (B,)."""

    def start(self, seeds: Tensor, change: Tensor, eps: Tensor) -> Tensor:
        """Draw a change uniformly from the ball."""

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the steepest ascent of unit size; zero where the gradient is."""

    def project(self, change: Tensor, eps: Tensor) -> Tensor:
        """Return the nearest change inside the ball."""

    def size(self, change: Tensor) -> Tensor:
        """Return the norm per sample, shape (B,)."""


class Linf:
    """Largest absolute change of a value."""

    def start(self, seeds: Tensor, change: Tensor, eps: Tensor) -> Tensor:
        """Draw every value uniformly from [-eps, eps]."""
        draw = streams.uniform(seeds, tuple(change.shape[1:]), "start").to(change.dtype)
        return (2 * draw - 1) * eps

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the sign."""
        return gradient.sign()

    def project(self, change: Tensor, eps: Tensor) -> Tensor:
        """Clip every value."""
        return torch.maximum(torch.minimum(change, eps), -eps)

    def size(self, change: Tensor) -> Tensor:
        """Return the largest absolute value."""
        return change.abs().flatten(1).amax(dim=1)


class L2:
    """Euclidean length of the change."""

    def start(self, seeds: Tensor, change: Tensor, eps: Tensor) -> Tensor:
        """Draw uniformly from the ball: a Gaussian direction, and a radius of density r^(d - 1)."""
        normal = streams.normal(seeds, tuple(change.shape[1:]), "direction").to(change.dtype)
        radius = streams.uniform(seeds, (1, 1, 1), "radius").to(change.dtype) ** (1 / math.prod(change.shape[1:]))
        return self.direction(normal) * radius * eps

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the gradient at unit length; scaled by its largest value first, so that no square underflows."""
        gradient = gradient / _per_sample(gradient.abs().flatten(1).amax(dim=1)).clamp(min=_tiny(gradient))
        return gradient / _per_sample(self.size(gradient)).clamp(min=_tiny(gradient))

    def project(self, change: Tensor, eps: Tensor) -> Tensor:
        """Shorten what is too long."""
        return change * (eps / _per_sample(self.size(change)).clamp(min=_tiny(change))).clamp(max=1)

    def size(self, change: Tensor) -> Tensor:
        """Return the length."""
        length: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
        return length


def resolve_norm(norm: NormName) -> Norm:
    """Return the norm of a name.

    Raises:
        InputError: if the name is unknown.
    """
    norms: dict[str, Norm] = {"linf": Linf(), "l2": L2()}
    if norm not in norms:
        raise InputError(f"norm={norm!r} is unknown: choose 'linf' or 'l2'.")
    return norms[norm]


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
