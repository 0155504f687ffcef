"""Ways of drawing training samples other than each once in an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from lightning_robust.datamodules.balance import ClassMembers
from lightning_robust.datamodules.mix import Sources
from lightning_robust.datamodules.plan import Order
from lightning_robust.errors import InputError
from lightning_robust.shards import ShardIndex


class Scheme(Protocol):
    """A way of drawing samples."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint notes."""
        ...

    def order(self, *, seed: int, epoch: int, length: int, window: int) -> Order:
        """The order of one epoch."""
        ...


def make_scheme(
    index: ShardIndex, *, balance: str | None, mix: Mapping[str, float] | None, purpose: str, shuffle: bool
) -> Scheme | None:
    """Way of drawing that a user asks for; None for each sample once.

    Args:
        index: the shards.
        balance: ``"class"`` or None.
        mix: weights of sources by pattern, or None.
        purpose: ``"train"`` or ``"evaluate"``.
        shuffle: whether every epoch has its own order.

    Raises:
        InputError: if it is unknown, or does not go with the other arguments or the shards.
    """
    if balance is None and mix is None:
        return None
    asked = f"balance={balance!r}" if mix is None else f"mix={dict(mix)}"
    if balance is not None and mix is not None:
        raise InputError(f"balance={balance!r} and {asked} both say how often a sample is drawn: give one of them.")
    if purpose != "train" or not shuffle:
        raise InputError(
            f"{asked} is for shuffled training; here are purpose={purpose!r} and shuffle={shuffle}. An evaluation "
            "takes every sample once: weight its figures instead."
        )
    if mix is not None:
        return Sources(mix, index.paths, index.counts)
    if balance != "class":
        raise InputError(f"balance={balance!r} is unknown: give 'class', or None.")
    if index.labels is None:
        raise InputError("balance='class' needs labels, and these shards were opened with label_key=None.")
    return ClassMembers(index.labels, index.counts)
