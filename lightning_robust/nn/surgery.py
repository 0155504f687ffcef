"""Swap the downsampling layers of a model for alias-free ones, in place, and undo it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lightning_robust.errors import InputError, NoEffectWarning
from lightning_robust.nn._downsampling import Downsampling, MaxPolicy, Order, Pool, pool_name, specification
from lightning_robust.nn._pooled_layers import SWAPPED_CLASSES, undo
from lightning_robust.nn._swap_rules import Settings, Swap, effective_order, plan
from lightning_robust.nn.probe import find_unreached
from lightning_robust.nn.report import (
    RECORD_VERSION,
    ChangedLayer,
    SkippedLayer,
    SwapReport,
    UnreachedOperation,
    pool_of_record,
)

Patterns = str | Sequence[str] | None
_ORIGINAL_NAMES = {swapped: original.__name__ for original, swapped in SWAPPED_CLASSES.items()}


def swap_downsampling(
    model: nn.Module,
    pool: Pool = "asap",
    *,
    order: Order = "pool_first",
    max_pool: MaxPolicy = "replace",
    include: Patterns = None,
    exclude: Patterns = None,
    example_input: Any = None,
) -> SwapReport:
    """Swap strided convolutions, max pools and average pools for alias-free ones, in place.

    Layers keep their names, parameters, hooks and output sizes, so checkpoints, optimizers and the rest of the model do
    not notice. A second call with the same choices changes nothing and reports the same.

    Args:
        model: any module; it is changed.
        pool: ``"asap"`` (default), ``"flc"``, ``"blur"`` (binomial), a function ``(x, output_size) -> y``, or a module
            class that is built per layer as ``cls(stride)`` and called as ``layer(x, output_size)``.
        order: for convolutions with a kernel above 1 x 1. ``"pool_first"`` (default, as in the released networks):
            pool, then convolve with stride 1; for training from scratch. ``"lowpass"`` (ours): low-pass, then the
            unchanged strided convolution; for pretrained weights. ``"conv_first"``: convolve with stride 1, then pool;
            stride^2 times the work. 1 x 1 convolutions always pool first, which is the same and cheaper.
        max_pool: ``"replace"`` (default, as in the released networks) drops the maximum; ``"max_then_pool"`` takes it
            with stride 1 before pooling.
        include: name patterns (``fnmatch``, as ``"layer[34].*"``) of the layers to swap; all by default. Calls with
            other choices for other layers add up.
        exclude: name patterns of layers to leave alone, also where they are swapped in another way.
        example_input: a batch, or a tuple or dict of the arguments of ``model``. One run in evaluation mode then finds
            what layers cannot show: functional pools and strided slices.

    Returns:
        The report: what was changed, skipped (with reasons) and could not be reached.

    Raises:
        InputError: if a choice is unknown, or a selected layer is already swapped in another way.

    Warns:
        NoEffectWarning: if nothing was changed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        >>> print(swap_downsampling(net))
        Downsampling: 2 changed, 0 skipped, 0 unreached
        changed  0  Conv2d     pool=asap, order=pool_first, replaces stride=(2, 2)
        changed  2  MaxPool2d  pool=asap, order=pool_first, replaces stride=(2, 2)
    """
    settings = Settings(pool, order, max_pool)
    changed: list[ChangedLayer] = []
    skipped: list[SkippedLayer] = []
    swaps: list[tuple[nn.Module, Swap]] = []
    for names, module in _layers(model):
        name, kind = names[0], _kind(module)
        choice = _choice(names, include, exclude)
        there = specification(module)
        if there is not None:
            if choice and not _is_as_asked(module, there, settings):
                skipped.append(SkippedLayer(name, kind, f"{choice}; swapped before, {there}"))
                continue
            _refuse_other(name, module, there, settings)
            changed.append(ChangedLayer(name, kind, there))
            continue
        planned = plan(module, settings)
        if planned is None:
            continue
        if isinstance(planned, str) or choice:
            skipped.append(SkippedLayer(name, kind, choice or str(planned)))
            continue
        changed.append(ChangedLayer(name, kind, planned.spec))
        swaps.append((module, planned))
    unreached: tuple[UnreachedOperation, ...] = () if example_input is None else find_unreached(model, example_input)
    for module, swap in swaps:
        swap.apply(module)
    report = SwapReport(tuple(changed), tuple(skipped), unreached)
    if not changed:
        warnings.warn(f"No layer of {type(model).__name__} was swapped. {report}", NoEffectWarning, stacklevel=2)
    return report


def revert_downsampling(model: nn.Module) -> tuple[str, ...]:
    """Undo ``swap_downsampling``: every swapped layer gets its class, stride and hooks back.

    Args:
        model: changed in place; one without swapped layers stays as it is.

    Returns:
        The names of the layers that were given back.

    Raises:
        UnsupportedError: if a layer was parametrized after it was swapped.
    """
    swapped = [(names[0], module) for names, module in _layers(model) if specification(module) is not None]
    for _, module in swapped:
        undo(module)
    return tuple(name for name, _ in swapped)


def is_swapped(model: nn.Module) -> bool:
    """Tell whether any layer of a model is swapped.

    Args:
        model: any module.

    Returns:
        True if :func:`revert_downsampling` would change it.
    """
    return any(specification(module) is not None for _, module in _layers(model))


def apply_record(model: nn.Module, record: Mapping[str, Any]) -> SwapReport:
    """Swap the layers that a record of ``SwapReport.to_record`` names, in the way it names.

    Args:
        model: changed in place; parameters keep their keys and their identity.
        record: plain data, as a checkpoint holds it.

    Returns:
        What was swapped; nothing of it is skipped.

    Raises:
        InputError: if the record is not one, names a layer that the model lacks or that cannot be swapped, or if the
            model carries another swap.
    """
    wanted = _read_record(record)
    layers = {name: module for names, module in _layers(model) for name in names}
    first_names = [names[0] for names, module in _layers(model) if specification(module) is not None]
    for name in first_names:
        if name not in wanted:
            raise InputError(f"{name} is swapped ({specification(layers[name])}), but the record does not name it.")
    swaps: list[tuple[nn.Module, Swap]] = []
    changed: list[ChangedLayer] = []
    for name, (settings, stride) in wanted.items():
        if name not in layers:
            raise InputError(f"The record names the layer {name!r}, which {type(model).__name__} does not have.")
        module = layers[name]
        spec = specification(module)
        if spec is None:
            planned = plan(module, settings)
            if not isinstance(planned, Swap):
                raise InputError(
                    f"The record swaps {name}, which cannot be done here: {planned or 'it has no stride'}."
                )
            swaps.append((module, planned))
            spec = planned.spec
        else:
            _refuse_other(name, module, spec, settings)
        if spec.stride != stride:
            raise InputError(f"The record replaces stride {stride} in {name}, which has stride {spec.stride} here.")
        changed.append(ChangedLayer(name, _kind(module), spec))
    for module, swap in swaps:
        swap.apply(module)
    return SwapReport(tuple(changed))


def _layers(model: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """Yield every module once with all its names, without the pools that swapped layers hold."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    inside = {part for module in names if specification(module) for part in module.modules() if part is not module}
    yield from ((found, module) for module, found in names.items() if module not in inside)


