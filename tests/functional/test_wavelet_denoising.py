from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.restoration import denoise_wavelet
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional import wavelet_denoise

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "wavelet.npz")
CASES: list[dict[str, Any]] = json.loads(GOLDEN["meta"].tobytes())["cases"]
# with rescale_sigma=False scikit-image divides sigma by the channel's range on the 0 to 255 scale
UNSCALED = [case["name"] for case in CASES if case.get("convert2ycbcr") and not case["rescale_sigma"]]


def _image(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _golden_image(name: str, dtype: torch.dtype) -> Tensor:
    array = GOLDEN["image/gray_odd" if name == "rgb_flatchan" else f"image/{name}"]
    planes = torch.from_numpy(array).to(dtype)
    if name == "rgb_flatchan":
        return planes.expand(3, -1, -1)
    return planes.permute(2, 0, 1) if planes.ndim == 3 else planes[None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-5)], ids=str)
def test_golden_scikit_image(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    image = _golden_image(case["image"], dtype)
    sigma: Any = case["sigma"]
    options = {"mode": case["mode"], "levels": case.get("wavelet_levels"), "ycbcr": case.get("convert2ycbcr", False)}
    if case["name"] in UNSCALED:
        # the same noise on the 0 to 255 scale of each channel is sigma / range of the scaled one
        matrix = torch.tensor(
            [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=torch.float64
        )
        planes = torch.einsum("yc,chw->yhw", matrix, image.double())
        spread = planes.amax((1, 2)) - planes.amin((1, 2))
        sigma, options["sigma_scale"] = torch.where(spread > 1e-6, sigma / spread, 0.0), "channel"
        tolerance = 1e-5  # this scale clips, and scikit-image does not
    else:
        options["sigma_scale"] = "rgb"
    found = wavelet_denoise(image, sigma, case["wavelet"], case["method"], **options)
    wanted = np.atleast_3d(GOLDEN[f"out/{case['name']}"])
    np.testing.assert_allclose(found.permute(1, 2, 0), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["rgb_odd", "rgb_even"])
@pytest.mark.parametrize("sigma", [0.04, 0.08])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-5)], ids=str)
def test_golden_denoiser_of_the_paper(name: str, sigma: float, dtype: torch.dtype, tolerance: float) -> None:
    found = wavelet_denoise(_golden_image(name, dtype), sigma)
    np.testing.assert_allclose(found.permute(1, 2, 0), GOLDEN[f"legacy2018/{name}/{sigma}"], rtol=0, atol=tolerance)


