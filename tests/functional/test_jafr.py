from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_robust.errors import InputError
from lightning_robust.functional.jafr import jacobian_frequency_bias, jacobian_spectrum, spectrum_frequency_bias

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "jafr.npz")
BIAS_KEYS = [key for key in GOLDEN.files if key.startswith("bias/")]
GRADIENT_KEYS = [key for key in GOLDEN.files if key.startswith("dbias_dg/")]


def golden(key, dtype=torch.float64):
    return torch.from_numpy(np.asarray(GOLDEN[key])).to(dtype)


def options_of(key):
    _, name, reduction, power, first, temperature = key.split("/")
    return name, {
        "reduction": reduction,
        "max_power": float(power.removeprefix("maxpow")),
        "ignore_first_basis": first == "ignoredc1",
        "temperature": float(temperature.removeprefix("T")),
    }


def _reference_tilts(gradient, vertical, horizontal):
    """Tilts by explicit loops over a full two-sided spectrum."""
    spectrum = np.abs(np.fft.fft2(gradient)).mean(axis=(0, 1))
    rows, columns = gradient.shape[-2] // 2 + 1, gradient.shape[-1] // 2 + 1
    row_tilts = [sum(horizontal[v] * math.log(spectrum[u, v] + 1e-5) for v in range(columns)) for u in range(rows)]
    column_tilts = [sum(vertical[u] * math.log(spectrum[u, v] + 1e-5) for u in range(rows)) for v in range(columns)]
    return row_tilts + column_tilts


@pytest.mark.parametrize("name", ["white16", "low32", "odd15", "tiny8"])
def test_spectrum_equals_golden(name):
    torch.testing.assert_close(
        jacobian_spectrum(golden(f"g/{name}")), golden(f"spectrum/{name}"), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("key", BIAS_KEYS)
def test_bias_equals_golden(key, dtype, tolerance):
    name, options = options_of(key)
    value = jacobian_frequency_bias(golden(f"g/{name}", dtype), **options)
    expected = golden(key)
    # sums of many logarithms cancel; their float32 error is relative to the summands
    scale = 100.0 if dtype == torch.float32 and options["reduction"] != "sum" else 1.0
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("key", GRADIENT_KEYS)
def test_derivative_equals_golden(key):
    name, options = options_of(key)
    gradient = golden(f"g/{name}").requires_grad_()
    (derivative,) = torch.autograd.grad(jacobian_frequency_bias(gradient, **options), gradient)
    torch.testing.assert_close(derivative, golden(key), rtol=1e-9, atol=1e-9)


def test_linear_model_equals_golden_to_its_parameters():
    x, y = golden("lin/x"), torch.from_numpy(GOLDEN["lin/y"])
    weight, bias = golden("lin/W").requires_grad_(), golden("lin/b").requires_grad_()
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(leaf.flatten(1) @ weight.T + bias, y)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    penalty = -jacobian_frequency_bias(gradient)
    torch.testing.assert_close(loss, golden("lin/ce"), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, golden("lin/input_grad"), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(penalty, golden("lin/jafr"), rtol=1e-9, atol=0)
    for value, key in zip(torch.autograd.grad(penalty, (weight, bias)), ("lin/djafr_dW", "lin/djafr_db"), strict=True):
        torch.testing.assert_close(value, golden(key), rtol=1e-8, atol=1e-9)


class GoldenNet(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.c1, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c2, self.fc = nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.Linear(6, 5)
        self.activation = activation

    def forward(self, x):
        x = self.activation(self.bn(self.c1(x)))
        return self.fc(self.activation(self.c2(x)).mean((2, 3)))


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("attack", ["clean", "fgsm"])
def test_convolutional_training_step_equals_golden(activation, attack):
    net = GoldenNet(getattr(F, activation)).double()
    net.load_state_dict({k: torch.from_numpy(np.asarray(GOLDEN[f"conv/state/{k}"])) for k in net.state_dict()})
    x, y = golden("conv/x"), torch.from_numpy(GOLDEN["conv/y"])
    key, seen = f"conv/{activation}/{attack}", x
    if attack == "fgsm":
        eps = 8 / 255
        seen = (x + (1.25 * eps * golden(f"{key}/delta_sign")).clamp(-eps, eps)).clamp(0, 1)
    loss = F.cross_entropy(net(seen), y)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf, create_graph=True)
    penalty = -jacobian_frequency_bias(gradient)
    (loss + 0.1 * penalty).backward()
    torch.testing.assert_close(loss.detach(), golden(f"{key}/ce"), rtol=1e-9, atol=0)
    torch.testing.assert_close(penalty.detach(), golden(f"{key}/jafr"), rtol=1e-9, atol=0)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, golden(f"{key}/dtotal_lam0.1/{name}"), rtol=1e-7, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 2**16), power=st.floats(-2, 2))
