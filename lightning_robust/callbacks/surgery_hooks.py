"""What a module under surgery must do at its own hooks: swap what it builds late, and know its checkpoints.

The hooks are put on the instance while at least one callback operates on it. The module's own checkpoint hooks are used
because Lightning calls them for weights-only files too, and on loading before the weights.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_robust.callbacks.user_module import is_defined_by_user
from lightning_robust.errors import RobustWarning, UnsupportedError

if TYPE_CHECKING:
    import pytorch_lightning as pl

RECORD = "lightning_robust"
_HOOKS = ("configure_model", "on_save_checkpoint", "on_load_checkpoint")
_operated: WeakKeyDictionary[Any, _Surgeons] = WeakKeyDictionary()


class Surgeon(Protocol):
    """A callback that swaps layers."""

    def swap(self, module: pl.LightningModule) -> None:
        """Swap what is there, or say that there is nothing."""

    def layers(self) -> list[dict[str, Any]]:
        """Return the swapped layers as plain data."""


class _Surgeons:
    def __init__(self, module: pl.LightningModule) -> None:
        self.callbacks: list[Surgeon] = []
        for name, function in _FUNCTIONS.items():
            if getattr(vars(module).get(name), "__func__", None) is function:  # of a deep copy made during a run
                del vars(module)[name]
        self.previous = {name: vars(module).get(name) for name in _HOOKS}
        self.builds_later = any(is_defined_by_user(module, name) for name in ("setup", "configure_model"))


def operate(module: pl.LightningModule, callback: Surgeon) -> bool:
    """Let a callback swap layers of a module, now and after ``configure_model``, until :func:`leave`.

    Returns:
        Whether the module may build more layers later.
    """
    surgeons = _operated.get(module)
    if surgeons is None:
        surgeons = _operated[module] = _Surgeons(module)
        # Not wrapped by functools: Lightning would follow __wrapped__ to its own default and call nothing.
        if surgeons.builds_later:
            vars(module)["configure_model"] = types.MethodType(_configure_model, module)
        vars(module)["on_save_checkpoint"] = types.MethodType(_on_save_checkpoint, module)
        vars(module)["on_load_checkpoint"] = types.MethodType(_on_load_checkpoint, module)
    if callback not in surgeons.callbacks:
        surgeons.callbacks.append(callback)
    return surgeons.builds_later


def leave(module: pl.LightningModule, callback: Surgeon) -> None:
    """Take the hooks back with the last callback; the layers stay swapped. Safe to call twice."""
    surgeons = _operated.get(module)
    if surgeons is None:
        return
    surgeons.callbacks = [c for c in surgeons.callbacks if c is not callback]
    if surgeons.callbacks:
        return
    for name, previous in surgeons.previous.items():
        if previous is None:
            vars(module).pop(name, None)
        else:
            vars(module)[name] = previous
    del _operated[module]


def _own(module: Any, name: str) -> Callable[..., Any]:
    surgeons = _operated.get(module)
    previous = None if surgeons is None else surgeons.previous[name]
    own: Callable[..., Any] = getattr(type(module), name).__get__(module) if previous is None else previous
    return own


def _surgeons_of(module: Any) -> list[Surgeon]:
    surgeons = _operated.get(module)  # a copy of the module has none
    return [] if surgeons is None else list(surgeons.callbacks)


def _configure_model(self: pl.LightningModule) -> None:
    _own(self, "configure_model")()
    for surgeon in _surgeons_of(self):
        surgeon.swap(self)


def _on_save_checkpoint(self: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    write_record(checkpoint, [layer for surgeon in _surgeons_of(self) for layer in surgeon.layers()])
    _own(self, "on_save_checkpoint")(checkpoint)


def write_record(checkpoint: dict[str, Any], layers: Sequence[dict[str, Any]]) -> None:
    """Name swapped layers in a checkpoint, beside those that it names already."""
    told = checkpoint.get(RECORD, {}).get("downsampling", {}).get("layers", [])
    record = _as_record([*told, *layers])
    if record is not None:
        checkpoint.setdefault(RECORD, {})["downsampling"] = record


def _on_load_checkpoint(self: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    found, own = checkpoint.get(RECORD, {}).get("downsampling"), _record(self)
    if own is not None and found is None:
        rank_zero_warn(
            "The checkpoint holds no record of swapped layers: it comes from the plain net. Its weights are loaded "
            "into the swapped one.",
            category=RobustWarning,
        )
    elif own is not None and found != own:
        raise UnsupportedError(
            f"The checkpoint was trained with another swap of downsampling layers. It records {found}; this run "
            f"swapped {own}. Give FrequencyPooling the settings of the checkpoint."
        )
    _own(self, "on_load_checkpoint")(checkpoint)


def _record(module: Any) -> dict[str, Any] | None:
    return _as_record([layer for surgeon in _surgeons_of(module) for layer in surgeon.layers()])


def _as_record(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    layers = {layer["name"]: layer for layer in found}
    return {"version": 1, "layers": [layers[name] for name in sorted(layers)]} if layers else None


_FUNCTIONS = dict(zip(_HOOKS, (_configure_model, _on_save_checkpoint, _on_load_checkpoint), strict=True))
# pickle finds a bound method again by the name of its function
for _name, _function in _FUNCTIONS.items():
    _function.__name__ = _name
