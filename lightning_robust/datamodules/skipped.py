"""What happens when a training sample cannot be decoded: raise, skip, or skip up to a limit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from lightning_robust.errors import InputError, RobustWarning, ShardError

OnError: TypeAlias = Literal["raise", "skip"] | int

logger = logging.getLogger(__name__)


def check_on_error(on_error: OnError, purpose: str) -> None:
    """Refuse what is no way to treat a bad sample, and skipping in evaluation.

    Raises:
        InputError: naming the choices.
    """
    is_limit = isinstance(on_error, int) and not isinstance(on_error, bool) and on_error > 0
    if not is_limit and on_error not in ("raise", "skip"):
        raise InputError(
            f"on_error={on_error!r} is unknown: give 'raise', 'skip', or the number of bad samples to put up with, 1 "
            "or more."
        )
    if on_error != "raise" and purpose == "evaluate":
        raise InputError(
            f"on_error={on_error!r} would leave samples out of the evaluation without a trace in its figures: evaluate "
            "with on_error='raise', and take bad samples out of the shards."
        )


class SkippedSamples:
    """Counts the samples that were skipped, warns of the first, logs each, and ends at the limit.

    Args:
        on_error: ``"skip"``, or the number of samples to put up with.
        instead: what was done, for the warning: "replaced by the next good one".

    Attributes:
        reasons: by sample, why it was skipped.
    """

    def __init__(self, on_error: OnError, instead: str) -> None:
        self.reasons: dict[Any, str] = {}
        self._on_error = on_error
        self._instead = instead

    def take(self, skipped: Mapping[Any, str]) -> None:
        """Count samples that a worker skipped, each once however often it comes.

        Raises:
            ShardError: if there are now more of them than ``on_error`` allows.
        """
        fresh = {sample: reason for sample, reason in skipped.items() if sample not in self.reasons}
        if fresh and not self.reasons:
            warnings.warn(
                f"A sample was {self._instead}: {next(iter(fresh.values()))} Others are logged and counted in "
                "`skipped` of the loader or data module.",
                RobustWarning,
                stacklevel=4,
            )
        for reason in fresh.values():
            logger.warning("Skipped, as on_error=%r asks: %s", self._on_error, reason)
        self.reasons.update(fresh)
        check_limit(self.reasons, self._on_error)


def check_limit(reasons: Mapping[Any, str], on_error: OnError) -> None:
    """End at the limit.

    Args:
        reasons: by sample, why it was skipped.
        on_error: as :func:`check_on_error` allows it.

    Raises:
        ShardError: if there are more samples than ``on_error`` allows.
    """
    if isinstance(on_error, int) and len(reasons) > on_error:
        raise ShardError(
            f"{len(reasons)} samples cannot be read and on_error={on_error} puts up with {on_error}; the last because: "
            f"{list(reasons.values())[-1]} `lightning-robust shards verify` lists them all."
        )
