"""Learning rate as a factor of the step, for schedules that are updated every step."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["constant", "cosine", "triangular"]

_PEAK = 0.4


def learning_rate_factor(step: int, total: int, schedule: Schedule) -> float:
    """Return what the peak learning rate is multiplied by at a step.

    ``cosine`` falls from 1 to 0 along half a period; ``triangular`` rises from 0 to 1 at two fifths of the steps and
    falls back to 0 (the released recipe of JaFR and GradAlign); ``constant`` is 1.

    Args:
        step: steps taken so far.
        total: steps of the whole run.
        schedule: name of the schedule.

    Example:
        >>> [learning_rate_factor(step, 10, "triangular") for step in (0, 2, 4, 10)]
        [0.0, 0.5, 1.0, 0.0]
    """
    if schedule == "constant":
        return 1.0
    progress = min(step / max(total, 1), 1.0)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return progress / _PEAK if progress < _PEAK else (1.0 - progress) / (1.0 - _PEAK)
