"""What a callback sees of one step, and how a loss is read from what the user's step returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from lightning_robust.errors import InputError, UnsupportedError
from lightning_robust.images import Images, ImageSpec

if TYPE_CHECKING:
    import pytorch_lightning as pl

ForwardFn = Callable[[nn.Module, Tensor], Any]


@dataclass
class Step:
    """One step of a run, between the user's batch and the user's loss.

    Attributes:
        module: the user's LightningModule.
        stage: "train", "validate", "test" or "predict".
        spec: how the batch is laid out and normalized.
        received: the image as the batch held it.
        target: what the batch held beside the image, or None.
        seeds: int64, one per sample.
        seed: one number for this step and rank.
        image: what the net will see: a [0, 1] float tensor (B, C, H, W), a uint8 one, or a list of either.
        published: the image after every transform that neither attacks nor purifies.
        original: the image before any transform; ``original_target`` goes with it.
        output: what the user's step returned.
        loss: the loss in it, None outside training.
    """

    module: pl.LightningModule
    stage: str
    spec: ImageSpec
    received: Images
    target: Any
    seeds: Tensor
    seed: int
    image: Images = field(init=False)
    published: Images = field(init=False)
    original: Images = field(init=False)
    original_target: Any = field(init=False)
    output: Any = None
    loss: Tensor | None = None
    leaf: Tensor | None = None

    def __post_init__(self) -> None:
        self.image = self._unit(self.received)
        self.published = self.image
        self.original, self.original_target = self.image, self.target

    @property
    def device(self) -> torch.device:
        """Device of the image."""
        return self.received[0].device

    @property
    def changed(self) -> bool:
        """Whether the user's step must get another batch."""
        return self.leaf is not None or self.image is not self.original or self.target is not self.original_target

    def float_image(self, wanted_by: str) -> Tensor:
        """Return the image as one float tensor.

        Raises:
            InputError: if it is uint8 or a list, saying what to do.
        """
        return _require_float(self.image, wanted_by)

    def published_image(self, wanted_by: str) -> Tensor:
        """Return the published image as one float tensor; errors as in :meth:`float_image`."""
        return _require_float(self.published, wanted_by)

    def to_batch(self, image: Images) -> Images:
        """Take a [0, 1] image to what the user's step expects: normalized, in the dtype of the batch."""
        if isinstance(image, Tensor):
            return for_batch(self.spec, image, self.received[0].dtype)
        return [for_batch(self.spec, one, raw.dtype) for one, raw in zip(image, self.received, strict=True)]

    def network(self, forward_fn: ForwardFn | None = None, output_key: int | str | None = None) -> NetworkLogits:
        """Return the user's net as a module from [0, 1] images to logits."""
        return NetworkLogits(self.module, self.spec, self.received[0].dtype, forward_fn, output_key)

    def logits(self, image: Tensor) -> Tensor:
        """Return the net's logits for a [0, 1] image."""
        logits: Tensor = self.network()(image)
        return logits

    def make_leaf(self) -> None:
        """Make the image a leaf of the graph, so that the loss of the user's step can be differentiated by it."""
        self.leaf = self.float_image("The input gradient").detach().clone().requires_grad_()
        # an operation in between: a first layer that works in place must not meet the leaf or a view of it
        self.image = self.leaf + 0

    def input_gradient(self, *, create_graph: bool = True) -> Tensor:
        """Return the gradient of the user's loss by the [0, 1] image, in float32 or wider, free of any loss scale.

        Raises:
            UnsupportedError: if the loss does not depend on the image.
        """
        if self.leaf is None or self.loss is None:
            raise UnsupportedError("The input gradient was asked for in a step that keeps no leaf.")
        scaler = getattr(self.module.trainer.precision_plugin, "scaler", None)
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        if not self.loss.requires_grad:
            raise UnsupportedError(_no_gradient(self.module))
        (gradient,) = torch.autograd.grad(self.loss * scale, self.leaf, create_graph=create_graph, allow_unused=True)
        if gradient is None:
            raise UnsupportedError(_no_gradient(self.module))
        return gradient / scale

    def _unit(self, image: Images) -> Images:
        if isinstance(image, Tensor):
            return as_unit(self.spec, image)
        return [as_unit(self.spec, one) for one in image]


