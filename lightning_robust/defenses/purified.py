"""A net behind a defense, as one module; several runs vote."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust import seeds as streams
from lightning_robust.defenses._planes import check_whole
from lightning_robust.defenses.contract import Defense, unbound_maps
from lightning_robust.errors import InputError, NoEffectWarning
from lightning_robust.images import check_unit_batch

Model = Callable[[Tensor], Tensor]


def purified_logits(
    model: Model,
    defense: Defense,
    image: Tensor,
    *,
    seeds: Tensor,
    votes: int = 1,
    votes_at_once: int | None = None,
) -> Tensor:
    """Return a model's logits for independently purified copies of the images, of every run.

    Args:
        model: [0, 1] images to logits (N, K); normalization inside it.
        defense: stands before it.
        image: in [0, 1], shape (B, C, H, W).
        seeds: int64, shape (B,). A single run takes them as they are; of several, run r of an image draws from its
            seed and r.
        votes: number of runs.
        votes_at_once: how many runs share a forward pass of ``votes_at_once * B`` images; None is all.

    Returns:
        Logits, shape (votes, B, K).

    Raises:
        InputError: if the model does not return one row of logits per image, or the defense refuses the images.
    """
    check_unit_batch(image, "defenses", "Purify before the normalization.")
    if votes == 1:
        return _rows(model(defense(image, seeds=seeds)), image)[None]
    runs = [streams.derive(streams.per_image(image, seeds), "vote", run) for run in range(votes)]
    size = votes_at_once or votes
    logits = []
    for start in range(0, votes, size):
        chunk = runs[start : start + size]
        copies = image.repeat(len(chunk), 1, 1, 1)
        rows = _rows(model(defense(copies, seeds=torch.cat(chunk))), copies)
        logits.append(rows.reshape(len(chunk), len(image), -1))
    return torch.cat(logits)


def majority(logits: Tensor) -> Tensor:
    """Count the votes of several runs: ``log((count + mean probability) / (runs + 1))`` of each class.

    Exponentiated, the values of an image sum to 1. The largest belongs to the class that most runs put first; of
    classes with equally many votes, to the one of the higher mean probability. (The paper says "majority" alone; the
    rule for ties is ours.) The gradient is that of the mean probability: counts have none.

    Args:
        logits: shape (runs, B, K).

    Returns:
        Log-probabilities, shape (B, K), float32 or float64.

    Example:
        >>> logits = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 9.0]]])
        >>> majority(logits).argmax(dim=1), logits.mean(dim=0).argmax(dim=1)
        (tensor([0]), tensor([1]))
    """
    runs, _, classes = logits.shape
    mean = mean_log_probability(logits)
    count = F.one_hot(logits.argmax(dim=-1), classes).sum(dim=0).to(mean)
    return torch.logaddexp(count.log(), mean) - math.log(runs + 1)


def mean_log_probability(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean probability of several runs.

    Args:
        logits: shape (runs, B, K).

    Returns:
        Shape (B, K), float32 or float64.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))


class Purified(nn.Module):
    """A model that purifies its images; with several votes, the majority of as many runs (Ens-10 is ``votes=10``).

    One vote returns the model's own logits, several return :func:`majority`. An attacker should differentiate
    :meth:`mean_log_probability`: the counts of a majority are constant almost everywhere, and an attack on the voted
    result meets a gradient that is too small wherever a class has votes already.

    Args:
        model: [0, 1] images (N, C, H, W) to logits (N, K); normalization inside it.
        defense: stands before it. If it holds an activation map that belongs to no net yet, a copy of it is used,
            whose map is bound to ``model``.
        votes: number of runs, each with its own draws.
        seed: of the draws, for calls without seeds: they come from this and the pixel values, so that one image always
            meets the same draws and another ``seed`` is a fresh set of them.
        votes_at_once: how many runs share a forward pass; None is all. Fewer need less memory.

    Args (of the call):
        image: in [0, 1], shape (B, C, H, W).
        seeds: int64, shape (B,), instead of the above.

    Raises:
        InputError: if ``defense`` is no :class:`Defense`, or a number is no whole one of at least 1.

    Source: Prakash et al., "Deflecting Adversarial Attacks with Pixel Deflection" (CVPR 2018), Tables 1 to 3.
    """

    def __init__(
        self, model: Model, defense: Defense, votes: int = 1, *, seed: int = 0, votes_at_once: int | None = None
    ) -> None:
        super().__init__()
        check_votes(defense, votes, votes_at_once)
        self.model = model
        self.defense = defense.bound_to(model)
        self.votes, self.seed, self.votes_at_once = votes, seed, votes_at_once

    def forward(self, image: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Return logits of one run, or the voted log-probabilities of several; shape (B, K).

        Raises:
            InputError: if images or seeds do not fit.
        """
        if self.votes == 1:
            return self.model(self.defense(image, seeds=self._seeds(image, seeds)))
        return majority(self._logits(image, seeds))

    def mean_log_probability(self, image: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Return the logarithm of the runs' mean probability, shape (B, K); arguments as in the call."""
        return mean_log_probability(self._logits(image, seeds))

    def extra_repr(self) -> str:
        """Show the numbers."""
        return f"votes={self.votes}, seed={self.seed}, votes_at_once={self.votes_at_once}"

    def _logits(self, image: Tensor, seeds: Tensor | None) -> Tensor:
        seeds = self._seeds(image, seeds)
        return purified_logits(
            self.model, self.defense, image, seeds=seeds, votes=self.votes, votes_at_once=self.votes_at_once
        )

    def _seeds(self, image: Tensor, seeds: Tensor | None) -> Tensor:
        return streams.of_content(image, "purified", self.seed) if seeds is None else seeds


def check_votes(defense: object, votes: int, votes_at_once: int | None) -> None:
    """Refuse what cannot vote, and warn of votes that are all the same.

    Raises:
        InputError: if ``defense`` is no :class:`Defense`, or a number is no whole one of at least 1.
    """
    if not isinstance(defense, Defense):
        raise InputError(f"defense is a {type(defense).__name__}: give a lightning_robust.defenses.Defense.")
    check_whole("votes", votes, 1)
    if votes_at_once is not None:
        check_whole("votes_at_once", votes_at_once, 1)
    if votes > 1 and not defense.is_random:
        warnings.warn(
            f"{type(defense).__name__} draws nothing at random, so its {votes} votes are the same and cost {votes} "
            "times one: leave votes at 1.",
            NoEffectWarning,
            stacklevel=3,
        )


def wants_net(defense: Defense) -> bool:
    """Whether a defense holds an activation map that belongs to no net yet."""
    return bool(unbound_maps(defense))


def _rows(logits: Tensor, image: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(image):
        seen = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"The model returned {seen} for {len(image)} images: purification needs one row of class logits per image."
        )
    return logits
