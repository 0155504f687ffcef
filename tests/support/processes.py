"""Start processes that owe nothing to the tests that ran before."""

from __future__ import annotations

import os
from pathlib import Path

_LEFT_BY_OTHERS = ("PL_", "MASTER_", "LOCAL_", "NODE_RANK", "RANK", "WORLD_SIZE", "GROUP_")


def own_environment() -> dict[str, str]:
    """Variables for a process of its own, which finds ``support``.

    Without what other tests of this process left: addresses, ranks, a seed that Lightning sets again under DDP alone.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_LEFT_BY_OTHERS)}
    own = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return inherited | own
