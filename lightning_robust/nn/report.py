"""What a swap did: the report, its printed form and its record."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_robust.errors import InputError
from lightning_robust.nn._downsampling import NAMED_POOLS, Downsampling, Pool, pool_name

RECORD_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ChangedLayer:
    """A layer that now pools: its name, the class it had, and how it was swapped."""

    name: str
    kind: str
    spec: Downsampling


@dataclasses.dataclass(frozen=True)
class SkippedLayer:
    """A layer that downsamples or pools and was left alone, with the reason."""

    name: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class UnreachedOperation:
    """A reduction of the map outside of any layer that can be swapped: in the forward of the module ``name``."""

    name: str
    kind: str
    operation: str

    def __str__(self) -> str:
        return f"{self.operation} in {self.name or 'the model'} ({self.kind})"


@dataclasses.dataclass(frozen=True)
class SwapReport:
    """What ``swap_downsampling`` changed, skipped and could not reach.

    Args:
        changed: the layers that now pool without aliases.
        skipped: the layers left alone, with reasons.
        unreached: functional pools and strided slices that a probe run met; empty without ``example_input``.
    """

    changed: tuple[ChangedLayer, ...] = ()
    skipped: tuple[SkippedLayer, ...] = ()
    unreached: tuple[UnreachedOperation, ...] = ()

    def __str__(self) -> str:
        rows = [("changed", layer.name, layer.kind, str(layer.spec)) for layer in self.changed]
        rows += [("skipped", layer.name, layer.kind, layer.reason) for layer in self.skipped]
        rows += [("unreached", found.name, found.kind, found.operation) for found in self.unreached]
        counts = f"{len(self.changed)} changed, {len(self.skipped)} skipped, {len(self.unreached)} unreached"
        table = [(state, name or "(the model)", kind, detail) for state, name, kind, detail in rows]
        widths = [max((len(row[column]) for row in table), default=0) for column in range(3)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in table
        ]
        return "\n".join([f"Downsampling: {counts}", *lines])

    def to_record(self) -> dict[str, Any]:
        """Return the changed layers as plain data, which ``apply_record`` and ``restore`` read.

        Raises:
            InputError: if a pool is a callable that cannot be imported by name, as a lambda or a partial.
        """
        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "pool": recorded_pool(layer.spec.pool),
                "order": layer.spec.order,
                "max_pool": layer.spec.max_pool,
                "stride": list(layer.spec.stride),
            }
            for layer in self.changed
        ]
        return {"version": RECORD_VERSION, "layers": layers}


def recorded_pool(pool: Pool) -> str:
    """Return the name of a pool, or its import path ``module:name``."""
    if isinstance(pool, str):
        return pool
    path = f"{getattr(pool, '__module__', '')}:{getattr(pool, '__qualname__', '')}"
    if _find(path) is not pool:
        raise InputError(
            f"pool={pool_name(pool)} cannot be recorded, because it cannot be imported by name: define it as a "
            "function or a torch.nn.Module class at the top of a module."
        )
    return path


def pool_of_record(recorded: str) -> Pool:
    """Return the pool that ``recorded_pool`` named; only modules that are already imported are looked up."""
    if recorded in NAMED_POOLS:
        return recorded
    pool = _find(recorded)
    if pool is None:
        raise InputError(
            f"The record names the pool {recorded!r}, and no function or torch.nn.Module class is defined there: "
            "import the module that defines the pool, then restore."
        )
    return pool


def _find(path: str) -> Callable[..., Any] | None:
    # A checkpoint must not be able to import code, nor to call what was never meant as a pool: only functions and
    # modules that the program has loaded itself, under the name they were defined by.
    module_name, _, name = str(path).partition(":")
    found: Any = vars(sys.modules[module_name]).get(name) if module_name in sys.modules else None
    usable = inspect.isfunction(found) or (inspect.isclass(found) and issubclass(found, nn.Module))
    return found if usable and (found.__module__, found.__qualname__) == (module_name, name) else None
