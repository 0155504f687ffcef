"""Jacobian frequency regularization of the training loss of a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_robust.callbacks.callback import StepCallback, refuse_sharded
from lightning_robust.callbacks.contribution import ForwardFn, Step
from lightning_robust.callbacks.pictures import log_picture
from lightning_robust.errors import InputError, UnsupportedError
from lightning_robust.functional import jacobian_spectrum, spectrum_frequency_bias
from lightning_robust.functional.jafr import check_bias_options
from lightning_robust.images import ImageSpec

LossFn = Callable[[Tensor, Any], Tensor]


class JacobianFrequencyRegularization(StepCallback):
    """Add JaFR to the training loss: ``weight * -b``, b the frequency bias of the loss's input gradient.

    The gradient is taken from the loss that the user's step returns (``forward="shared"``: no second forward pass), or
    from a forward pass of its own on the published image (``"clean"``: eager, float32, BatchNorm statistics kept).
    ``"auto"`` takes ``"clean"`` behind an adversarial callback, whose training image is not the clean one, and for a
    compiled net, which has no double backward; otherwise ``"shared"``.

    Args:
        weight: the released scripts use 0.001 on CIFAR-10 (0.002 on CIFAR-100 with FGSM).
        forward: see above.
        sync_spectrum: average the spectrum over processes, so that DDP equals one process on the global batch. The
            released code knows one process.
        variant: "released", or "ratio", which is ours.
        reduction: of the released variant.
        direction: "low" favors low frequencies in the Jacobian, "high" high ones.
        forward_fn: for "clean": ``(module, image) -> logits`` where the module's forward returns something else.
        loss_fn: for "clean": ``(logits, target) -> mean loss``; None is cross-entropy.
        output_key: for "clean": where the logits are in what the forward returns.
        spec: how batches look, if no other callback says so.

    Raises:
        UnsupportedError: in ``setup``, for manual optimization, sharded strategies, and "shared" where it cannot work.
    """

    penalizes = True

    def __init__(
        self,
        weight: float = 0.001,
        *,
        forward: Literal["auto", "shared", "clean"] = "auto",
        sync_spectrum: bool = True,
        variant: Literal["released", "ratio"] = "released",
        reduction: Literal["sum", "sumlog", "product"] = "sum",
        direction: Literal["low", "high"] = "low",
        forward_fn: ForwardFn | None = None,
        loss_fn: LossFn | None = None,
        output_key: int | str | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        super().__init__(stages=("train",), spec=spec)
        if forward not in ("auto", "shared", "clean") or not math.isfinite(weight):
            raise InputError(
                f'forward={forward!r} should be "auto", "shared" or "clean", and weight={weight} a number.'
            )
        check_bias_options(variant, reduction, max_power=1.0, temperature=1.0, direction=direction)
        self.weight, self.forward, self.sync_spectrum = weight, forward, sync_spectrum
        self.variant, self.reduction, self.direction = variant, reduction, direction
        self.forward_fn, self.loss_fn, self.output_key = forward_fn, loss_fn, output_key
        self.takes: Literal["shared", "clean"] = "shared"

    def settings(self) -> dict[str, Any]:
        """Return the arguments as plain data."""
        return super().settings() | {
            "weight": self.weight,
            "forward": self.forward,
            "sync_spectrum": self.sync_spectrum,
            "variant": self.variant,
            "reduction": self.reduction,
            "direction": self.direction,
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the forward pass, say which, and join the steps."""
        if stage != "fit":
            return
        refuse_sharded(trainer, "JacobianFrequencyRegularization")
        if not pl_module.automatic_optimization:
            raise UnsupportedError(
                f"{type(pl_module).__name__} optimizes by hand (automatic_optimization=False), so no term can be added "
                "to its loss from outside. Add lightning_robust.nn.JaFRLoss to the loss inside its training_step."
            )
        self.takes = self._choose(trainer, pl_module)
        rank_zero_info(f"JacobianFrequencyRegularization takes the input gradient from {_EXPLAIN[self.takes]}.")
        super().setup(trainer, pl_module, stage)

    def wants_input_gradient(self, step: Step) -> bool:
        """Ask for the gradient of the user's own loss in the shared form."""
        return self.takes == "shared"

    def penalty(self, step: Step) -> Tensor:
        """Return ``-weight * b``."""
        gradient = step.input_gradient() if self.takes == "shared" else self._clean_gradient(step)
        trainer: pl.Trainer = step.module.trainer
        spectrum = self._spectrum(gradient, trainer.world_size if self.sync_spectrum else 1)
        bias = spectrum_frequency_bias(
            spectrum, variant=self.variant, reduction=self.reduction, direction=self.direction
        )
        step.module.log("jafr/bias", bias.detach(), prog_bar=True, batch_size=len(gradient))
        if self.first_of_epoch(trainer, "train"):
            log_picture(trainer, "jafr/spectrum", _as_picture(spectrum.detach()))
        return -self.weight * bias

    def _choose(self, trainer: pl.Trainer, module: pl.LightningModule) -> Literal["shared", "clean"]:
        attacker = next((c for c in trainer.callbacks if getattr(c, "attacks", False)), None)  # type: ignore[attr-defined]
        compiled = _compiled_part(module)
        if self.forward == "shared" and compiled is not None:
            raise UnsupportedError(
                f'{compiled} is compiled, and torch.compile has no double backward, which forward="shared" needs. Use '
                'forward="clean" (or "auto"), which runs its own pass eagerly, or do not compile the net.'
            )
        if self.forward != "auto":
            return self.forward
        return "clean" if attacker is not None or compiled is not None else "shared"

    def _clean_gradient(self, step: Step) -> Tensor:
        published = step.published_image("JacobianFrequencyRegularization")
        leaf = published.detach().clone().requires_grad_()
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(step.device.type, enabled=False))
            if _compiled_part(step.module) is not None:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(kept_batch_statistics(step.module))
            logits = step.network(self.forward_fn, self.output_key)(leaf + 0)
            loss = (self.loss_fn or F.cross_entropy)(logits, step.target)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return gradient

    def _spectrum(self, gradient: Tensor, world: int) -> Tensor:
        if world == 1:
            return jacobian_spectrum(gradient)
        # a gradient of the global mean is a local one over the number of processes
        local = jacobian_spectrum(gradient / world)
        mean = local.detach().clone()
        dist.all_reduce(mean)
        return local + (mean / world - local).detach()


