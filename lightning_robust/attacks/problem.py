"""An attack's inputs, checked and made fit for gradients, and its results, made fit for the caller."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.attacks.contract import Model, module_of
from lightning_robust.attacks.losses import LossFunction, are_class_indices
from lightning_robust.attacks.norms import Linf, Norm
from lightning_robust.errors import InputError
from lightning_robust.images import check_unit_batch


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Loss and error of the model at one point, both of shape (B,); ``wrong`` is False where it has no meaning."""

    loss: Tensor
    wrong: Tensor


@dataclasses.dataclass(frozen=True)
class Problem:
    """Maximize a loss over the ball of ``norm`` and ``eps`` around ``image``, inside [0, 1].

    Args:
        model: images to logits.
        image: shape (B, C, H, W), float32 or float64.
        target: shape (B, ...).
        eps: budgets, shape (B, 1, 1, 1).
        seeds: int64, shape (B,).
        loss_fn: (logits, target) to losses of shape (B,).
        norm: of the ball.
        classes: smallest and largest class index among the targets, or None.
    """

    model: Model
    image: Tensor
    target: Tensor
    eps: Tensor
    seeds: Tensor
    loss_fn: LossFunction
    norm: Norm
    classes: tuple[int, int] | None

    def select(self, keep: Tensor) -> Problem:
        """Return the problem of some samples; ``keep`` is a mask or an index."""
        parts = ("image", "target", "eps", "seeds")
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in parts})

    def inside(self, point: Tensor) -> Tensor:
        """Return the point moved into the ball and the box; clipping to the box never lengthens a change."""
        return (self.image + self.norm.project(point - self.image, self.eps)).clamp(0, 1)

    def start(self, *path: int | str) -> Tensor:
        """Draw a point of the ball, clipped to the box."""
        change = self.norm.start(streams.derive(self.seeds, *path), self.image, self.eps)
        return self.inside(self.image + change)

    def evaluate(self, point: Tensor) -> Evaluation:
        """Judge the model at a point."""
        with torch.no_grad():
            return self._judge(point)

    def ascend(self, point: Tensor) -> tuple[Evaluation, Tensor]:
        """Judge the model at a point and return the gradient of the summed losses there, zero where not finite."""
        leaf = point.detach().requires_grad_()
        found = self._judge(leaf)
        gradient = slope(found.loss, leaf)
        return dataclasses.replace(found, loss=found.loss.detach()), gradient

    def logits(self, point: Tensor) -> Tensor:
        """Return the model's output at a point, checked, in the point's precision and with its graph if it has one."""
        # a copy: the first layer may change its input in place, which neither a leaf nor a point to be kept can bear
        logits = self.model((point + 0).to(_model_dtype(self.model, point.dtype)))
        self._check_logits(logits)
        if are_class_indices(logits, self.target):
            self._check_classes(logits.shape[1])
        return logits.to(point.dtype)

    def _judge(self, point: Tensor) -> Evaluation:
        logits = self.logits(point)
        loss = self.loss_fn(logits, self.target)
        if loss.shape != self.target.shape[:1]:
            raise InputError(
                f"The attack's loss has shape {tuple(loss.shape)} for {len(self.target)} samples: loss_fn(logits, "
                "target) has to return one value per sample, for example with reduction='none'."
            )
        if not are_class_indices(logits, self.target):
            return Evaluation(loss, torch.zeros_like(loss, dtype=torch.bool))
        return Evaluation(loss, logits.argmax(dim=1) != self.target)

    def _check_logits(self, logits: Tensor) -> None:
        if not isinstance(logits, Tensor) or logits.shape[:1] != self.target.shape[:1]:
            seen = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"The model returned {seen} for {len(self.target)} images: pass a function from images to logits with "
                "one row per image."
            )

    def _check_classes(self, count: int) -> None:
        if self.classes is None:
            return
        low, high = self.classes
        if low < 0 or high >= count:
            raise InputError(
                f"A target names class {low if low < 0 else high}, but the model tells {count} classes apart, from 0 "
                f"to {count - 1}: check the labels and the size of the model's last layer."
            )


