"""Purify images in evaluation, before the net of a module sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_robust.batches import describe
from lightning_robust.callbacks.callback import StepCallback
from lightning_robust.callbacks.contribution import NetworkLogits, Step, as_unit, for_batch
from lightning_robust.callbacks.interception import intercepted
from lightning_robust.callbacks.pictures import heat_rows, log_picture, side_by_side, takes_pictures
from lightning_robust.callbacks.user_module import is_defined_by_user
from lightning_robust.defenses.contract import Defense
from lightning_robust.defenses.purified import check_votes, majority, purified_logits, wants_net
from lightning_robust.errors import InputError, UnsupportedError
from lightning_robust.images import ImageSpec, check_unit_batch
from lightning_robust.nn.activation_map import RobustActivationMap
from lightning_robust.seeds import derive, of_content

_GAIN = 10


class InputPurification(StepCallback):
    """Purify what a module evaluates, as a receiver does who knows nothing of the attack.

    With one vote the step gets purified images. With several the step gets its batch as it is and runs once; inside it
    the net is handed over: a call of it purifies the images that many times and returns the log-probabilities of
    :func:`lightning_robust.defenses.majority`, whose argmax is the majority (Ens-10 of Prakash et al., CVPR 2018, is
    ``votes=10``). It stands behind callbacks that publish or attack. Several defenses go into one
    :class:`lightning_robust.defenses.Sequence`.

    Args:
        defense: the transformation. If it holds an activation map that belongs to no net yet, the map is taken from
            the module's own net.
        votes: number of runs, each with its own draws.
        stages: where it acts; "train" is refused.
        network: name of the submodule from images to logits, such as ``"net"``, for modules whose own ``forward`` is
            something else or is not called by the step.
        votes_at_once: how many runs share a forward pass; None is all. Fewer need less memory.
        spec: how batches look, if no other callback says so.

    Raises:
        InputError: for the training stage, or another nonsense.
    """

    transforms = True
    purifies = True

    def __init__(
        self,
        defense: Defense,
        votes: int = 1,
        *,
        stages: Collection[str] = ("validate", "test", "predict"),
        network: str | None = None,
        votes_at_once: int | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        if not {"train", "fit"}.isdisjoint(stages):
            raise InputError(
                'InputPurification acts in evaluation only: leave "train" out of stages. To train on deflected or '
                "denoised images, give BatchAugmentation the Kornia form: RandomPixelDeflection or "
                "RandomWaveletDenoising."
            )
        super().__init__(stages=stages, spec=spec)
        check_votes(defense, votes, votes_at_once)
        self.defense, self.votes, self.votes_at_once, self.network = defense, votes, votes_at_once, network
        self._at_work: Defense | None = None

    def settings(self) -> dict[str, Any]:
        """Return the arguments as plain data."""
        return super().settings() | {
            "defense": describe_defense(self.defense),
            "votes": self.votes,
            "network": self.network,
        }

    def release(self, module: pl.LightningModule) -> None:
        """Leave the steps and let go of the net."""
        super().release(module)
        self._at_work = None

    def transform(self, step: Step) -> None:
        """Purify the batch, unless the net votes."""
        if self.votes > 1:
            return
        defense, image = self._prepared(step), step.image
        seeds = derive(step.seeds, "purification")
        if isinstance(image, Tensor):
            before = step.float_image("InputPurification")
            step.image = after = defense(before, seeds=seeds)
            self._report(step, before, after)
        else:  # of unequal size
            step.image = [defense(one[None], seeds=seed[None])[0] for one, seed in zip(image, seeds, strict=True)]

    def around(self, step: Step) -> AbstractContextManager[None]:
        """Let the net vote during the user's step."""
        return self._voting(step) if self.votes > 1 else nullcontext()

    @contextmanager
    def _voting(self, step: Step) -> Iterator[None]:
        ballots = 0

        def vote(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            nonlocal ballots
            ballots += 1
            return self._vote(step, _ImageCall.of(self._name(step.module), original, args, kwargs), first=ballots == 1)

        with intercepted(self._net(step.module), vote):
            yield
        if ballots == 0:
            raise UnsupportedError(
                f"{self._name(step.module)} was not called in a {step.stage} step of {type(step.module).__name__}, so "
                f"it could not vote. {_name_the_network(step.module)}"
            )

    def _vote(self, step: Step, call: _ImageCall, *, first: bool) -> Tensor:
        unit = as_unit(step.spec, call.image)
        advice = "If the step normalizes them, name by network= a module that does it inside, or leave network out."
        check_unit_batch(unit, "the votes of InputPurification", advice)
        purified: list[Tensor] = []

        def model(image: Tensor) -> Tensor:
            if first and not purified:
                purified.append(image[: len(unit)])
            return call.logits(for_batch(step.spec, image, call.image.dtype))

        run_seed = 0 if self._pipeline is None else self._pipeline.seed
        seeds = step.seeds if len(unit) == len(step.seeds) else derive(of_content(unit), run_seed)
        logits = purified_logits(
            model,
            self._prepared(step),
            unit,
            seeds=derive(seeds, "purification"),
            votes=self.votes,
            votes_at_once=1 if call.takes_more else self.votes_at_once,
        )
        for image in purified:
            self._report(step, unit, image)
        return majority(logits)

    def _prepared(self, step: Step) -> Defense:
        if self._at_work is None and wants_net(self.defense):
            net = NetworkLogits(self._net(step.module), step.spec, step.received[0].dtype)
            self._at_work = self.defense.bound_to(net)
        defense = self.defense if self._at_work is None else self._at_work
        return defense.to(step.device)

    def _net(self, module: pl.LightningModule) -> nn.Module:
        if self.network is None and is_defined_by_user(module, "forward"):
            return module
        named: nn.Module | None = dict(module.named_modules()).get(self.network or "")
        if not self.network or named is None:
            missing = f"submodule {self.network!r}" if self.network else "forward"
            raise UnsupportedError(f"{type(module).__name__} has no {missing}. {_name_the_network(module)}")
        return named

    def _name(self, module: pl.LightningModule) -> str:
        return f"{type(module).__name__}.{self.network or 'forward'}"

    def _report(self, step: Step, before: Tensor, after: Tensor) -> None:
        if before.shape != after.shape:  # a defense that resizes has no distortion
            return
        if step.stage != "predict":  # where Lightning takes no values
            error = (after.float() - before.float()).square().flatten(1).mean(1).clamp_min(1e-10)
            step.module.log(
                f"{self._title(step)}/psnr/{step.stage}",
                (-10 * error.log10()).mean().to(step.device),
                on_step=False,
                on_epoch=True,
                sync_dist=True,
                batch_size=len(after),
            )
        trainer: pl.Trainer = step.module.trainer
        if self.first_of_epoch(trainer, step.stage):
            difference = 0.5 + _GAIN * (after[0] - before[0])
            log_picture(
                trainer, f"{self._title(step)}/{step.stage}", side_by_side(before[0], after[0], difference.clamp(0, 1))
            )
            if takes_pictures(trainer):
                self._show_map(step, before)

    def _show_map(self, step: Step, before: Tensor) -> None:
        parts = self._prepared(step).modules()
        find_map = next((part for part in parts if isinstance(part, RobustActivationMap)), None)
        if find_map is None or before.shape[1] not in (1, 3):
            return
        image, published = before[:1], step.published
        if isinstance(published, Tensor) and published.shape == before.shape and published.dtype == before.dtype:
            # what an attack moved has a row of its own
            image = torch.cat([published[:1], image]) if not torch.equal(published[:1], image) else image
        picture = heat_rows(image, find_map(image, classes=1), find_map(image))
        log_picture(step.module.trainer, f"{self._title(step)}/{step.stage}-map", picture)

    def _title(self, step: Step) -> str:
        """What it logs under: of several in one Trainer, all but the first have a number."""
        trainer: Any = step.module.trainer
        callbacks = [one for one in trainer.callbacks if isinstance(one, InputPurification)]
        number = callbacks.index(self) + 1
        return "purification" if number == 1 else f"purification-{number}"


@dataclasses.dataclass(frozen=True)
class _ImageCall:
    """A call of a net: its image, what it returns for another one, and whether it takes more than an image."""

    image: Tensor
    logits: Callable[[Tensor], Tensor]
    takes_more: bool

    @classmethod
    def of(cls, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _ImageCall:
        values = [*args, *kwargs.values()]
        image = values[0] if values else None
        if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
            raise UnsupportedError(
                f"{name} was called with {describe(image)}, and InputPurification lets nets vote whose first argument "
                "is a batch of float images (B, C, H, W). Name such a submodule by network=."
            )

        def logits(other: Tensor) -> Tensor:
            if args:
                output = original(other, *args[1:], **kwargs)
            else:
                output = original(**(kwargs | {next(iter(kwargs)): other}))
            if not isinstance(output, Tensor) or output.ndim != 2:
                raise UnsupportedError(
                    f"{name} returned {describe(output)}, and votes are counted on logits (B, classes). Name a "
                    "submodule that returns them by network=."
                )
            return output

        return cls(image, logits, len(values) > 1)


def describe_defense(defense: Defense) -> dict[str, Any]:
    """Describe a defense and what it holds by class paths and public attributes that are plain data."""
    described: dict[str, Any] = {}
    for name, part in defense.named_modules():
        plain = {key: value for key, value in vars(part).items() if key != "training" and key[0] != "_"}
        described[name or "defense"] = {
            "class_path": f"{type(part).__module__}.{type(part).__qualname__}",
            **{key: value for key, value in plain.items() if _is_plain(value)},
        }
    return described


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _name_the_network(module: nn.Module) -> str:
    names = [name for name, _ in module.named_children()]
    return f"Name the submodule from images to logits by network=, for example one of {names}."
