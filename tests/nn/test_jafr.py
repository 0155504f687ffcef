from __future__ import annotations

import pytest
import torch

from lightning_robust.errors import InputError
from lightning_robust.functional.jafr import jacobian_frequency_bias, jacobian_spectrum
from lightning_robust.nn.jafr import JaFRLoss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sumlog", "max_power": 0.5, "direction": "high"},
        {"variant": "ratio", "ignore_first_basis": True},
        {"temperature": 2.0, "reduction": "product"},
    ],
)
def test_module_equals_function(options):
    gradient = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    loss = JaFRLoss(0.3, **options)
    expected = -0.3 * jacobian_frequency_bias(gradient, **options)
    torch.testing.assert_close(loss(gradient), expected)
    torch.testing.assert_close(loss.from_spectrum(jacobian_spectrum(gradient)), expected)


def test_descending_it_lowers_the_frequency_of_the_jacobian():
    gradient = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    before = jacobian_frequency_bias(gradient)
    (step,) = torch.autograd.grad(JaFRLoss(1.0)(gradient), gradient)
    assert jacobian_frequency_bias(gradient - 0.01 * step) > before


def test_has_no_state():
    assert JaFRLoss().state_dict() == {}
    assert "direction='high'" in repr(JaFRLoss(direction="high"))


def test_wrong_option_is_refused_at_construction():
    with pytest.raises(InputError, match="direction='sideways'"):
        JaFRLoss(direction="sideways")