def make_problem(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm,
    loss_fn: LossFunction,
    seeds: Tensor | None,
) -> Problem:
    """Check an attack's inputs and copy them; call it inside the attack's context, so that gradients may flow.

    Args:
        model: images to logits.
        image: as :func:`check_image` wants it; half precision is attacked in float32.
        target: class indices of any integer type, shape (B,), or what ``loss_fn`` takes, shape (B, ...).
        eps: one budget, or one per sample.
        norm: of the ball.
        loss_fn: (logits, target) to losses of shape (B,).
        seeds: int64, shape (B,); None derives them from zero and the position in the batch.

    Returns:
        The problem, sharing no memory with the inputs.

    Raises:
        InputError: if an input does not fit; the message says which and what to do.
    """
    if not isinstance(target, Tensor) or target.shape[:1] != image.shape[:1]:
        seen = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise InputError(f"The target is {seen} for {len(image)} images: give a tensor with one row per image.")
    if isinstance(norm, Linf) and isinstance(eps, int | float) and eps > 1:
        raise InputError(
            f"eps={eps:g} is more than the whole range of a pixel: images are in [0, 1], so a budget of {eps:g} levels "
            f"of 255 is eps={eps:g} / 255."
        )
    target = _indices_as_int64(target.detach()).clone()
    dtype = image.dtype if image.dtype == torch.float64 else torch.float32
    image = image.detach().clone().to(dtype).clamp(0, 1)
    return Problem(
        model=model,
        image=image,
        target=target,
        eps=per_sample(eps, image, "eps").view(-1, 1, 1, 1),
        seeds=streams.per_image(image, seeds).clone(),
        loss_fn=loss_fn,
        norm=norm,
        classes=_classes(target),
    )


def slope(output: Tensor, leaf: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Return the gradient of an output's sum with respect to a leaf, zero where it is not finite.

    Args:
        output: one value per sample, shape (B,); not their mean, so that a sample's part does not depend on the others.
        leaf: the images that the output was computed from, shape (B, C, H, W).
        retain_graph: keep the graph for another output.

    Returns:
        Gradient, shape (B, C, H, W).

    Raises:
        InputError: if there is no differentiable way from the leaf to the output.
    """
    gradient = None
    if output.requires_grad:
        (gradient,) = torch.autograd.grad(output.sum(), leaf, allow_unused=True, retain_graph=retain_graph)
    if gradient is None:
        raise InputError(
            "The model's output does not depend on the image through differentiable operations: look for "
            "detach(), no_grad(), argmax or a conversion to numpy between image and logits."
        )
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def per_sample(value: float | Tensor, image: Tensor, name: str) -> Tensor:
    """Return one non-negative finite number per image, shape (B,).

    Raises:
        InputError: if the number of values is neither one nor that of the images, or a value is negative or not finite.
    """
    values = torch.as_tensor(value, dtype=image.dtype, device=image.device).detach().clone()
    if values.numel() not in (1, len(image)) or values.ndim > 1:
        raise InputError(
            f"{name} has shape {tuple(values.shape)} for {len(image)} images: give one number, or one per image."
        )
    if not bool(((values >= 0) & torch.isfinite(values)).all()):
        raise InputError(f"{name}={value} is not a budget: give finite numbers of at least 0, in [0, 1] image units.")
    return values.expand(len(image)).clone()


def round_toward(point: Tensor, image: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the point in the image's own precision, where no value is farther from the image than before.

    Args:
        point: adversarial images in [0, 1], float32 or float64.
        image: clean images in [0, 1] of the same type, exact in ``dtype``.
        dtype: type of the caller's images: that of ``point``, float16 or bfloat16.

    Returns:
        The point as ``dtype``; a value that rounding moved away from the image is taken one step back.
    """
    rounded = point.to(dtype)
    if dtype == point.dtype:
        return rounded
    farther = (rounded.to(point.dtype) - image).abs() > (point - image).abs()
    # the bits of non-negative floats are ordered like their values (CUDA knows no nextafter for float16)
    bits, clean = rounded.abs().view(torch.int16), image.to(dtype).abs().view(torch.int16)
    return torch.where(farther, bits + (clean - bits).sign(), bits).view(dtype)


def check_image(image: Tensor) -> None:
    """Refuse what is not a batch of float images in [0, 1].

    Raises:
        InputError: naming type, shape or range.
    """
    check_unit_batch(
        image,
        "attacks",
        "Put the normalization inside the attacked model, for example model = nn.Sequential(normalize, net).",
    )


def _indices_as_int64(target: Tensor) -> Tensor:
    if target.ndim != 1 or target.is_floating_point() or target.is_complex():
        return target
    if target.dtype == torch.bool:
        raise InputError(
            "The targets are booleans, one per image: give class indices, integers from 0, for example target.long() "
            "for a model of two classes."
        )
    return target.to(torch.int64)


def _classes(target: Tensor) -> tuple[int, int] | None:
    if target.ndim != 1 or target.is_floating_point() or len(target) == 0:
        return None
    low, high = target.aminmax()
    return int(low), int(high)


def _model_dtype(model: Model, default: torch.dtype) -> torch.dtype:
    module = module_of(model)
    parameters = () if module is None else module.parameters()
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), default)
