"""The columns of an evaluation: what is done to an image between its owner and the model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from lightning_robust.attacks import pgd
from lightning_robust.attacks.contract import Model
from lightning_robust.attacks.norms import NormName
from lightning_robust.errors import InputError

AttackFunction: TypeAlias = Callable[..., Tensor]
CorruptionFunction: TypeAlias = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Clean:
    """Published images as they are."""

    name: str = "clean"
    kind = "clean"

    def settings(self) -> dict[str, Any]:
        """Return what was done, as plain data."""
        return {}


@dataclasses.dataclass(frozen=True)
class Attack:
    """Published images attacked; right are those that are right before it and after every member.

    Args:
        name: of the column.
        members: attacks, tried in turn on the samples that the earlier ones left right. Each is called with model,
            image, target, ``eps``, ``norm`` and ``seeds``.
        eps: budget in [0, 1] image units.
        norm: of the budget.
        surrogate: the model that the attacker holds. None is the white-box case: the attacker differentiates through
            the rounding to 8 bits, the purifier and the evaluated model. Give another net for a transferred attack, or
            the bare net for one that does not know of the purifier, and name the column so.
    """

    name: str
    members: Sequence[AttackFunction]
    eps: float
    norm: NormName = "linf"
    surrogate: Model | None = None
    kind = "attack"

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members or not self.eps >= 0:
            raise InputError(
                f"Column {self.name!r} has {len(self.members)} attacks and eps={self.eps}: give at least one attack "
                "and a budget of at least 0."
            )

    def settings(self) -> dict[str, Any]:
        """Return what was done, as plain data."""
        return {
            "eps": self.eps,
            "norm": self.norm,
            "members": [_describe(member) for member in self.members],
            "surrogate": None if self.surrogate is None else type(self.surrogate).__name__,
        }


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Published images corrupted.

    Args:
        name: of the column.
        function: called with image and ``seeds``.
    """

    name: str
    function: CorruptionFunction
    kind = "corruption"

    def settings(self) -> dict[str, Any]:
        """Return what was done, as plain data."""
        return {"function": _describe(self.function)}


Column: TypeAlias = Clean | Attack | Corruption


def worst_of_pgd(eps: float, *, steps: int = 20, norm: NormName = "linf", surrogate: Model | None = None) -> Attack:
    """Return the column of PGD with cross-entropy and then with the margin loss: per sample the worse of the two.

    Both stop at a sample's first wrong prediction, since a score needs no more.

    Args:
        eps: budget in [0, 1] image units; the name shows it in 8-bit levels for ``linf``.
        steps: gradient steps of each.
        norm: of the budget.
        surrogate: see :class:`Attack`.

    Returns:
        The column.
    """
    budget = f"{eps * 255:.3g}/255" if norm == "linf" else f"L2 {eps:.3g}"
    member = functools.partial(pgd, steps=steps, early_stop=True)
    return Attack(
        f"PGD-{steps} {budget}{'' if surrogate is None else ' (transfer)'}",
        (functools.partial(member, loss="cross_entropy"), functools.partial(member, loss="margin")),
        eps=eps,
        norm=norm,
        surrogate=surrogate,
    )


def _describe(function: Callable[..., Any]) -> dict[str, Any]:
    if isinstance(function, functools.partial):
        options = {
            name: value if isinstance(value, int | float | str) else repr(value)
            for name, value in function.keywords.items()
        }
        return {**_describe(function.func), **options}
    return {"name": getattr(function, "__name__", type(function).__name__)}
