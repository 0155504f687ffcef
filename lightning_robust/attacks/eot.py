"""Expectation over transformation: attack the mean of a random model's answers."""

from __future__ import annotations

import math
import warnings
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_robust import seeds as streams
from lightning_robust.attacks.seeded import Transform, takes_seeds
from lightning_robust.errors import InputError, NoEffectWarning

AverageName: TypeAlias = Literal["probabilities", "logits"]


def eot(
    model: Transform,
    n: int,
    *,
    average: AverageName = "probabilities",
    seed: int = 0,
    draws_at_once: int | None = None,
) -> ExpectedModel:
    """Answer the mean over ``n`` draws of a random model, so that any gradient attack meets the mean's gradient.

    Athalye et al., ICML 2018. The default is the logarithm of the mean probability: its cross-entropy is the loss of
    the mean, which is what a defense that averages its predictions shows. The mean of the losses, the other custom
    (AutoAttack's ``rand``), cannot be had through logits: a softmax sums to one, and the exponential of a mean of
    log-probabilities does not. For ``-log(p)`` the mean of the losses is never below either of the losses here.

    A model that takes ``seeds`` (such as :class:`~lightning_robust.defenses.Purified`, or ``bpda(defense, net)``) sees
    n copies of the batch, each with seeds of its own: derived from those of the call, else from the pixel values, and
    from ``seed`` and the draw's number. So a point has the same draws in any batch, and the next point new ones. A
    model that does not take them is called n times and has to draw by itself, from the global generator, which an
    attack gives back as it found it; its result then depends on the batch.

    Args:
        model: images (B, C, H, W) to logits (B, K), possibly with ``seeds``.
        n: draws, at least 1.
        average: of ``probabilities`` or of ``logits``.
        seed: another one gives other draws.
        draws_at_once: copies of the batch per forward pass of a model that takes seeds; None is all. With fewer than
            ``n`` the backward pass repeats each forward pass instead of storing it, which bounds the memory.

    Returns:
        A module, images (and optional ``seeds``, int64 of shape (B,)) to (B, K): log-probabilities, or mean logits.

    Raises:
        InputError: if a number is less than 1, or the average is unknown.

    Warns:
        NoEffectWarning: in the call, if a model that takes no seeds gave the same answer n times. (A random defense
            that seeds itself by content does, inside a Sequential.)

    Example:
        >>> model = lambda image, *, seeds: torch.where(seeds[:, None] > 0, 1.0, 3.0) * image.flatten(1)
        >>> eot(model, 1000, average="logits")(torch.ones(1, 1, 1, 2)).round()
        tensor([[2., 2.]])
    """
    if n < 1 or (draws_at_once is not None and draws_at_once < 1):
        raise InputError(f"n={n}, draws_at_once={draws_at_once}: give at least one draw, and one at once or None.")
    if average not in ("probabilities", "logits"):
        raise InputError(f"average={average!r} is unknown: choose 'probabilities' or 'logits'.")
    return ExpectedModel(model, n, average, seed, draws_at_once)


class ExpectedModel(nn.Module):
    """What :func:`eot` returns; its arguments are explained there."""

    def __init__(self, model: Transform, n: int, average: AverageName, seed: int, draws_at_once: int | None) -> None:
        super().__init__()
        self.model = model
        self.n, self.average, self.seed, self.draws_at_once = n, average, seed, draws_at_once

    def forward(self, image: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Return the mean answer, shape (B, K).

        Raises:
            InputError: if there is not one int64 seed per image, or the model's answer is not one row per image.
        """
        draws = self._seeded(image, seeds) if takes_seeds(self.model) else self._unseeded(image)
        if self.average == "logits":
            return draws.mean(dim=0)
        return draws.log_softmax(dim=-1).logsumexp(dim=0) - math.log(self.n)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"n={self.n}, average={self.average!r}, seed={self.seed}, draws_at_once={self.draws_at_once}"

    def _seeded(self, image: Tensor, seeds: Tensor | None) -> Tensor:
        base = streams.of_content(image) if seeds is None else streams.per_image(image, seeds)
        draws = [streams.derive(base, "eot", self.seed, draw) for draw in range(self.n)]
        size = self.draws_at_once or self.n
        if size >= self.n:
            return self._copies(image, torch.stack(draws))
        parts = [torch.stack(draws[begin : begin + size]) for begin in range(0, self.n, size)]
        return torch.cat([checkpoint(self._copies, image, part, use_reentrant=False) for part in parts])

    def _copies(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Logits of one copy of the batch per row of seeds, shape (rows, B, K)."""
        logits = self.model(image.repeat(len(seeds), 1, 1, 1), seeds=seeds.flatten())
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != seeds.numel():
            seen = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"The model returned {seen} for {seeds.numel()} images: eot needs a row of logits each.")
        return logits.view(*seeds.shape, -1)

    def _unseeded(self, image: Tensor) -> Tensor:
        draws = torch.stack([self.model(image) for _ in range(self.n)])
        if self.n > 1 and draws.numel() and bool((draws == draws[0]).all()):
            warnings.warn(
                f"All {self.n} draws gave the same answer, and the model takes no seeds: pass one whose forward does, "
                "such as Purified(model, defense) or bpda(defense, model).",
                NoEffectWarning,
                stacklevel=2,
            )
        return draws
