"""Learning-rate factors against the formula that torch and the released recipe use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_robust.models.schedules import learning_rate_factor


@given(total=st.integers(1, 1000), share=st.floats(0, 1))
def test_triangle_is_the_interpolation_of_the_released_recipe(total: int, share: float) -> None:
    step = round(share * total)
    expected = np.interp([step / total * 30], [0, 30 * 2 // 5, 30], [0, 1, 0])[0]
    assert learning_rate_factor(step, total, "triangular") == pytest.approx(expected, abs=1e-9)


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for step in range(20):
        assert learning_rate_factor(step, 20, "cosine") == pytest.approx(scheduler.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["cosine", "triangular"])
def test_a_step_past_the_end_has_no_learning_rate(schedule: str) -> None:
    assert learning_rate_factor(25, 20, schedule) == pytest.approx(0.0)  # type: ignore[arg-type]
