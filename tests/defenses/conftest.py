"""What the tests of single defenses share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Results of other libraries on the image ``rgb_even``; arrays of shape (H, W, C)."""
    with np.load(Path(__file__).parents[1] / "golden" / "defenses.npz") as file:
        return dict(file)