class Contributor(Protocol):
    """What the pipeline asks of a callback; :class:`~lightning_robust.callbacks.callback.StepCallback` answers it."""

    transforms: bool
    attacks: bool
    purifies: bool
    penalizes: bool

    def acts_on(self, stage: str) -> bool:
        """Whether it takes part in a stage."""

    def transform(self, step: Step) -> None:
        """Replace image and target."""

    def around(self, step: Step) -> AbstractContextManager[None]:
        """Return a context in which the user's step runs."""

    def wants_input_gradient(self, step: Step) -> bool:
        """Whether the penalty needs the image as a leaf."""

    def penalty(self, step: Step) -> Tensor:
        """Return a term of the loss."""


class NetworkLogits(nn.Module):
    """A user's LightningModule seen as a net from [0, 1] images to logits.

    Args:
        module: the user's module; its modes and parameters are reached through this one.
        spec: its normalization is applied first.
        dtype: what the module expects its input in.
        forward_fn: ``(module, batch_image) -> logits``; None calls the module.
        output_key: where the logits are in what that returns.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ImageSpec,
        dtype: torch.dtype,
        forward_fn: ForwardFn | None = None,
        output_key: int | str | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.spec, self.dtype = spec, dtype
        self.forward_fn, self.output_key = forward_fn, output_key

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        given = for_batch(self.spec, image, self.dtype)
        try:
            output = self.module(given) if self.forward_fn is None else self.forward_fn(self.module, given)
        except NotImplementedError as error:
            raise UnsupportedError(
                f"{type(self.module).__name__} has no forward from images to logits, which is needed here. Define one, "
                "or pass forward_fn: a function (module, image) -> logits."
            ) from error
        if self.output_key is not None:
            output = (
                output[self.output_key] if hasattr(output, "__getitem__") else getattr(output, str(self.output_key))
            )
        if not isinstance(output, Tensor):
            raise UnsupportedError(
                f"{type(self.module).__name__} returned {type(output).__name__} where logits were expected. "
                'Name them by output_key, for example output_key="logits", or pass forward_fn(module, image) -> logits.'
            )
        return output


def loss_of(output: Any) -> Tensor | None:
    """Return the loss in what a training step returned: a tensor, a mapping with ``loss``, or None."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None


def with_loss(output: Any, loss: Tensor) -> Any:
    """Return a step's output with another loss, of the same type."""
    if isinstance(output, MutableMapping):
        new = copy.copy(output)
        new["loss"] = loss
        return new
    return {**output, "loss": loss} if isinstance(output, Mapping) else loss


def as_unit(spec: ImageSpec, image: Tensor) -> Tensor:
    """Take an image as the user's step handles it to [0, 1]: denormalized, float32 or wider; uint8 stays."""
    if image.dtype == torch.uint8:
        return image
    if image.dtype in (torch.float16, torch.bfloat16):
        image = image.float()
    normalization = spec.normalization
    return image if normalization is None else normalization.denormalize(image).clamp(0, 1)


def for_batch(spec: ImageSpec, image: Tensor, dtype: torch.dtype) -> Tensor:
    """Take a [0, 1] image to what the user's step handles: normalized, in its dtype; uint8 stays."""
    if image.dtype == torch.uint8:
        return image
    normalization = spec.normalization
    normalized = image if normalization is None else normalization.normalize(image)
    return normalized.to(dtype) if dtype.is_floating_point else normalized


def _require_float(image: Images, wanted_by: str) -> Tensor:
    if not isinstance(image, Tensor):
        raise InputError(
            f"{wanted_by} needs one tensor (B, C, H, W), but the batch holds a list of images of unequal size. "
            "Resize them to one size in the data pipeline."
        )
    if image.dtype == torch.uint8:
        raise InputError(
            f"{wanted_by} needs float images in [0, 1], but the batch holds uint8. Convert it before the step, for "
            "example `return image.float() / 255, target` in on_after_batch_transfer."
        )
    return image


def _no_gradient(module: nn.Module) -> str:
    return (
        f"The loss of {type(module).__name__}.training_step does not depend on the image of the batch by a graph. "
        "Return a loss that carries a gradient, or name the image by ImageSpec(image_key=...)."
    )
