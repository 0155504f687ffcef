"""Where in its epoch a loader goes on from a saved state, also with batches of another size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from lightning_robust.datamodules.tasks import LoaderPlan
from lightning_robust.errors import InputError

STATE_VERSION = 1
_GLOBAL_BATCH = "global_batch_size"
_KEYS = ("version", "data", "fingerprint", "order", "epoch", "consumed")


class Recount(NamedTuple):
    """Batches of an epoch that count as done: by the size that a checkpoint was made with, and by the present one."""

    before: int
    now: int


def check_form(state: dict[str, Any]) -> None:
    """Check that something is a state of a loader at all.

    Raises:
        InputError: naming what it lacks.
    """
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise InputError(
            f"This is no state of a ShardLoader, since it lacks {', '.join(missing)}: give what state_dict() of one "
            "returned."
        )


def check_order(state: dict[str, Any], plan: LoaderPlan, *, any_batch_size: bool) -> None:
    """Check that the order of samples is the one that a state was made in.

    Args:
        state: of a loader.
        plan: of the loader that goes on.
        any_batch_size: whether the samples of all ranks in one batch may be more or fewer than they were.

    Raises:
        InputError: naming the settings that differ.
    """
    found, own = state["order"], plan.settings()
    changed = [key for key in own if found.get(key) != own[key]]
    remedy = "use the same settings (the batch size of all ranks together counts)"
    if any_batch_size and plan.train and changed == [_GLOBAL_BATCH]:
        if plan.scheme is None:
            changed = []
        remedy = (
            "with balance or mix, what an epoch draws depends on how many full batches it has; take a batch_size and "
            "a number of ranks of the same product"
        )
    if changed or state["version"] != STATE_VERSION:
        differences = ", ".join(f"{key}={found.get(key)} there and {own[key]} here" for key in changed)
        raise InputError(
            f"The checkpoint cannot be resumed with another order of batches ({differences}; version "
            f"{state['version']}, ours is {STATE_VERSION}): {remedy}, or load the weights alone (load_from_checkpoint)."
        )


def resumed_position(state: dict[str, Any], plan: LoaderPlan) -> tuple[int, Recount | None]:
    """Samples of the epoch that count as delivered, and how its batches are counted from now on.

    What is left of an epoch is divided into batches of the present size. Where it does not fill one, the epoch still
    gets one, whose first samples come for the second time: a Trainer ends an epoch with its last batch.

    Args:
        state: of a loader, checked.
        plan: of the loader that goes on.

    Returns:
        The samples, and None where the batches are of the size that they were.
    """
    consumed, size = state["consumed"], state["order"][_GLOBAL_BATCH]
    if size == plan.global_batch:
        return consumed, None
    former = replace(plan, batch_size=size, world=1, rank=0)
    before = former.done(consumed)
    consumed = plan.length if before == former.batches else min(consumed, plan.length - plan.global_batch)
    return consumed, Recount(before, plan.done(consumed))