@contextmanager
def kept_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Let a forward pass in train mode normalize by its batch without moving the running statistics."""
    kept: list[tuple[nn.Module, str, Any]] = []
    for norm in module.modules():
        if isinstance(norm, _BatchNorm | _InstanceNorm) and norm.track_running_stats:
            # instance normalization moves its statistics whatever that flag says, and counts nothing
            name = "track_running_stats" if isinstance(norm, _BatchNorm) else "momentum"
            kept.append((norm, name, getattr(norm, name)))
            setattr(norm, name, False if name == "track_running_stats" else 0.0)
    try:
        yield
    finally:
        for norm, name, value in kept:
            setattr(norm, name, value)


_EXPLAIN = {
    "shared": "the loss of the training step (shared forward pass)",
    "clean": "a forward pass of its own on the published image (eager, float32, BatchNorm statistics kept)",
}


def _compiled_part(module: nn.Module) -> str | None:
    if getattr(module, "_compiler_ctx", None) is not None:
        return type(module).__name__
    for name, part in module.named_modules():
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            return f"The submodule {name!r}" if name else type(module).__name__
    return None


def _as_picture(spectrum: Tensor) -> Tensor:
    power = spectrum.float().clamp_min(1e-12).log()
    low, high = power.aminmax()
    shown = (power - low) / (high - low).clamp_min(1e-6)
    return F.interpolate(shown[None, None], scale_factor=8, mode="nearest")[0]
