"""Base of the callbacks that act inside a step."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from lightning_robust.callbacks.contribution import Step
from lightning_robust.callbacks.step import attach, detach
from lightning_robust.errors import InputError, UnsupportedError
from lightning_robust.images import ImageSpec

STAGE_NAMES = ("train", "validate", "test", "predict")


class StepCallback(pl.Callback):
    """Takes part in the steps of a module the user wrote, from ``setup`` to ``teardown``.

    Args:
        stages: in which of "train", "validate", "test", "predict" it acts.
        spec: how batches look; one callback declares it for all.

    Attributes:
        transforms: it changes the image before the user's step.
        attacks: that change is an attack on the published image.
        penalizes: it adds a term to the training loss.
    """

    transforms: bool = False
    attacks: bool = False
    penalizes: bool = False

    def __init__(self, *, stages: Collection[str], spec: ImageSpec | None) -> None:
        unknown = [stage for stage in stages if stage not in STAGE_NAMES]
        if unknown or isinstance(stages, str):
            raise InputError(f"stages={stages!r} should be a list of names from {list(STAGE_NAMES)}.")
        self.stages = tuple(stages)
        self.spec = spec

    def settings(self) -> dict[str, Any]:
        """Return the arguments that name this callback, as plain data for the checkpoint."""
        return {"stages": list(self.stages)}

    def acts_on(self, stage: str) -> bool:
        """Whether this callback takes part in a stage."""
        return stage in self.stages

    def transform(self, step: Step) -> None:
        """Replace ``step.image`` (and ``step.target``) by new tensors."""

    def wants_input_gradient(self, step: Step) -> bool:
        """Whether :meth:`penalty` will ask for ``step.input_gradient()``."""
        return False

    def penalty(self, step: Step) -> Tensor:
        """Return the term that is added to the loss."""
        raise NotImplementedError(f"{type(self).__name__} says that it penalizes, and defines no penalty.")

    @property
    def state_key(self) -> str:
        """Tell two instances with different settings apart in a checkpoint."""
        return self._generate_state_key(**self.settings())

    def state_dict(self) -> dict[str, Any]:
        """Save the settings as plain data."""
        return self.settings()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Join the steps of the module."""
        attach(trainer, pl_module, self)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the steps of the module."""
        detach(pl_module, self)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the steps of the module; Lightning calls no teardown when a run raises."""
        detach(pl_module, self)


def refuse_sharded(trainer: pl.Trainer, method: str) -> None:
    """Refuse strategies that keep no whole parameters on a process.

    Raises:
        UnsupportedError: under FSDP, DeepSpeed or tensor parallelism.
    """
    names = {cls.__name__ for cls in type(trainer.strategy).__mro__}
    sharded = names & {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}
    if sharded:
        raise UnsupportedError(
            f"{method} differentiates the net by its input, which {sorted(sharded)[0]} does not support with sharded "
            'parameters. Use Trainer(strategy="ddp"), or leave the callback out.'
        )
