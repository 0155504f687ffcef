"""Backward pass differentiable approximation: a defense's own value, the gradient of a stand-in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_robust.attacks.contract import Model
from lightning_robust.attacks.seeded import Transform, call_seeded
from lightning_robust.errors import InputError


def bpda(defense: Transform, model: Model | None = None, *, surrogate: Transform | None = None) -> StraightThrough:
    """Let gradients pass through a defense that has none, or none that helps (Athalye et al., ICML 2018).

    Forward, the result is the defense's own, bit for bit; backward, the gradient is that of a stand-in ``g``:
    ``defense(x) + g(x) - g(x).detach()``. Any gradient attack takes the result as its model. The stand-in is taken at
    x; with the identity, the gradient of the loss at the purified image is applied to the image, as in the attack that
    broke Pixel Deflection (Athalye and Carlini, arXiv 1804.03286).

    Args:
        defense: images to images in [0, 1]. One with a method ``straight_through(image, *, seeds=None)``, as every
            :class:`~lightning_robust.defenses.Defense` has, knows its own stand-in; of any other callable it is the
            identity. It may leave torch: it is given detached images. One with a method ``bound_to(model)``, as every
            ``Defense`` has, takes its activation maps from ``model`` where they belong to no net yet.
        model: images to logits, applied after the defense; None returns a transformation of images.
        surrogate: differentiable stand-in to use instead, images to images of the defense's shape.

    Returns:
        A module, images (and optional ``seeds``, int64 of shape (B,), for what takes them) to images or logits. The
        modules inside it follow its mode and device.

    Example:
        >>> leaf = torch.tensor([0.2, 0.7]).requires_grad_()
        >>> value = bpda(torch.round)(leaf)
        >>> value.tolist(), torch.autograd.grad(value.sum(), leaf)[0].tolist()
        ([0.0, 1.0], [1.0, 1.0])
    """
    return StraightThrough(defense, model, surrogate)


class StraightThrough(nn.Module):
    """What :func:`bpda` returns; its arguments are explained there."""

    def __init__(self, defense: Transform, model: Model | None, surrogate: Transform | None) -> None:
        super().__init__()
        bound_to = None if model is None else getattr(defense, "bound_to", None)
        self.defense = defense if bound_to is None else bound_to(model)
        self.model, self.surrogate = model, surrogate

    def forward(self, image: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Return the purified images, or their logits.

        Raises:
            InputError: if the stand-in's shape is not the defense's.
        """
        own = getattr(self.defense, "straight_through", None)
        if own is not None and self.surrogate is None:
            purified = own(image, seeds=seeds)
        else:
            purified = self._with_stand_in(image, seeds)
        return purified if self.model is None else call_seeded(self.model, purified, seeds)

    def _with_stand_in(self, image: Tensor, seeds: Tensor | None) -> Tensor:
        with torch.no_grad():
            value = call_seeded(self.defense, image.detach(), seeds).to(image)
        stand_in = image if self.surrogate is None else call_seeded(self.surrogate, image, seeds)
        if stand_in.shape != value.shape:
            raise InputError(
                f"The defense turned images of shape {tuple(image.shape)} into {tuple(value.shape)}, its stand-in into "
                f"{tuple(stand_in.shape)}: give a surrogate of the defense's shape, for example F.interpolate."
            )
        # in this order the added term is exactly zero: the value is the defense's own
        return value + (stand_in - stand_in.detach())
