from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional import wavedec2, waverec2
from lightning_robust.functional.wavelets import max_level

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "wavelet.npz")
MODES = ["symmetric", "reflect", "zero", "periodization", "periodic", "constant"]
WAVELETS = ["haar", "db1", "db2", "db4", "sym4", "coif1", "bior1.3", "bior2.2", "bior4.4", "rbio3.1", "db20", "dmey"]


def _image(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _by_pywavelets(image: Tensor, wavelet: str, level: int | None, mode: str) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # more levels than fit
        first, *details = pywt.wavedec2(image.numpy(), wavelet, mode, level=level, axes=(-2, -1))
    return [torch.from_numpy(first), *(torch.from_numpy(np.stack(bands, -3)) for bands in details)]


@settings(max_examples=60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    level=st.none() | st.integers(0, 3),
    wavelet=st.sampled_from(WAVELETS) | st.sampled_from(pywt.wavelist(kind="discrete")),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equal_to_pywavelets(
    height: int, width: int, level: int | None, wavelet: str, mode: str, dtype: torch.dtype
) -> None:
    image = _image(height * 71 + width, 2, height, width, dtype=dtype)
    try:
        wanted = _by_pywavelets(image.double(), wavelet, level, mode)
    except ValueError:  # PyWavelets reflects no single sample
        with pytest.raises(InputError, match="mode='reflect' needs at least 2 samples"):
            wavedec2(image, wavelet, level, mode)
        return
    found = wavedec2(image, wavelet, level, mode)
    assert [band.dtype for band in found] == [dtype] * len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        # float32 is compared with float64: up to 76 taps round, relative to the largest coefficient
        tolerance = 1e-10 if dtype == torch.float64 else 3e-6
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * scale)
    composed = waverec2(found, wavelet, mode).double()
    bands = [wanted[0].numpy(), *(tuple(np.moveaxis(band.numpy(), -3, 0)) for band in wanted[1:])]
    by_pywavelets = torch.from_numpy(pywt.waverec2(bands, wavelet, mode, axes=(-2, -1)))
    torch.testing.assert_close(composed, by_pywavelets, rtol=0, atol=1e-6 if dtype == torch.float64 else 2e-5)
    if level != 0 or mode != "zero":
        torch.testing.assert_close(composed[:, :height, :width], image.double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4", "bior2.2"])
@pytest.mark.parametrize("mode", ["symmetric", "reflect", "zero", "periodization"])
def test_golden_bands(wavelet: str, mode: str) -> None:
    image = torch.from_numpy(GOLDEN["image/gray_odd"]).double()
    first, *details = wavedec2(image, wavelet, 2, mode)
    stem = f"dec/{wavelet}/{mode}"
    np.testing.assert_allclose(first, GOLDEN[f"{stem}/cA"], atol=1e-6)
    for index, bands in enumerate(details):
        for name, band in zip(("cH", "cV", "cD"), bands.unbind(-3), strict=True):
            np.testing.assert_allclose(band, GOLDEN[f"{stem}/{index}/{name}"], atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 15, 16, 224, 299])
@pytest.mark.parametrize("wavelet", ["db1", "db2", "sym4", "db20"])
def test_max_level_is_that_of_pywavelets(size: int, wavelet: str) -> None:
    assert max_level((size, 300), wavelet) == pywt.dwtn_max_level((size, 300), wavelet)


@pytest.mark.parametrize("wavelet", ["db1", "db2", "bior2.2"])
@pytest.mark.parametrize("mode", ["symmetric", "periodization"])
def test_gradients_of_both_orders(wavelet: str, mode: str) -> None:
    image = _image(0, 1, 5, 6).requires_grad_()

    def squared(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(band.square() for band in wavedec2(x, wavelet, 2, mode))

    assert torch.autograd.gradcheck(squared, image, fast_mode=True)
    assert torch.autograd.gradgradcheck(squared, image, fast_mode=True)
    bands = tuple(band.detach().requires_grad_() for band in wavedec2(image, wavelet, 1, mode))
    assert torch.autograd.gradgradcheck(lambda *b: waverec2(b, wavelet, mode).square(), bands, fast_mode=True)


@pytest.mark.parametrize("wavelet", ["db1", "db2"])
def test_the_same_with_and_without_a_gradient(wavelet: str) -> None:
    image = _image(1, 2, 3, 33, 47, dtype=torch.float32)
    plain = wavedec2(image, wavelet)
    watched = wavedec2(image.clone().requires_grad_(), wavelet)
    for ours, theirs in zip(plain, watched, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(waverec2(plain, wavelet)[..., :33, :47], image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wavelet", ["db1", "db2"])
def test_leading_sizes_views_and_empty_batches(wavelet: str) -> None:
    image = _image(2, 2, 3, 12, 10)
    whole = wavedec2(image, wavelet, 1)
    assert whole[1].shape[:3] == (2, 3, 3)
    torch.testing.assert_close(wavedec2(image[1, 2], wavelet, 1)[1], whole[1][1, 2])
    transposed = wavedec2(image.transpose(-1, -2), wavelet, 1)
    torch.testing.assert_close(transposed[1][:, :, 1], whole[1][:, :, 0].transpose(-1, -2))
    channels_last = wavedec2(image.to(memory_format=torch.channels_last), wavelet, 1)
    torch.testing.assert_close(channels_last[1], whole[1])
    empty = wavedec2(image[:0], wavelet, 1)
    assert empty[1].shape == (0, *whole[1].shape[1:])
    assert waverec2(empty, wavelet).shape == (0, 3, 12, 10)


@pytest.mark.parametrize("wavelet", ["db1", "db2"])
def test_half_precision_is_computed_in_float32(wavelet: str) -> None:
    image = _image(3, 1, 16, 16, dtype=torch.float16)
    for ours, exact in zip(wavedec2(image, wavelet, 1), wavedec2(image.float(), wavelet, 1), strict=True):
        assert ours.dtype == torch.float16
        assert torch.equal(ours, exact.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = wavedec2(image.float(), wavelet, 1)
    assert torch.equal(under_autocast[1], wavedec2(image.float(), wavelet, 1)[1])


@pytest.mark.parametrize("wavelet", ["db1", "db2"])
def test_reduced_precision_of_products_does_not_reach_it(wavelet: str) -> None:
    image = _image(4, 1, 64, 64, dtype=torch.float32)
    wanted = wavedec2(image, wavelet, 2)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = wavedec2(image, wavelet, 2)
    finally:
        torch.set_float32_matmul_precision(before)
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wavedec2(torch.ones(4, 4), "db0"), r"wavelet='db0'"),
        (lambda: wavedec2(torch.ones(4, 4), "mexh"), r"wavelet='mexh'"),
        (lambda: wavedec2(torch.ones(4, 4), mode="mirror"), "mode='mirror'"),
        (lambda: wavedec2(torch.ones(4, 4), level=-1), "level=-1"),
        (lambda: wavedec2(torch.ones(4, 4), level="two"), "level='two' is no number of levels"),
        (lambda: wavedec2([[1.0, 1.0]]), "image is a list"),
        (lambda: wavedec2(torch.ones(4, 4, dtype=torch.uint8)), "image is a uint8 tensor"),
        (lambda: wavedec2(torch.ones(4)), r"shape \(4,\)"),
        (lambda: wavedec2(torch.ones(2, 0, 4)), r"shape \(2, 0, 4\)"),
        (lambda: waverec2([]), "coefficients"),
        (lambda: waverec2([torch.ones(4, 4), torch.ones(3, 2, 2)]), r"details of shape \(3, 2, 2\)"),
        (lambda: waverec2([torch.ones(2, 4, 4), torch.ones(3, 4, 4)]), r"details of shape \(3, 4, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]
