"""frequency_pool2d, its low-pass form, the blur baseline, and the released operators."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_robust.errors import InputError, RobustWarning
from lightning_robust.functional import blur_pool2d, frequency_lowpass2d, frequency_pool2d, released_pool2d
from lightning_robust.functional._pooling_matrices import (
    _cached_matrix,
    centered_matrix,
    constant_matrix,
    lowpass_matrix,
    released_matrix,
)
from lightning_robust.functional.pooling import blur_lowpass2d

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "pooling.npz")
SIZES = [key[2:] for key in GOLDEN.files if key.startswith("x_")]
RELEASED = {
    "flc": ({"window": "rect"}, 1e-12),
    "asap": ({"window": "asap", "transpose": True}, 1e-7),
    "asap_notranspose": ({"window": "asap"}, 1e-7),
    "asap_padding_one": ({"window": "asap", "padding": "one"}, 1e-7),
    "asap_padding_large": ({"window": "asap", "padding": "large"}, 1e-7),
}
WINDOWS = ("asap", "rect", "band")


def _reference_pool(x: np.ndarray, size: int, window: str) -> np.ndarray:
    """Sum over frequencies along the last axis, one by one, from the definition."""
    n_in, p = x.shape[-1], np.arange(x.shape[-1])
    out = np.zeros((*x.shape[:-1], size))
    for k in range(size // 2 + 1):
        weight = 1.0
        if k and window == "asap":
            weight = np.sqrt(0.54 + 0.46 * np.cos(2 * np.pi * k / n_in))
        if k and window == "band":
            weight = 0.54 + 0.46 * np.cos(2 * np.pi * k / size)
        share = 1.0 if k == 0 or 2 * k == size else 2.0
        for n in range(size):
            phase = 2 * np.pi * k * (n * n_in / size - p) / n_in
            wave = np.cos(np.pi * n) * np.cos(2 * np.pi * k * p / n_in) if 2 * k == size else np.cos(phase)
            out[..., n] += weight * share * (x * wave).sum(-1) / n_in
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.filterwarnings("ignore:The released pooling:lightning_robust.errors.RobustWarning")
def test_released_equals_the_released_code(name: str, size: str) -> None:
    options, tolerance = RELEASED[name]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.tensor(GOLDEN[f"x_{size}"]).contiguous(memory_format=memory_format).requires_grad_()
        y = released_pool2d(x, **options)
        upstream = torch.from_numpy(np.random.default_rng(7).standard_normal(y.shape))
        (dx,) = torch.autograd.grad(y, x, upstream)
        np.testing.assert_allclose(y.detach(), GOLDEN[f"y_{name}_{size}"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(dx, GOLDEN[f"dx_{name}_{size}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("A_")])
def test_released_matrices(key: str) -> None:
    name, size = key[2:].rsplit("_", 1)
    padding = {"flc": "none", "asap": "none"}.get(name, name.removeprefix("asap_padding_"))
    found = released_matrix(int(size), padding, hamming=name != "flc")
    np.testing.assert_allclose(found, GOLDEN[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("Aclean_")])
def test_centered_matrices(key: str) -> None:
    window, size = key.removeprefix("Aclean_").split("_")
    found = centered_matrix(int(size), GOLDEN[key].shape[0], {"hamming": "asap", "rect": "rect"}[window])
    np.testing.assert_allclose(found, GOLDEN[key], rtol=0, atol=1e-12)


@given(size=st.integers(1, 40), data=st.data(), window=st.sampled_from(WINDOWS))
@settings(max_examples=60, deadline=None)
def test_pool_is_the_sum_over_kept_frequencies(size: int, data: st.DataObject, window: str) -> None:
    target = data.draw(st.integers(1, size))
    x = np.random.default_rng(size).standard_normal((2, 1, 3, size))
    found = frequency_pool2d(torch.from_numpy(x), (3, target), window=window)
    expected = x if target == size else _reference_pool(x, target, window)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("pool", [*WINDOWS, "blur"])
def test_constant_maps_stay_constant(pool: str) -> None:
    for size in range(1, 41):
        for target in {-(-size // 2), max(size // 2, 1), -(-size // 3)}:
            x = torch.full((1, 1, size, size), 0.7, dtype=torch.float64)
            y = blur_pool2d(x, target) if pool == "blur" else frequency_pool2d(x, target, window=pool)
            torch.testing.assert_close(y, torch.full_like(y, 0.7), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [8, 12, 15, 16, 32])
def test_flc_is_the_real_part_of_the_released_matrix(size: int) -> None:
    # sizes without the shift of the spectrum: 14 and its like differ, which is why the centered form exists
    matrix = released_matrix(size, "none", hamming=False)
    np.testing.assert_allclose(centered_matrix(size, matrix.shape[0], "rect"), matrix.real, rtol=0, atol=1e-13)


@given(size=st.integers(4, 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_waves_above_the_new_limit_vanish_and_those_below_stay(size: int, data: st.DataObject) -> None:
    target = data.draw(st.integers(2, size - 1))
    k = data.draw(st.integers(0, size // 2))
    phase = data.draw(st.floats(0, 6))
    pixels = torch.arange(size, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * k * pixels / size + phase).expand(1, 1, size, size)
    y = frequency_pool2d(wave, (size, target), window="rect")[0, 0, 0]
    samples = torch.arange(target, dtype=torch.float64)
    if 2 * k > target:
        expected = torch.zeros(target, dtype=torch.float64)
    elif 2 * k < target:
        expected = torch.cos(2 * torch.pi * k * samples / target + phase)
    else:  # at the limit the wave and its alias share the one bin: half of the even part remains
        expected = 0.5 * torch.cos(torch.pi * samples) * torch.cos(torch.tensor(phase, dtype=torch.float64))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("stride", [2, 3])
def test_a_shift_by_the_stride_is_a_shift_by_one(window: str, stride: int) -> None:
    x = torch.randn(2, 3, 24, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = frequency_pool2d(x, (24 // stride, 36 // stride), window=window)
    moved = frequency_pool2d(x.roll((stride, stride), (-2, -1)), (24 // stride, 36 // stride), window=window)
    torch.testing.assert_close(moved, y.roll((1, 1), (-2, -1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("size", "stride"), [(8, 2), (14, 2), (12, 3), (32, 4)])
def test_lowpass_then_stride_equals_pool(window: str, size: int, stride: int) -> None:
    found = lowpass_matrix(size, stride, window)[::stride]
    np.testing.assert_allclose(found, centered_matrix(size, size // stride, window), rtol=0, atol=1e-13)
    x = torch.randn(1, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense = frequency_lowpass2d(x, (stride, 1), window=window)
    assert dense.shape == x.shape
    torch.testing.assert_close(dense[..., ::stride, :], frequency_pool2d(x, (size // stride, size), window=window))


def test_blur_is_the_strided_binomial_filter() -> None:
    x = torch.randn(2, 3, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tap = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    kernel = torch.outer(tap, tap).expand(3, 1, 3, 3)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    torch.testing.assert_close(blur_pool2d(x, (4, 5)), nn.functional.conv2d(padded, kernel, stride=2, groups=3))
    torch.testing.assert_close(blur_lowpass2d(x, 2), nn.functional.conv2d(padded, kernel, groups=3))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("target", [(4, 5), (7, 5), (4, 9)])
def test_gradients_of_first_and_second_order(memory_format: torch.memory_format, target: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 7, 9, dtype=torch.float64, generator=generator).contiguous(memory_format=memory_format)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: frequency_pool2d(v, target), x)
    assert torch.autograd.gradgradcheck(lambda v: frequency_pool2d(v, target).square(), x)
    assert torch.autograd.gradgradcheck(lambda v: released_pool2d(v, window="asap", padding="large").square(), x)


@given(
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    layout=st.sampled_from(["channels_last", "transposed", "sliced"]),
)
@settings(max_examples=30, deadline=None)
def test_memory_layout_does_not_change_the_values(size: tuple[int, int], layout: str) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.mT.contiguous().mT,
        "sliced": torch.stack([x, x], -1)[..., 0],
    }[layout]
    target = (-(-size[0] // 2), -(-size[1] // 2))
    y = frequency_pool2d(other, target)
    torch.testing.assert_close(y, frequency_pool2d(x, target), rtol=0, atol=1e-13)
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("size", [14, 28, 33])
def test_precision_follows_the_input(dtype: torch.dtype, tolerance: float, size: int) -> None:
    x = torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = frequency_pool2d(x.to(dtype), -(-size // 2))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), frequency_pool2d(x, -(-size // 2)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [14, 28, 33])
def test_autocast(size: int) -> None:
    x = torch.rand(1, 2, size, size, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = frequency_pool2d(x, size // 2)
    y.float().sum().backward()
    assert x.grad is not None
    assert y.isfinite().all()


class _Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return frequency_pool2d(x, (-(-x.shape[-2] // 2), -(-x.shape[-1] // 2)))


def test_first_use_under_inference_mode_does_not_spoil_training() -> None:
    _cached_matrix.cache_clear()
    with torch.inference_mode():
        frequency_pool2d(torch.rand(1, 1, 8, 8), 4)
    x = torch.rand(1, 1, 8, 8, requires_grad=True)
    frequency_pool2d(x * x, 4).sum().backward()
    assert not constant_matrix("centered", (8, 4, "asap"), torch.float32, torch.device("cpu")).is_inference()


def test_first_use_inside_a_functional_transform_does_not_spoil_the_cache() -> None:
    _cached_matrix.cache_clear()
    x = torch.rand(5, 2, 10, 10)
    per_sample = torch.func.vmap(torch.func.grad(lambda v: _Pool()(v).square().sum()))(x)
    x.requires_grad_()
    (whole,) = torch.autograd.grad(_Pool()(x).square().sum(), x)
    torch.testing.assert_close(per_sample, whole)


@pytest.mark.parametrize("warm", [False, True])
def test_compiles_into_one_graph_at_every_size(warm: bool) -> None:
    torch.compiler.reset()
    _cached_matrix.cache_clear()
    if warm:
        _Pool()(torch.rand(1, 1, 8, 8))
    compiled = torch.compile(_Pool(), backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        compiled(torch.rand(1, 1, 8, 8))
    for size in (8, 9, 14):
        x = torch.rand(2, 1, size, size, requires_grad=True)
        y = compiled(x)
        y.sum().backward()
        torch.testing.assert_close(y, _Pool()(x))
    torch.compiler.reset()


@pytest.mark.parametrize("warm", [False, True])
def test_exports_with_a_free_batch_size(warm: bool) -> None:
    _cached_matrix.cache_clear()
    if warm:
        _Pool()(torch.rand(1, 1, 16, 16))
    program = torch.export.export(_Pool(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim("b")},))
    x = torch.rand(5, 3, 16, 16, requires_grad=True)
    torch.testing.assert_close(program.module()(x), _Pool()(x))
    _Pool()(x).sum().backward()


def test_released_warns_where_it_loses_the_mean() -> None:
    x = torch.ones(1, 1, 14, 14, dtype=torch.float64)
    with pytest.warns(RobustWarning, match="14 pixels"):
        y = released_pool2d(x, window="rect")
    assert abs(float(y.mean())) < 1e-12
    with pytest.warns(RobustWarning, match="9 pixels"):
        released_pool2d(torch.ones(1, 1, 9, 8), window="asap", padding="one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        released_pool2d(torch.ones(1, 1, 16, 13), window="rect")
        released_pool2d(torch.ones(1, 1, 14, 14), window="asap", padding="one")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frequency_pool2d(torch.rand(1, 1, 4, 4), 5), "only shrinks"),
        (lambda: frequency_pool2d(torch.rand(1, 1, 4, 4), 0), "at least 1"),
        (lambda: frequency_pool2d(torch.rand(1, 1, 4, 4), 2, window="hann"), "asap, rect, band"),
        (lambda: frequency_pool2d(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 2), "floating"),
        (lambda: frequency_pool2d(torch.rand(4), 2), "height, width"),
        (lambda: frequency_lowpass2d(torch.rand(1, 1, 4, 4), 2, window="hann"), "asap, rect, band"),
        (lambda: frequency_lowpass2d(torch.rand(1, 1, 4, 4), (2, 0)), "at least 1"),
        (lambda: released_pool2d(torch.rand(1, 1, 1, 4), window="rect"), "too small"),
    ],
)
def test_wrong_input_is_named(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]
