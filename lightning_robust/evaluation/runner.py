"""One model through the columns of an evaluation, sample by sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_robust import seeds as streams
from lightning_robust.attacks.contract import Model, attack_context
from lightning_robust.errors import InputError
from lightning_robust.evaluation.columns import Attack, Clean, Column, Corruption
from lightning_robust.evaluation.records import Record
from lightning_robust.evaluation.rounding import receive, round_to_8_bits, straight_through_8_bits, whole_levels

Transform: TypeAlias = Callable[[Tensor], Tensor]

_BUDGET_SLACK = 1e-4


def evaluate(
    model: Model,
    batches: Iterable[Sequence[Any]],
    columns: Sequence[Column],
    *,
    publish: Transform | None = None,
    purify: Transform | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[str, int], None] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Judge a model on every sample under every column.

    An image goes this way: decoded, published (and rounded to 8 bits), then attacked within a budget around the
    *published* image, or corrupted, received at 8 bits, purified, and classified. A received adversarial image is
    within the budget; rounding never carries it out.

    Args:
        model: images in [0, 1] to logits (normalization inside it); a module is evaluated in evaluation mode and left
            as it was.
        batches: of (image, target) or (image, target, ids); images uint8 or float in [0, 1], shape (B, C, H, W);
            targets class indices; ids whole numbers, by default the position in the stream.
        columns: what to judge, names all different.
        publish: what the owner of an image does before giving it away, for example sharpening; [0, 1] to [0, 1].
        purify: what the receiver does before the model; [0, 1] to [0, 1]. White-box attacks go through it.
        device: where to compute; by default where the model's first parameter is.
        progress: called with a column's name and the number of samples it has just finished.
        seed: of all random choices; a sample's draws depend on this and its id alone.

    Returns:
        One record per column, in their order, each with one bit per sample.

    Raises:
        InputError: if a batch, a column or an attack's result does not fit.
    """
    names = [column.name for column in columns]
    if len(set(names)) != len(names) or not names:
        raise InputError(f"The columns are named {names}: give at least one, and every one a name of its own.")
    owner = model if isinstance(model, nn.Module) else None
    parameter = None if owner is None else next(owner.parameters(), None)
    place = (
        torch.device(device) if device is not None else torch.device("cpu") if parameter is None else parameter.device
    )
    pipeline = _Pipeline(model, purify, torch.float32 if parameter is None else parameter.dtype)
    bits: dict[str, list[Tensor]] = {name: [] for name in names}
    ids: list[Tensor] = []
    seen = 0
    with attack_context(model, place, mode="eval", keep_statistics=True), torch.no_grad():
        for batch in batches:
            image, target, sample_ids = _read(batch, seen, place, pipeline.image_dtype)
            seen += len(image)
            published = round_to_8_bits(image if publish is None else publish(image).clamp(0, 1))
            scene = _Scene(pipeline, published, target, streams.derive(sample_ids, seed))
            ids.append(sample_ids.cpu())
            for column in columns:
                bits[column.name].append(scene.judge(column).cpu())
                if progress is not None:
                    progress(column.name, len(image))
    return _records(columns, ids, bits, seed)


@dataclasses.dataclass(frozen=True)
class _Pipeline:
    """The receiver: purifier and model."""

    model: Model
    purify: Transform | None
    dtype: torch.dtype

    @property
    def image_dtype(self) -> torch.dtype:
        return self.dtype if self.dtype == torch.float64 else torch.float32

    def logits(self, image: Tensor) -> Tensor:
        image = image if self.purify is None else self.purify(image)
        return self.model(image.to(self.dtype))

    def attacked(self, image: Tensor) -> Tensor:
        return self.logits(straight_through_8_bits(image))