def test_any_size_equals_loops(height, width, seed, power):
    gradient = np.random.default_rng(seed).normal(size=(2, 2, height, width))
    vertical = np.linspace(power, -power, height // 2 + 1) + 1e-5
    horizontal = np.linspace(power, -power, width // 2 + 1) + 1e-5
    tilts = _reference_tilts(gradient, vertical, horizontal)
    tensor = torch.from_numpy(gradient)
    value = jacobian_frequency_bias(tensor, max_power=power)
    assert value.item() == pytest.approx(np.logaddexp.reduce(tilts), rel=1e-9, abs=1e-9)
    value = jacobian_frequency_bias(tensor, max_power=power, reduction="sumlog")
    assert value.item() == pytest.approx(sum(tilts), rel=1e-9, abs=1e-9)


def test_low_pass_spectrum_does_not_overflow_float32():
    spectrum = 1e8 * torch.exp(-torch.arange(65.0))[:, None] * torch.exp(-torch.arange(65.0)) + 1e-30
    for reduction in ("sum", "sumlog", "product"):
        assert torch.isfinite(spectrum_frequency_bias(spectrum, reduction=reduction))


def test_zero_gradient_has_finite_value_and_derivative():
    gradient = torch.zeros(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    value = jacobian_frequency_bias(gradient)
    (derivative,) = torch.autograd.grad(value, gradient)
    assert value.item() == pytest.approx(math.log(2 * 5), abs=2e-3)
    assert torch.isfinite(derivative).all()


@pytest.mark.parametrize("variant", ["released", "ratio"])
def test_direction_orders_waves(variant):
    def bias(cycles, direction):
        wave = torch.cos(2 * math.pi * cycles * torch.arange(16.0) / 16)
        return jacobian_frequency_bias((wave[:, None] * wave)[None, None], variant=variant, direction=direction)

    assert bias(1, "low") > bias(7, "low")
    assert bias(1, "high") < bias(7, "high")


def test_ratio_equals_hand_computed_means():
    spectrum = torch.tensor([[8.0, 4.0, 2.0], [6.0, 3.0, 1.0]], dtype=torch.float64)
    # radii in Nyquist units: rows 0 and 1, columns 0, 0.5, 1; only the first two of row 0 are low
    low, high = (8 + 4) / 2, (2 + 6 + 3 + 1) / 4
    value = spectrum_frequency_bias(spectrum, variant="ratio")
    assert value.item() == pytest.approx(math.log(low + 1e-5) - math.log(high + 1e-5), rel=1e-12)
    value = spectrum_frequency_bias(spectrum, variant="ratio", ignore_first_basis=True)
    assert value.item() == pytest.approx(math.log(4 + 1e-5) - math.log(high + 1e-5), rel=1e-12)


@pytest.mark.parametrize("variant", ["released", "ratio"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(variant, dtype):
    gradient = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = jacobian_frequency_bias(gradient, variant=variant)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, jacobian_frequency_bias(gradient.float(), variant=variant), rtol=0, atol=0)


def test_differentiable_to_second_order():
    gradient = torch.randn(1, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for options in ({}, {"reduction": "sumlog", "direction": "high"}, {"variant": "ratio"}):
        assert torch.autograd.gradcheck(
            lambda g, options=options: jacobian_frequency_bias(g, **options), gradient.clone().requires_grad_()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "paper"}, "variant='paper' is unknown"),
        ({"reduction": "mean"}, "reduction='mean' is unknown"),
        ({"direction": "up"}, "direction='up' is unknown"),
        ({"temperature": 0.0}, "positive number"),
        ({"variant": "ratio", "reduction": "sumlog"}, "leave them out"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        jacobian_frequency_bias(torch.ones(1, 1, 4, 4), **options)


@pytest.mark.parametrize("gradient", [torch.ones(3, 8, 8), torch.ones(1, 1, 1, 8), torch.ones(1, 1, 8, 8).long()])
def test_other_shapes_are_refused(gradient):
    with pytest.raises(InputError, match=r"shape \(B, C, H, W\)"):
        jacobian_spectrum(gradient)
