"""Train on adversarial images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_robust.attacks import fgsm, pgd
from lightning_robust.callbacks.callback import StepCallback, refuse_sharded
from lightning_robust.callbacks.contribution import ForwardFn, Step
from lightning_robust.callbacks.overfitting_guard import GuardSet, OverfittingGuard
from lightning_robust.errors import InputError, RobustWarning
from lightning_robust.images import ImageSpec
from lightning_robust.seeds import derive

LossFn = Callable[[Tensor, Any], Tensor]


class AdversarialTraining(StepCallback):
    """Replace the training image by an adversarial one within ``eps`` of it.

    With ``attack="fgsm"`` the defaults are those of fast adversarial training (Wong et al., ICLR 2020): random start,
    one step of 1.25 ``eps``, projected; with ``"pgd"`` those of its PGD baseline: 7 steps of ``eps / 4``.

    Args:
        eps: budget in [0, 1] image units.
        attack: "fgsm" or "pgd".
        norm: "linf" or "l2".
        step_size: in image units; None takes the default above.
        steps: of PGD.
        random_start: begin inside the budget instead of at the image.
        mode: of the net while it is attacked. Released recipes attack in "train" mode, which ties the images of a batch
            together through BatchNorm; "eval" does not. The running statistics are kept in both.
        guard: against catastrophic overfitting; None switches it off.
        forward_fn: ``(module, image) -> logits`` where the module's forward returns something else.
        loss_fn: ``(logits, target) -> loss per sample``; None is cross-entropy, for class indices and for soft targets.
        output_key: where the logits are in what the forward returns.
        spec: how batches look, if no other callback says so.
    """

    transforms = True
    attacks = True

    def __init__(
        self,
        eps: float = 8 / 255,
        *,
        attack: Literal["fgsm", "pgd"] = "fgsm",
        norm: Literal["linf", "l2"] = "linf",
        step_size: float | None = None,
        steps: int = 7,
        random_start: bool = True,
        mode: Literal["eval", "train"] = "eval",
        guard: OverfittingGuard | None = OverfittingGuard(),  # noqa: B008  (frozen)
        forward_fn: ForwardFn | None = None,
        loss_fn: LossFn | None = None,
        output_key: int | str | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        super().__init__(stages=("train",), spec=spec)
        if attack not in ("fgsm", "pgd"):
            raise InputError(f'attack={attack!r} should be "fgsm" or "pgd".')
        self.eps, self.attack, self.norm, self.steps = eps, attack, norm, steps
        self.step_size = step_size if step_size is not None else eps * (1.25 if attack == "fgsm" else 0.25)
        self.random_start, self.mode, self.guard = random_start, mode, guard
        self.forward_fn, self.loss_fn, self.output_key = forward_fn, loss_fn, output_key
        self.accuracy: float | None = None
        self._kept: dict[str, Tensor] | None = None
        self._set: GuardSet | None = None
        self._network: nn.Module | None = None

    def settings(self) -> dict[str, Any]:
        """Return the arguments as plain data."""
        return super().settings() | {
            "eps": self.eps,
            "attack": self.attack,
            "norm": self.norm,
            "step_size": self.step_size,
            "steps": self.steps,
            "random_start": self.random_start,
            "mode": self.mode,
        }

    def state_dict(self) -> dict[str, Any]:
        """Save the settings and the accuracy of the last check."""
        return super().state_dict() | {"accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the accuracy of the last check."""
        self.accuracy = state_dict.get("accuracy")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Join the steps of a training run."""
        if stage != "fit":
            return
        refuse_sharded(trainer, "AdversarialTraining")
        if self.guard is not None:
            self._set = GuardSet(max(1, self.guard.images // trainer.world_size))
        super().setup(trainer, pl_module, stage)

    def transform(self, step: Step) -> None:
        """Attack the published image."""
        image = step.float_image("AdversarialTraining")
        if step.target is None:
            raise InputError(
                "AdversarialTraining needs the target of each image, and the batch has none. Name it by "
                'ImageSpec(target_key="label").'
            )
        network = step.network(self.forward_fn, self.output_key)
        options: dict[str, Any] = {
            "eps": self.eps,
            "norm": self.norm,
            "step_size": self.step_size,
            "random_start": self.random_start,
            "mode": self.mode,
            "loss_fn": self.loss_fn,
            "seeds": derive(step.seeds, "adversarial"),
        }
        if self.attack == "pgd":
            options["steps"] = self.steps
        step.image = (fgsm if self.attack == "fgsm" else pgd)(network, image, step.target, **options)
        self._network = network
        if self._set is not None and not self._set.complete:
            self._set.collect(image, step.target)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check for collapse every ``guard.every_n_steps`` optimizer steps."""
        guard, images, network = self.guard, self._set, self._network
        self._network = None
        if guard is None or images is None or network is None or not images.complete:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step % guard.every_n_steps:
            return
        single, iterated = images.accuracy(network, eps=self.eps, norm=self.norm, steps=guard.steps)
        both = trainer.strategy.reduce(torch.stack([single, iterated]), reduce_op="mean")
        single_accuracy, accuracy = both.tolist()
        pl_module.log_dict(
            {"adversarial/fgsm_accuracy": single_accuracy, "adversarial/pgd_accuracy": accuracy},
            prog_bar=True,
            batch_size=1,
        )
        before, self.accuracy = self.accuracy, accuracy
        if before is not None and before - accuracy > guard.drop:
            self._act(trainer, pl_module, guard, before, accuracy)
        elif guard.action == "restore":
            self._kept = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the steps and let the kept tensors go."""
        super().teardown(trainer, pl_module, stage)
        self._kept = self._set = self._network = None

    def _act(
        self, trainer: pl.Trainer, module: pl.LightningModule, guard: OverfittingGuard, before: float, now: float
    ) -> None:
        told = {
            "warn": "Training goes on.",
            "stop": "Training stops.",
            "restore": "The weights of the last good check are restored and training goes on.",
        }[guard.action]
        rank_zero_warn(
            f"Catastrophic overfitting: PGD-{guard.steps} accuracy on {guard.images} training images fell from "
            f"{before:.2f} to {now:.2f} within {guard.every_n_steps} steps. {told} Lower eps or step_size, or take "
            'attack="pgd".',
            category=RobustWarning,
        )
        if guard.action == "stop":
            trainer.should_stop = True
        elif guard.action == "restore" and self._kept is not None:
            module.load_state_dict(self._kept)
            self.accuracy = before