@settings(max_examples=60)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    wavelet=st.sampled_from(["db1", "db2", "sym4", "bior2.2"]),
    method=st.sampled_from(["BayesShrink", "VisuShrink"]),
    sigma=st.sampled_from([None, 0.0, 0.03, 0.2]),
    ycbcr=st.booleans(),
)
def test_equal_to_scikit_image_at_any_size(
    height: int, width: int, wavelet: str, method: Any, sigma: float | None, ycbcr: bool
) -> None:
    if sigma is None and height * width < 4:
        return  # scikit-image takes the median of nothing
    image = _image(height * 41 + width, 3, height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small images, biorthogonal filters
        wanted = denoise_wavelet(
            image.permute(1, 2, 0).numpy(), sigma, wavelet, method=method, convert2ycbcr=ycbcr, channel_axis=-1
        )
    if not np.isfinite(wanted).all():
        return
    found = wavelet_denoise(image, sigma, wavelet, method, sigma_scale="rgb", ycbcr=ycbcr)
    np.testing.assert_allclose(found.permute(1, 2, 0), wanted, rtol=0, atol=1e-8)


def test_an_image_does_not_depend_on_its_neighbors() -> None:
    batch = _image(0, 40, 3, 64, 66, dtype=torch.float32)
    batch[3] *= 0.1
    # more than one slab, and sigma cut with it
    sigma = torch.linspace(0.0, 0.1, 40)[:, None]
    whole = wavelet_denoise(batch.repeat(4, 1, 1, 1), sigma.repeat(4, 1))
    for index in (0, 3, 39, 159):
        alone = wavelet_denoise(batch[index % 40], sigma[index % 40].item())
        torch.testing.assert_close(whole[index], alone, rtol=0, atol=1e-6)


def test_the_callers_image_is_left_alone() -> None:
    for ycbcr in (True, False):
        for scale in ("channel", "rgb"):
            image = _image(1, 2, 3, 16, 16)
            before = image.clone()
            wavelet_denoise(image, ycbcr=ycbcr, sigma_scale=scale)  # type: ignore[arg-type]
            wavelet_denoise(image, 0.0, ycbcr=ycbcr, sigma_scale=scale)  # type: ignore[arg-type]
            assert torch.equal(image, before)


@pytest.mark.parametrize("method", ["BayesShrink", "VisuShrink", "SUREShrink"])
@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("wavelet", ["db1", "db2"])
def test_the_same_with_and_without_a_gradient(method: Any, mode: Any, wavelet: str) -> None:
    image = _image(2, 2, 3, 37, 30)
    for sigma in (0.04, None):
        plain = wavelet_denoise(image, sigma, wavelet, method, mode=mode)
        watched = wavelet_denoise(image.clone().requires_grad_(), sigma, wavelet, method, mode=mode)
        torch.testing.assert_close(plain, watched.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma": None},
        {"method": "VisuShrink"},
        {"method": "SUREShrink"},
        {"method": "SUREShrink", "sigma": None},
        {"method": "SUREShrink", "mode": "hard"},
    ],
    ids=str,
)
@pytest.mark.parametrize("wavelet", ["db1", "db2"])
def test_gradients_of_both_orders(options: dict[str, Any], wavelet: str) -> None:
    image = (0.2 + 0.6 * _image(3, 1, 3, 5, 6)).requires_grad_()

    def denoised(x: Tensor) -> Tensor:
        return wavelet_denoise(x, wavelet=wavelet, sigma_scale="rgb", **options)

    assert torch.autograd.gradcheck(denoised, image, fast_mode=True)
    assert torch.autograd.gradgradcheck(denoised, image, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: wavelet_denoise(x, wavelet=wavelet, **options), image, fast_mode=True)


def test_a_gradient_of_the_noise_level() -> None:
    image, sigma = _image(4, 2, 1, 8, 8), torch.full((2, 1), 0.04, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: wavelet_denoise(image, s), sigma)


