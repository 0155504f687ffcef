"""Base of the callbacks that act inside a step."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from lightning_robust.callbacks.contribution import Step
from lightning_robust.callbacks.step import StepPipeline, attach, detach
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
        purifies: that change is what a receiver does with the published image, attacked or not.
        penalizes: it adds a term to the training loss.
    """

    transforms: bool = False
    attacks: bool = False
    purifies: bool = False
    penalizes: bool = False

    def __init__(self, *, stages: Collection[str], spec: ImageSpec | None) -> None:
        unknown = [stage for stage in stages if stage not in STAGE_NAMES]
        if unknown or isinstance(stages, str):
            raise InputError(f"stages={stages!r} should be a list of names from {list(STAGE_NAMES)}.")
        self.stages = tuple(stages)
        self.spec = spec
        self._pipeline: StepPipeline | None = None
        self._pictured: set[tuple[str, int]] = set()

    def settings(self) -> dict[str, Any]:
        """Return the arguments that name this callback, as plain data for the checkpoint."""
        return {"stages": list(self.stages)}

    def acts_on(self, stage: str) -> bool:
        """Whether this callback takes part in a stage."""
        return stage in self.stages

    def transform(self, step: Step) -> None:
        """Replace ``step.image`` (and ``step.target``) by new tensors."""

    def around(self, step: Step) -> AbstractContextManager[None]:
        """Return a context for the user's step; the first callback's is the innermost."""
        return nullcontext()

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
        """Save the settings, and the seed that a resumed run needs to draw what the first would have drawn."""
        return self.settings() | {"seed": None if self._pipeline is None else self._pipeline.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed of the run that wrote the checkpoint."""
        if self._pipeline is not None and state_dict.get("seed") is not None:
            self._pipeline.seed = state_dict["seed"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Join the steps of the module."""
        self._pictured.clear()
        self._pipeline = attach(trainer, pl_module, self)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the steps of the module."""
        self.release(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the steps of the module; Lightning calls no teardown when a run raises."""
        self.release(pl_module)

    def release(self, module: pl.LightningModule) -> None:
        """Leave the steps of a module and let go of what belonged to the run."""
        detach(module, self)
        self._pipeline = None

    def first_of_epoch(self, trainer: pl.Trainer, stage: str) -> bool:
        """Whether a picture of this stage and epoch is still to be shown."""
        key = (stage, trainer.current_epoch)
        if trainer.sanity_checking or key in self._pictured:
            return False
        self._pictured.add(key)
        return True


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether the strategy keeps no whole parameters on a process: FSDP, DeepSpeed, tensor parallelism."""
    names = {cls.__name__ for cls in type(trainer.strategy).__mro__}
    return bool(names & {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"})


def refuse_sharded(trainer: pl.Trainer, method: str) -> None:
    """Refuse strategies that keep no whole parameters on a process.

    Raises:
        UnsupportedError: under FSDP, DeepSpeed or tensor parallelism.
    """
    if is_sharded(trainer):
        raise UnsupportedError(
            f"{method} differentiates the net by its input, which {type(trainer.strategy).__name__} does not support "
            'with sharded parameters. Use Trainer(strategy="ddp"), or leave the callback out.'
        )
