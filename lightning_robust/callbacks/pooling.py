"""Swap the downsampling layers of a module for alias-free ones when a run begins."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_robust.batches import BatchAdapter
from lightning_robust.callbacks.callback import is_sharded
from lightning_robust.callbacks.surgery_hooks import leave, operate, write_record
from lightning_robust.callbacks.user_module import declared_spec, is_defined_by_user
from lightning_robust.errors import InputError, NoEffectWarning, RobustWarning, UnsupportedError
from lightning_robust.images import ImageSpec
from lightning_robust.nn import SwapReport, find_unreached, is_swapped, swap_downsampling

_COPIERS = {"WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"}


class FrequencyPooling(pl.Callback):
    """Put ASAP pooling, or another pool, in the place of strided convolutions and of max and average pools.

    The swap happens in ``setup`` and after the module's ``configure_model``, before optimizers exist; it stays after
    the run, since the net was trained with it (:func:`lightning_robust.nn.revert_downsampling` undoes it). A record of
    it goes into every checkpoint that the Trainer writes, and the Trainer refuses a checkpoint with another record. The
    first batch shows, by one forward pass of one image, which downsampling no swap of layers can reach; it is named in
    a warning and in ``report``.

    Args:
        pool: "asap", "flc", "blur", or a callable ``(x, output_size) -> y``.
        order: "pool_first" (papers, training from scratch), "lowpass" (pretrained weights) or "conv_first".
        max_pool: "replace" max pools, or "max_then_pool" to keep the max.
        include: name patterns of layers to swap; None takes all.
        exclude: name patterns of layers to leave.
        on_nothing: "raise" or "warn" where the net has no layer to swap.
        spec: how batches look, if no other callback says so.
    """

    def __init__(
        self,
        pool: str | Callable[[Tensor, tuple[int, int]], Tensor] = "asap",
        *,
        order: Literal["pool_first", "lowpass", "conv_first"] = "pool_first",
        max_pool: Literal["replace", "max_then_pool"] = "replace",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        on_nothing: Literal["raise", "warn"] = "raise",
        spec: ImageSpec | None = None,
    ) -> None:
        if on_nothing not in ("raise", "warn"):
            raise InputError(f'on_nothing={on_nothing!r} should be "raise" or "warn".')
        self.pool, self.order, self.max_pool = pool, order, max_pool
        self.include, self.exclude, self.on_nothing, self.spec = include, exclude, on_nothing, spec
        self.report: SwapReport | None = None
        self._said = ""
        self._probed: weakref.ref[pl.LightningModule] | None = None

    @property
    def state_key(self) -> str:
        """Tell two instances with different settings apart in a checkpoint."""
        return self._generate_state_key(**self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Save the settings as plain data."""
        return {
            "pool": self.pool if isinstance(self.pool, str) else f"{self.pool.__module__}:{_name(self.pool)}",
            "order": self.order,
            "max_pool": self.max_pool,
            "include": None if self.include is None else list(self.include),
            "exclude": None if self.exclude is None else list(self.exclude),
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Swap what is there now, and again after ``configure_model`` what is built later."""
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is self:
                break
            if _COPIERS & {cls.__name__ for cls in type(other).__mro__}:
                raise UnsupportedError(
                    f"{type(other).__name__} stands before FrequencyPooling in Trainer(callbacks=[...]) and copies the "
                    "net before its layers are swapped. Put FrequencyPooling first."
                )
        self._swap(pl_module)
        if not operate(pl_module, self):
            self._say(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hooks back; the layers stay swapped."""
        leave(pl_module, self)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hooks back; Lightning calls no teardown when a run raises."""
        leave(pl_module, self)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record the swap in a checkpoint that is written after the run, when the module's hooks are its own again."""
        if is_swapped(pl_module):
            write_record(checkpoint, self.layers())

    def swap(self, module: pl.LightningModule) -> None:
        """Swap the layers of a module, or say that there are none."""
        self._swap(module)
        self._say(module)

    def layers(self) -> list[dict[str, Any]]:
        """Return the swapped layers as plain data."""
        layers: list[dict[str, Any]] = [] if self.report is None else self.report.to_record()["layers"]
        return layers

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log how many layers were swapped."""
        count = 0 if self.report is None else len(self.report.changed)
        for logger in trainer.loggers:
            logger.log_metrics({"pooling/layers_swapped": float(count)}, step=trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Probe the first batch."""
        self._probe(trainer, pl_module, batch)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """Probe the first batch."""
        self._probe(trainer, pl_module, batch)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Probe the first batch."""
        self._probe(trainer, pl_module, batch)

    def on_predict_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Probe the first batch."""
        self._probe(trainer, pl_module, batch)

    def _swap(self, module: pl.LightningModule) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # said below, once, with the remedy
            self.report = swap_downsampling(
                module,
                self.pool,
                order=self.order,
                max_pool=self.max_pool,
                include=self.include,
                exclude=self.exclude,
            )
        self.report.to_record()  # a pool that no checkpoint can record is refused now, not after an epoch

    def _say(self, module: pl.LightningModule) -> None:
        if self.report is not None and self.report.changed:
            if str(self.report) != self._said:
                self._said = str(self.report)
                rank_zero_info(f"FrequencyPooling: {self.report}")
            return
        told = (
            f"FrequencyPooling found no downsampling layer to swap in {type(module).__name__}: {self.report}. Take the "
            'callback out, widen include or narrow exclude, or pass on_nothing="warn".'
        )
        if self.on_nothing == "raise":
            raise UnsupportedError(told)
        rank_zero_warn(told, category=NoEffectWarning)

    def _probe(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> None:
        if batch is None or (self._probed is not None and self._probed() is module):
            return
        self._probed = weakref.ref(module)
        if not is_defined_by_user(module, "forward"):
            return
        if is_sharded(trainer):
            rank_zero_info("FrequencyPooling does not look for downsampling outside of layers in a sharded net.")
            return
        try:
            image, _ = BatchAdapter(declared_spec(module, trainer)).read(batch)
            unreached = find_unreached(module, image[:1])
        except Exception as error:  # the forward of a user's module may take anything
            rank_zero_info(
                f"FrequencyPooling could not look for downsampling outside of layers: {type(module).__name__} does not "
                f"run on an image alone ({error})."
            )
            return
        if unreached and self.report is not None:
            self.report = dataclasses.replace(self.report, unreached=tuple(unreached))
            rank_zero_warn(
                "FrequencyPooling cannot reach this downsampling, which is written as a function call: "
                + "; ".join(str(one) for one in unreached)
                + ". Write it as a layer to have it swapped.",
                category=RobustWarning,
            )


def _name(pool: Callable[..., Tensor]) -> str:
    return getattr(pool, "__qualname__", type(pool).__qualname__)