def test_a_flat_image_keeps_its_value_and_has_a_gradient() -> None:
    for options in ({}, {"sigma": None}, {"sigma_scale": "rgb"}, {"method": "SUREShrink"}):
        image = torch.full((1, 3, 16, 16), 0.3, requires_grad=True)
        denoised = wavelet_denoise(image, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(denoised.detach(), image.detach(), rtol=0, atol=1e-6)
        (gradient,) = torch.autograd.grad(denoised.sum(), image)
        assert gradient.isfinite().all()


def test_a_gray_image_is_denoised_as_its_luma() -> None:
    gray = _image(5, 2, 1, 33, 30)
    as_color = wavelet_denoise(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(wavelet_denoise(gray), as_color[:, :1], rtol=0, atol=1e-9)
    assert wavelet_denoise(_image(6, 2, 5, 8, 8)).shape == (2, 5, 8, 8)


def test_sigma_per_channel_and_per_image() -> None:
    image = _image(7, 2, 3, 16, 16)
    grid = torch.tensor([[0.02, 0.04, 0.08], [0.0, 0.1, 0.05]])
    whole = wavelet_denoise(image, grid, ycbcr=False)
    for b in range(2):
        for c in range(3):
            alone = wavelet_denoise(image[b : b + 1, c : c + 1], grid[b, c].item())
            torch.testing.assert_close(whole[b : b + 1, c : c + 1], alone, rtol=0, atol=1e-7)


def test_noise_is_removed() -> None:
    clean = torch.zeros(1, 3, 64, 64).index_fill_(-1, torch.arange(32, 64), 0.8) + 0.1
    noisy = (clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for options in (
        {"sigma": 0.05, "sigma_scale": "rgb"},
        {"sigma": None},
        {"sigma": 0.05, "sigma_scale": "rgb", "method": "SUREShrink"},
    ):
        denoised = wavelet_denoise(noisy, **options)  # type: ignore[arg-type]
        assert (denoised - clean).square().mean() < 0.1 * (noisy - clean).square().mean()


def test_types_and_memory_formats() -> None:
    image = _image(8, 2, 3, 16, 16)
    for dtype in (torch.float16, torch.bfloat16):
        found = wavelet_denoise(image.to(dtype))
        assert found.dtype == dtype
        assert torch.equal(found, wavelet_denoise(image.to(dtype).float()).to(dtype))
    wanted = wavelet_denoise(image.float())
    assert torch.equal(wavelet_denoise(image.float().to(memory_format=torch.channels_last)), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wavelet_denoise(image.float()), wanted)
    assert wavelet_denoise(image[:0]).shape == (0, 3, 16, 16)


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 15),
    reason="before torch 2.15 a compiled graph takes one result of assume_constant_result only",
)
@pytest.mark.parametrize("wavelet", ["db1", "db2"])
def test_a_compiled_graph_gives_the_same(wavelet: str) -> None:
    image = _image(9, 2, 3, 18, 17, dtype=torch.float32)
    compiled = torch.compile(wavelet_denoise, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, 0.04, wavelet), wavelet_denoise(image, 0.04, wavelet), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.ones(1, 3, 8, 8), {"method": "Bayes"}, "method='Bayes' is unknown"),
        (torch.ones(1, 3, 8, 8), {"mode": "firm"}, "mode='firm' is unknown"),
        (torch.ones(1, 3, 8, 8), {"sigma_scale": "today"}, "sigma_scale='today' is unknown"),
        (torch.ones(1, 3, 8, 8), {"wavelet": "db99"}, "wavelet='db99'"),
        (torch.ones(1, 3, 8, 8), {"levels": 0}, "levels=0"),
        (torch.ones(1, 3, 8, 8), {"sigma": -0.1}, "sigma=-0.1"),
        (torch.ones(1, 3, 8, 8), {"sigma": float("nan")}, "sigma=nan"),
        (torch.ones(1, 3, 8, 8), {"sigma": "0.1"}, "sigma='0.1' is no standard deviation"),
        (torch.ones(1, 3, 8, 8), {"sigma": True}, "sigma=True is no standard deviation"),
        (torch.ones(1, 3, 8, 8), {"sigma": torch.tensor(-0.1)}, r"sigma=tensor\(-0.1.*is no standard deviation"),
        (torch.ones(1, 3, 8, 8), {"sigma": torch.tensor([0.1, torch.nan, 0.1])}, "nan.*is no standard deviation"),
        (torch.ones(1, 3, 8, 8), {"sigma": torch.tensor(torch.inf)}, r"tensor\(inf\) is no standard deviation"),
        (torch.ones(1, 3, 8, 8), {"sigma": torch.tensor(True)}, r"tensor\(True\) is no standard deviation"),
        (torch.ones(1, 3, 8, 8), {"sigma": [0.1, 0.2]}, r"sigma has shape \(2,\)"),
        (torch.ones(1, 1, 8, 8), {"ycbcr": True}, "ycbcr=True needs 3 channels"),
        (torch.ones(1, 3, 8, 8, dtype=torch.uint8), {}, "Divide 8-bit values by 255"),
        (torch.ones(8, 8), {}, r"shape \(8, 8\)"),
        ([[[0.5]]], {}, "image is a list"),
        (torch.full((1, 3, 8, 8), torch.nan), {}, "image holds NaN"),
        (torch.full((1, 3, 8, 8), -1.0), {}, "undo a normalization"),
        (torch.full((1, 3, 8, 8), 200.0), {}, "divide 8-bit values by 255"),
    ],
)
def test_what_does_not_fit_is_refused(image: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wavelet_denoise(image, **options)
