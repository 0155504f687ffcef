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
        if attack not in ("fgsm", "pgd") or norm not in ("linf", "l2") or mode not in ("eval", "train"):
            raise InputError(
                f'attack={attack!r} should be "fgsm" or "pgd", norm={norm!r} "linf" or "l2", mode={mode!r} "eval" or '
                '"train".'
            )
        if not eps >= 0 or steps < 1:
            raise InputError(f"eps={eps} should be a budget of at least 0, and steps={steps} at least 1.")
        if norm == "linf" and eps > 1:
            raise InputError(f"eps={eps} is more than a whole [0, 1] image; for 8-bit levels write {eps:g} / 255.")
        self.eps, self.attack, self.norm, self.steps = eps, attack, norm, steps
        self.step_size = step_size if step_size is not None else eps * (1.25 if attack == "fgsm" else 0.25)
        self.random_start, self.mode, self.guard = random_start, mode, guard
        self.forward_fn, self.loss_fn, self.output_key = forward_fn, loss_fn, output_key
        self._accuracy: float | None = None
        self._kept: dict[str, Tensor] | None = None
        self._set: GuardSet | None = None
        self._network: nn.Module | None = None
        self._checks = self._first_epoch = 0

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

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Join the steps of a training run."""
        if stage != "fit":
            return
        refuse_sharded(trainer, "AdversarialTraining")
        if self.guard is not None:
            self._set = GuardSet(max(1, self.guard.images // trainer.world_size))
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the guard's checks from where the run begins or resumes."""
        if self.guard is not None:
            self._checks, self._first_epoch = trainer.global_step // self.guard.every_n_steps, trainer.current_epoch

    def release(self, module: pl.LightningModule) -> None:
        """Leave the steps and let go of images, weights and net."""
        super().release(module)
        self._accuracy = self._kept = self._set = self._network = None

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
        if self._set is not None and step.module.trainer.current_epoch == self._first_epoch:
            self._set.collect(step.original, step.original_target)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check for collapse every ``guard.every_n_steps`` optimizer steps."""
        network, self._network = self._network, None
        if self.guard is None or self._set is None or network is None:
            return
        checks = trainer.global_step // self.guard.every_n_steps
        if checks > self._checks:
            self._checks = checks
            self._check(trainer, pl_module, self.guard, self._set, network)

    def _check(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        guard: OverfittingGuard,
        kept: GuardSet,
        network: nn.Module,
    ) -> None:
        counts = kept.counts(network, eps=self.eps, norm=self.norm, steps=guard.steps)
        # every process is here at the same step, whatever it has collected
        summed = torch.tensor(counts, dtype=torch.float32, device=module.device)
        single, iterated, images = trainer.strategy.reduce(summed, reduce_op="sum").tolist()
        if images == 0:
            rank_zero_warn(
                f"The guard against catastrophic overfitting cannot look: {kept.refused or 'it has no images'}. "
                "Pass guard=None, or train with class indices.",
                category=RobustWarning,
            )
            return
        values = {"adversarial/fgsm_accuracy": single / images, "adversarial/pgd_accuracy": iterated / images}
        module.log_dict(values, prog_bar=True, logger=False, batch_size=1)
        for logger in trainer.loggers:  # now, and not at the next step that is logged
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)
        before, self._accuracy = self._accuracy, iterated / images
        if before is not None and before - self._accuracy > guard.drop:
            self._act(trainer, module, guard, before, self._accuracy)
        elif guard.action == "restore":
            self._kept = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def _act(
        self, trainer: pl.Trainer, module: pl.LightningModule, guard: OverfittingGuard, before: float, now: float
    ) -> None:
        if guard.action == "stop":
            trainer.should_stop = True
            told = "Training stops."
        elif guard.action == "restore" and self._kept is not None:
            module.load_state_dict(self._kept)
            self._accuracy = before
            told = "The weights of the last good check are restored and training goes on."
        else:
            told = "Training goes on."
        rank_zero_warn(
            f"Catastrophic overfitting: PGD-{guard.steps} accuracy on {guard.images} training images fell from "
            f"{before:.2f} to {now:.2f} within {guard.every_n_steps} steps. {told} Lower eps or step_size, or take "
            'attack="pgd".',
            category=RobustWarning,
        )
