"""Work of which every process does a part and tells all others how it went, however long one takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from lightning_robust.errors import RobustError

_Result = TypeVar("_Result")

# far below any sensible time-out of a process group
_SECONDS_BETWEEN_SIGNS = 1.0
_SECONDS_TO_LEAVE = 5.0


class _Outcome(NamedTuple):
    """What one process tells the others: what went wrong, if anything, and what came of its work."""

    error: str | None
    result: Any


class _NobodyWaitsError(Exception):
    """Ends work whose result nobody waits for any more."""


def together(work: Callable[[Callable[[], None]], _Result], world: int) -> list[_Result]:
    """Do something in every process; return what each returned, or raise in all of them what one raised.

    The work is done in a thread. Until all are done, the processes exchange signs of life, so that it may last longer
    than the time-out of the process group; that limits how long nothing is heard of a process.

    Args:
        work: is given a function to call now and then, which raises once nobody waits for the result any more.
        world: number of processes; one alone works without thread and exchange.

    Returns:
        What each process returned, by rank.

    Raises:
        RobustError: in another process the work raised, or that process is gone.
    """
    if world == 1:
        return [work(lambda: None)]
    own: Future[_Result] = Future()
    left = threading.Event()

    def stay() -> None:
        if left.is_set():
            raise _NobodyWaitsError

    # a daemon: a process that has to end does not wait for it
    thread = threading.Thread(target=_do, args=(work, stay, own), daemon=True)
    thread.start()
    try:
        outcomes = _exchanged(own, world)
    finally:
        left.set()
        thread.join(_SECONDS_TO_LEAVE)
    failed = [(rank, outcome.error) for rank, outcome in enumerate(outcomes) if outcome.error is not None]
    if failed:
        rank, message = failed[0]
        raise own.exception() or RobustError(f"Process {rank} of {world} stopped: {message}")
    return [outcome.result for outcome in outcomes]


def _do(work: Callable[[Callable[[], None]], _Result], stay: Callable[[], None], own: Future[_Result]) -> None:
    try:
        own.set_result(work(stay))
    except BaseException as error:
        own.set_exception(error)


def _exchanged(own: Future[Any], world: int) -> list[_Outcome]:
    """Tell the others again and again how far this process is, until all of them are done."""
    while True:
        wait([own], _SECONDS_BETWEEN_SIGNS)
        everyone: list[Any] = [None] * world
        try:
            dist.all_gather_object(everyone, _outcome(own))
        except RuntimeError as error:
            raise RobustError(
                "Another process is gone, or did not answer in time. What was finished is kept: run the same command "
                "again."
            ) from error
        if None not in everyone:
            return everyone


def _outcome(own: Future[Any]) -> _Outcome | None:
    if not own.done():
        return None
    error = own.exception()
    return _Outcome(None, own.result()) if error is None else _Outcome(str(error) or repr(error), None)