class _Scene:
    """One batch, published; clean predictions are made once for all columns."""

    def __init__(self, pipeline: _Pipeline, published: Tensor, target: Tensor, seeds: Tensor) -> None:
        self.pipeline, self.published, self.target, self.seeds = pipeline, published, target, seeds
        self.clean = self._right(published, target)

    def judge(self, column: Column) -> Tensor:
        if isinstance(column, Clean):
            return self.clean
        if isinstance(column, Corruption):
            corrupted = column.function(self.published, seeds=self.seeds)
            return self._right(round_to_8_bits(corrupted.clamp(0, 1)), self.target)
        right = self.clean.clone()
        # a received image is on the grid, so an Linf budget holds whole levels only; what is beyond them would be lost
        budget = whole_levels(column.eps) if column.norm == "linf" else column.eps
        for member in column.members:
            index = right.nonzero()[:, 0]
            if len(index) == 0:
                break
            published, target = self.published[index], self.target[index]
            model = self.pipeline.attacked if column.surrogate is None else column.surrogate
            adversarial = member(model, published, target, eps=budget, norm=column.norm, seeds=self.seeds[index])
            _check_budget(adversarial, published, column)
            received = receive(adversarial, published, eps=column.eps, norm=column.norm)
            right[index] = self._right(received, target)
        return right

    def _right(self, received: Tensor, target: Tensor) -> Tensor:
        logits = self.pipeline.logits(received)
        if logits.ndim != 2 or len(logits) != len(target):
            raise InputError(
                f"The model returned a tensor of shape {tuple(logits.shape)} for {len(target)} images: an evaluation "
                "needs one row of class logits per image."
            )
        return logits.argmax(dim=1) == target


def _read(batch: Sequence[Any], seen: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(batch, list | tuple) or len(batch) not in (2, 3):
        raise InputError(
            f"A batch is a {type(batch).__name__}: give tuples of (image, target) or (image, target, ids)."
        )
    image, target = torch.as_tensor(batch[0]), torch.as_tensor(batch[1])
    ids = torch.as_tensor(batch[2]) if len(batch) == 3 else torch.arange(seen, seen + len(image))
    if image.ndim != 4 or target.shape != image.shape[:1] or target.is_floating_point() or ids.shape != target.shape:
        raise InputError(
            f"A batch holds images {tuple(image.shape)}, targets {tuple(target.shape)} ({target.dtype}) and ids "
            f"{tuple(ids.shape)}: give images (B, C, H, W), class indices (B,) and ids (B,)."
        )
    unit = image.to(device, dtype) / 255 if image.dtype == torch.uint8 else image.to(device, dtype)
    if unit.numel() > 0 and not (unit.min() >= -_BUDGET_SLACK and unit.max() <= 1 + _BUDGET_SLACK):
        raise InputError(
            f"A batch of images lies in [{unit.min():.3g}, {unit.max():.3g}]: give uint8, or floats in [0, 1], and put "
            "the normalization inside the model."
        )
    return unit.clamp(0, 1), target.to(device, torch.int64), ids.to(device, torch.int64)


def _check_budget(adversarial: Tensor, published: Tensor, column: Attack) -> None:
    change = (adversarial - published).flatten(1)
    size = change.abs().amax(1) if column.norm == "linf" else change.norm(dim=1)
    if not bool((size <= column.eps + _BUDGET_SLACK).all()):
        raise InputError(
            f"An attack of column {column.name!r} changed an image by {size.max():.4g} in {column.norm}, its budget is "
            f"{column.eps:.4g}: an attack has to keep the eps and norm it is called with."
        )


def _records(columns: Sequence[Column], ids: list[Tensor], bits: dict[str, list[Tensor]], seed: int) -> list[Record]:
    if not ids:
        raise InputError("There are no batches to evaluate: give at least one sample.")
    every = torch.cat(ids)
    order = every.argsort()
    ascending = every[order]
    if bool((ascending[1:] == ascending[:-1]).any()):
        twice = ascending[1:][ascending[1:] == ascending[:-1]][0].item()
        raise InputError(f"Sample id {twice} came twice: an evaluation counts every sample once.")
    return [
        Record(
            column=column.name,
            kind=column.kind,
            ids=tuple(ascending.tolist()),
            correct=tuple(torch.cat(bits[column.name])[order].tolist()),
            settings=column.settings(),
            seed=seed,
        )
        for column in columns
    ]