def _kind(module: nn.Module) -> str:
    return _ORIGINAL_NAMES.get(type(module), type(module).__name__)


def _choice(names: list[str], include: Patterns, exclude: Patterns) -> str | None:
    if include is not None and not _matches(names, include):
        return "not included"
    return "excluded" if exclude is not None and _matches(names, exclude) else None


def _matches(names: list[str], patterns: str | Sequence[str]) -> bool:
    several = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) for name in names for pattern in several)


def _is_as_asked(module: nn.Module, there: Downsampling, asked: Settings) -> bool:
    return (there.pool, there.max_pool, there.order) == (asked.pool, asked.max_pool, effective_order(module, asked))


def _refuse_other(name: str, module: nn.Module, there: Downsampling, asked: Settings) -> None:
    if not _is_as_asked(module, there, asked):
        raise InputError(
            f"{name} is already swapped ({there}, max_pool={there.max_pool}), and pool={pool_name(asked.pool)}, "
            f"order={effective_order(module, asked)}, max_pool={asked.max_pool} was asked for: call "
            "revert_downsampling first, leave the layer out by exclude, or give the same choices."
        )


def _read_record(record: Mapping[str, Any]) -> dict[str, tuple[Settings, tuple[int, int]]]:
    try:
        if record["version"] != RECORD_VERSION:
            raise InputError(
                f"The record has version {record['version']}; this release reads version {RECORD_VERSION}."
            )
        return {
            str(layer["name"]): (
                Settings(pool_of_record(layer["pool"]), layer["order"], layer["max_pool"]),
                (int(layer["stride"][0]), int(layer["stride"][1])),
            )
            for layer in record["layers"]
        }
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"This is no record of swap_downsampling ({error!r} is missing or wrong): {record}") from error
