"""What every defense promises: [0, 1] images in and out, reproducible draws, a backward pass for the attacker."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_robust import seeds as streams
from lightning_robust.errors import InputError
from lightning_robust.images import check_unit_batch, clip_unit


def unbound_maps(part: nn.Module) -> list[nn.Module]:
    """Return the modules in a part that take a net by ``bind(model)`` and have none yet."""
    maps = [module for module in part.modules() if callable(getattr(module, "bind", None))]
    return [module for module in maps if not getattr(module, "is_bound", False)]


class Defense(nn.Module):
    """An input transformation that stands before an unchanged net at inference.

    A subclass writes :meth:`purify` and declares the two class attributes. A call checks the images, computes
    in float32 or wider with autocast off, clamps the result to [0, 1] and returns it in the type it came in; the global
    random state is never read. The result for an image does not depend on its neighbors.

    Attributes:
        is_random: whether the result depends on the seeds.
        is_differentiable: whether the result carries the true gradient (almost everywhere, for fixed draws).

    Args (of the call):
        image: floats in [0, 1], shape (B, C, H, W). Normalization comes after the defense.
        seeds: int64 random seeds, shape (B,); None derives them from the pixel values, so that one image always meets
            the same draws and another image other ones.
    """

    is_random: ClassVar[bool] = False
    is_differentiable: ClassVar[bool] = True

    def forward(self, image: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Return the purified images.

        Raises:
            InputError: if the images are not floats in [0, 1] of shape (B, C, H, W), or the seeds do not fit.
        """
        unit, seeds = self._prepare(image, seeds)
        with torch.autocast(image.device.type, enabled=False):
            return clip_unit(self.purify(unit, seeds)).to(image.dtype)

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Transform checked images.

        Args:
            image: in [0, 1], float32 or float64, shape (B, C, H, W).
            seeds: int64, shape (B,).

        Returns:
            Images, shape (B, C, H', W'); values outside [0, 1] are clamped by the caller.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no purify.")

    def surrogate(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Return a differentiable stand-in whose backward pass BPDA takes; the identity unless a defense knows better.

        Args:
            image: as for :meth:`purify`.
            seeds: as for :meth:`purify`.

        Returns:
            Images of the shape that :meth:`purify` returns.
        """
        del seeds
        return image

    def straight_through(self, image: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Return the defense's own result with the gradient of :meth:`surrogate` (BPDA, Athalye et al., ICML 2018).

        Arguments and errors are those of the call.
        """
        unit, seeds = self._prepare(image, seeds)
        with torch.autocast(image.device.type, enabled=False):
            with torch.no_grad():
                value = self.purify(unit, seeds).clamp(0, 1)
            stand_in = self.surrogate(unit, seeds)
            # in this order the added term is exactly zero: the value stays inside the box
            return (value + (stand_in - stand_in.detach())).to(image.dtype)

    def bound_to(self, model: Callable[[Tensor], Tensor]) -> Defense:
        """Bind the activation maps of this defense that belong to no net yet.

        Args:
            model: [0, 1] images to logits, for the modules here that have a method ``bind(model)`` and a false
                ``is_bound``.

        Returns:
            The defense itself if there is none, otherwise a copy, so that one defense may serve several nets; parts
            without such a map are shared with it.
        """
        if not unbound_maps(self):
            return self
        # the nets that the user gave to other parts, which may be large, and whatever else needs no net
        shared = {id(part): part for part in self.modules() if not unbound_maps(part)}
        bound = copy.deepcopy(self, shared)
        for unbound in unbound_maps(bound):
            unbound.bind(model)  # type: ignore[operator]
        return bound

    def _prepare(self, image: Tensor, seeds: Tensor | None) -> tuple[Tensor, Tensor]:
        check_unit_batch(image, "defenses", "Purify before the normalization.")
        unit = image if image.dtype == torch.float64 else image.float()
        unit = clip_unit(unit)
        return unit, streams.of_content(unit, "defense") if seeds is None else streams.per_image(unit, seeds)


class Sequence(Defense):
    """Defenses one after another, each with random streams of its own.

    Args:
        defenses: in the order in which they are applied.

    Raises:
        InputError: if there is none, or one is not a :class:`Defense`.
    """

    def __init__(self, defenses: Iterable[Defense]) -> None:
        super().__init__()
        stages = list(defenses)
        strangers = [type(stage).__name__ for stage in stages if not isinstance(stage, Defense)]
        if not stages or strangers:
            raise InputError(f"Sequence was given {strangers or 'no defense'}: give at least one Defense, in a list.")
        self.stages = nn.ModuleList(stages)

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether any stage is."""
        return any(stage.is_random for stage in self._defenses())

    @property
    def is_differentiable(self) -> bool:  # type: ignore[override]
        """Whether every stage is."""
        return all(stage.is_differentiable for stage in self._defenses())

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Apply the stages in order."""
        for position, stage in enumerate(self._defenses()):
            image = stage(image, seeds=streams.derive(seeds, position))
        return image

    def surrogate(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Chain the stages' surrogates, with the draws of :meth:`purify`."""
        for position, stage in enumerate(self._defenses()):
            image = clip_unit(stage.surrogate(image, streams.derive(seeds, position)))
        return image

    def straight_through(self, image: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Chain the stages' own straight-through passes, each at the point that its predecessor returned."""
        unit, seeds = self._prepare(image, seeds)
        for position, stage in enumerate(self._defenses()):
            unit = stage.straight_through(unit, seeds=streams.derive(seeds, position))
        return unit.to(image.dtype)

    def _defenses(self) -> list[Defense]:
        return [stage for stage in self.stages if isinstance(stage, Defense)]
