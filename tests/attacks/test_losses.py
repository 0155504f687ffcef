from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.attacks.losses import cross_entropy, margin
from lightning_robust.errors import InputError


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(-100, 100), classes=st.integers(2, 6))
def test_margin_equals_loops_and_ignores_a_shift(seed, shift, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, classes, generator=generator, dtype=torch.float64) + shift
    target = torch.randint(classes, (4,), generator=generator)
    expected = [
        max(row[k] for k in range(classes) if k != y) - row[y]
        for row, y in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    torch.testing.assert_close(margin(logits, target), torch.tensor(expected, dtype=torch.float64))


def test_margin_is_positive_exactly_where_the_prediction_is_wrong():
    logits, target = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 5
    assert torch.equal(margin(logits, target) > 0, logits.argmax(1) != target)


@pytest.mark.parametrize("target", [torch.zeros(2, 3), torch.zeros(2)])
def test_margin_refuses_other_targets(target):
    with pytest.raises(InputError, match="needs class indices"):
        margin(torch.zeros(2, 3), target)


def test_cross_entropy_takes_probabilities():
    logits, target = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1])
    soft = F.one_hot(target, 3).float()
    torch.testing.assert_close(cross_entropy(logits, soft), cross_entropy(logits, target))
    assert cross_entropy(logits, target).shape == (4,)


@pytest.mark.parametrize(
    "target",
    [torch.rand(4), torch.zeros(4, 2), torch.zeros(4, 3, dtype=torch.long)],
    ids=["floats, one per sample", "another number of classes", "integers per class"],
)
def test_cross_entropy_refuses_other_targets(target):
    with pytest.raises(InputError, match=r"class indices of shape \(B,\), integers, or class probabilities"):
        cross_entropy(torch.zeros(4, 3), target)
