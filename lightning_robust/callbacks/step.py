"""The one place that touches a step: transforms before the user's step, penalties after it.

A callback that acts inside a step derives from :class:`~lightning_robust.callbacks.callback.StepCallback` and is
attached to the module for the length of one Trainer run. The wrapper is a bound method on the instance, so a deep copy
of the module calls the copy, and pickling finds the class's own method again.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_robust.batches import BatchAdapter
from lightning_robust.callbacks.contribution import Contributor, Step, loss_of, with_loss
from lightning_robust.callbacks.user_module import callbacks_of, declared_spec, is_defined_by_user
from lightning_robust.errors import InputError, UnsupportedError
from lightning_robust.images import ImageSpec, check_unit_range
from lightning_robust.seeds import derive, derive_int, seeded

if TYPE_CHECKING:
    import pytorch_lightning as pl

STAGES = {
    "training_step": "train",
    "validation_step": "validate",
    "test_step": "test",
    "predict_step": "predict",
}
_pipelines: WeakKeyDictionary[Any, StepPipeline] = WeakKeyDictionary()


def attach(trainer: pl.Trainer, module: pl.LightningModule, callback: Contributor) -> StepPipeline:
    """Let a callback take part in the steps of a module until :func:`detach`.

    Returns:
        The pipeline that it shares with the other callbacks of the run.

    Raises:
        UnsupportedError: if a step takes a ``dataloader_iter``, or the order is not publish, attack, purify.
        InputError: if two callbacks declare different image specs.
    """
    pipeline = _pipelines.get(module)
    if pipeline is None:
        pipeline = StepPipeline(module)
        _pipelines[module] = pipeline
    try:
        pipeline.add(trainer, module, callback)
    except Exception:
        detach(module, callback)
        raise
    return pipeline


def detach(module: pl.LightningModule, callback: Contributor) -> None:
    """Take a callback out of the steps; with the last one the module is as it was. Safe to call twice."""
    pipeline = _pipelines.get(module)
    if pipeline is None:
        return
    pipeline.remove(callback)
    if not pipeline.callbacks:
        pipeline.unwrap(module)
        del _pipelines[module]


class StepPipeline:
    """The callbacks that take part in the steps of one module during one run."""

    def __init__(self, module: pl.LightningModule) -> None:
        self.callbacks: list[Contributor] = []
        self.adapter = BatchAdapter(ImageSpec())
        self.seed = derive_int(torch.initial_seed(), "steps")  # an unseeded one fills 64 bits
        self._checked: set[str] = set()
        self._counts: dict[str, tuple[int, int]] = {}
        self._previous: dict[str, Any] = {}
        self._inside = False
        for name in STAGES:
            _drop_copied_wrapper(module, name)
            if name == "predict_step" or is_defined_by_user(module, name):
                self._wrap(module, name)

    def add(self, trainer: pl.Trainer, module: pl.LightningModule, callback: Contributor) -> None:
        """Add a callback at its place in ``trainer.callbacks``."""
        if callback in self.callbacks:
            return
        for name in STAGES:
            step = getattr(module, name, None)
            if step is not None and "dataloader_iter" in inspect.signature(step).parameters:
                raise UnsupportedError(
                    f"{type(callback).__name__} acts on batches, but {type(module).__name__}.{name} takes a "
                    f"dataloader_iter and fetches its own. Give {name} the signature (batch, batch_idx)."
                )
        order = {id(c): i for i, c in enumerate(callbacks_of(trainer))}
        self.callbacks.append(callback)
        self.callbacks.sort(key=lambda c: order.get(id(c), len(order)))
        for stage in STAGES.values():
            self._check_order([c for c in self.callbacks if c.transforms and c.acts_on(stage)])
        self.adapter = BatchAdapter(declared_spec(module, trainer))

    def _check_order(self, transforms: Sequence[Contributor]) -> None:
        for first, second in itertools.pairwise(transforms):
            if first.purifies and not second.purifies:
                raise UnsupportedError(
                    f"{type(first).__name__} stands before {type(second).__name__} in Trainer(callbacks=[...]), but a "
                    "receiver purifies what was published and attacked before: put the purifying callback last."
                )
            if first.attacks and not (second.attacks or second.purifies):
                raise UnsupportedError(
                    f"{type(first).__name__} stands before {type(second).__name__} in Trainer(callbacks=[...]), but an "
                    "attack acts on the image that is published: put the attacking callback last."
                )

    def remove(self, callback: Contributor) -> None:
        """Take a callback out."""
        self.callbacks = [c for c in self.callbacks if c is not callback]

    def unwrap(self, module: pl.LightningModule) -> None:
        """Put the module's steps back as they were."""
        for name, previous in self._previous.items():
            if previous is None:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = previous
        self._previous = {}

    def run(self, module: pl.LightningModule, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Transform the batch, call the user's step once, add the penalties.

        A step that calls another, as many a ``test_step`` calls ``validation_step``, is one step of the outer stage.
        """
        inner = self._inner(module, name)
        if self._inside:
            return inner(*args, **kwargs)
        self._inside = True
        try:
            return self._run(module, STAGES[name], inner, args, kwargs)
        finally:
            self._inside = False

    def _run(
        self,
        module: pl.LightningModule,
        stage: str,
        inner: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        active = [c for c in self.callbacks if c.acts_on(stage)]
        if not active:
            return inner(*args, **kwargs)
        batch, rest = args[0], args[1:]
        step = self._prepare(module, stage, batch, rest)
        with seeded(step.seed, step.device):
            self._transform(step, active)
            penalized = [c for c in active if c.penalizes and stage == "train" and torch.is_grad_enabled()]
            wants_leaf = any(c.wants_input_gradient(step) for c in penalized)
            if wants_leaf:
                step.make_leaf()
            with ExitStack() as around:
                for callback in reversed(active):
                    around.enter_context(callback.around(step))
                if wants_leaf:
                    around.enter_context(_second_order_attention())
                output = inner(self._rebuild(batch, step), *rest, **kwargs)
            step.output, step.loss = output, loss_of(output) if stage == "train" else None
            if not penalized or step.loss is None:
                return output
            with torch.autocast(step.device.type, enabled=False):
                terms = [callback.penalty(step) for callback in penalized]
            return with_loss(output, step.loss + sum(term.to(step.loss) for term in terms))

    def _wrap(self, module: pl.LightningModule, name: str) -> None:
        original = getattr(module, name)
        self._previous[name] = vars(module).get(name)

        @functools.wraps(original)
        def step(self: pl.LightningModule, *args: Any, **kwargs: Any) -> Any:
            pipeline = _pipelines.get(self)
            if pipeline is None:  # a copy of the module runs on its own
                return getattr(type(self), name)(self, *args, **kwargs)
            return pipeline.run(self, name, args, kwargs)

        # functools.wraps points Lightning at the bound original; inspect would drop one parameter too many of that
        step.__signature__ = inspect.signature(getattr(original, "__func__", original))  # type: ignore[attr-defined]
        # tells a copy of it from a step of the user; functions have no declared attributes
        step._is_step_wrapper = True  # type: ignore[attr-defined]
        vars(module)[name] = types.MethodType(step, module)

    def _inner(self, module: pl.LightningModule, name: str) -> Callable[..., Any]:
        previous = self._previous.get(name)
        if previous is not None:
            return previous  # type: ignore[no-any-return]
        return functools.partial(getattr(type(module), name), module)

    def _prepare(self, module: pl.LightningModule, stage: str, batch: Any, rest: Sequence[Any]) -> Step:
        image, target, error = None, None, None
        try:
            image, target = self.adapter.read(batch)
            if stage not in self._checked:
                check_unit_range(image, self.adapter.spec, f"the first {stage} batch")
        except InputError as found:
            error = found
        if stage not in self._checked:
            self._checked.add(stage)
            self._agree(module.trainer, error, stage)
        if error is not None or image is None:
            raise error or InputError(f"No image was found in the {stage} batch.")
        position = self._position(module, stage, rest)
        return Step(
            module=module,
            stage=stage,
            spec=self.adapter.spec,
            received=image,
            target=target,
            seeds=self._seeds(module.trainer, stage, batch, image, position),
            seed=derive_int(self.seed, stage, module.trainer.global_step, *position),
        )

    def _agree(self, trainer: pl.Trainer, error: InputError | None, stage: str) -> None:
        """Raise on every rank what one rank found, so that none waits for another."""
        if trainer.world_size > 1 and not trainer.strategy.reduce_boolean_decision(error is None):
            raise error or InputError(
                f"Another process found an error in its first {stage} batch; its message names the remedy."
            )

    def _transform(self, step: Step, active: Sequence[Contributor]) -> None:
        with torch.no_grad(), torch.autocast(step.device.type, enabled=False):
            for callback in active:
                if callback.transforms:
                    callback.transform(step)
                    if not (callback.attacks or callback.purifies):
                        step.published = step.image

    def _rebuild(self, batch: Any, step: Step) -> Any:
        if not step.changed:
            return batch
        return self.adapter.write(batch, step.to_batch(step.image), step.target)

    def _position(self, module: pl.LightningModule, stage: str, rest: Sequence[Any]) -> tuple[int, int, int]:
        """Batch number, dataloader number and rank: what names a batch without sample ids."""
        trainer = module.trainer
        numbers = [n for n in rest if isinstance(n, int)]
        if numbers:
            batch_idx = numbers[0]
        elif stage == "train":
            batch_idx = trainer.fit_loop.batch_idx
        else:
            epoch, count = self._counts.get(stage, (-1, -1))
            batch_idx = count + 1 if epoch == trainer.current_epoch else 0
            self._counts[stage] = (trainer.current_epoch, batch_idx)
        return batch_idx, numbers[1] if len(numbers) > 1 else 0, trainer.global_rank

    def _seeds(self, trainer: pl.Trainer, stage: str, batch: Any, image: Any, position: tuple[int, ...]) -> Tensor:
        device, count = image[0].device, len(image)
        base = torch.tensor([self.seed], dtype=torch.int64, device=device)
        ids = batch.get("index") if isinstance(batch, dict) else None
        if ids is None:
            ids = getattr(getattr(trainer, "datamodule", None), "batch_ids", None)
        if isinstance(ids, Tensor) and ids.shape == (count,) and ids.dtype == torch.int64:
            return derive(base, stage, trainer.current_epoch, ids.to(device))
        return derive(base, stage, trainer.current_epoch, *position, torch.arange(count, device=device))


def _drop_copied_wrapper(module: pl.LightningModule, name: str) -> None:
    """Take away what a deep copy made during a run has carried along."""
    if hasattr(getattr(vars(module).get(name), "__func__", None), "_is_step_wrapper"):
        del vars(module)[name]


def _second_order_attention() -> AbstractContextManager[None]:
    """The fused attention kernels have no double backward; the plain one has."""
    return sdpa_kernel(SDPBackend.MATH)
