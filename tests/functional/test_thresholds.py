from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.restoration import estimate_sigma
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional import (
    bayes_shrink_threshold,
    estimate_noise,
    hard_threshold,
    soft_threshold,
    sure_shrink_threshold,
    visu_shrink_threshold,
)
from lightning_robust.functional._wavelet_banks import filter_bank
from lightning_robust.functional._wavelet_noise import finest_diagonal

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "wavelet.npz")


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_soft_and_hard_are_those_of_pywavelets() -> None:
    values = torch.from_numpy(GOLDEN["thr/x"])
    np.testing.assert_allclose(soft_threshold(values, 0.3), GOLDEN["thr/soft"], atol=1e-15)
    np.testing.assert_array_equal(hard_threshold(values, 0.3), GOLDEN["thr/hard"])
    reached = torch.tensor([-0.3, 0.3], dtype=torch.float64)
    assert torch.equal(hard_threshold(reached, 0.3), reached)


def test_gradients_of_the_thresholds() -> None:
    values, threshold = _normal(0, 3, 4).requires_grad_(), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_threshold, (values, threshold))
    assert torch.autograd.gradgradcheck(lambda v, t: soft_threshold(v, t).square(), (values, threshold))
    assert torch.autograd.gradcheck(lambda v: hard_threshold(v, 0.4), values)
    details, sigma = _normal(1, 2, 3, 3).requires_grad_(), torch.full((2,), 0.3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(bayes_shrink_threshold, (details, sigma))
    assert torch.autograd.gradgradcheck(bayes_shrink_threshold, (details, sigma))


def test_bayes_shrink_by_its_formula() -> None:
    details, sigma = _normal(2, 2, 3, 5, 4), torch.tensor([[0.5], [0.1]], dtype=torch.float64)
    for b in range(2):
        for c in range(3):
            signal = details[b, c].square().mean() - sigma[b, 0] ** 2
            found = bayes_shrink_threshold(details, sigma)[b, c]
            torch.testing.assert_close(found, sigma[b, 0] ** 2 / signal.sqrt())
    watched = bayes_shrink_threshold(details.clone().requires_grad_(), sigma)
    torch.testing.assert_close(watched.detach(), bayes_shrink_threshold(details, sigma))


def test_a_band_of_noise_alone_is_zeroed() -> None:
    details = 0.01 * _normal(3, 1, 8, 8)
    threshold = bayes_shrink_threshold(details, torch.tensor([0.04], dtype=torch.float64))
    torch.testing.assert_close(threshold.item(), 0.0016 / math.sqrt(2.0**-52))
    assert not soft_threshold(details, threshold[:, None, None]).any()


def test_visu_shrink_by_its_formula() -> None:
    assert visu_shrink_threshold(100, torch.tensor([2.0])).item() == pytest.approx(2 * math.sqrt(2 * math.log(100)))


def _reference_sure(band: np.ndarray, sigma: float) -> float:  # type: ignore[type-arg]
    y = np.sort(np.abs(band).ravel()) / sigma
    n = len(y)
    universal = math.sqrt(2 * math.log(n))
    if (y**2).mean() - 1 <= math.log2(n) ** 1.5 / math.sqrt(n):
        return sigma * universal
    risks = [n - 2 * np.sum(y <= t) + np.sum(np.minimum(y, t) ** 2) for t in y]
    return sigma * min(y[int(np.argmin(risks))], universal)


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 1.0, 3.0, 10.0]), size=st.integers(1, 12))
def test_sure_shrink_by_brute_force(seed: int, scale: float, size: int) -> None:
    details = scale * _normal(seed, 3, size, size + 1)
    sigma = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    wanted = [_reference_sure(band.numpy(), s) for band, s in zip(details, sigma.tolist(), strict=True)]
    np.testing.assert_allclose(sure_shrink_threshold(details, sigma), wanted, rtol=1e-9)


def test_a_sure_threshold_moves_with_the_magnitude_that_it_is() -> None:
    details = torch.stack([3 * _normal(0, 4, 5), 9 * _normal(1, 4, 5), 0.1 * _normal(2, 4, 5)]).requires_grad_()
    sigma = torch.tensor([0.9, 1.1, 0.8], dtype=torch.float64, requires_grad=True)
    threshold = sure_shrink_threshold(details, sigma)
    gradient = torch.autograd.grad(threshold.sum(), details, retain_graph=True)[0].flatten(1)
    # the first two are magnitudes of their bands, the last is the universal threshold
    assert gradient.abs().sum(1).tolist() == [1.0, 1.0, 0.0]
    assert torch.autograd.gradcheck(sure_shrink_threshold, (details, sigma))


def test_no_noise_needs_no_threshold() -> None:
    details, none = _normal(4, 2, 4, 4), torch.zeros(2, dtype=torch.float64)
    for threshold in (bayes_shrink_threshold(details, none), sure_shrink_threshold(details, none)):
        assert torch.equal(threshold, none)


@pytest.mark.parametrize("wavelet", ["db1", "db2", "sym4", "bior2.2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_finest_diagonal_has_the_zeros_of_pywavelets(wavelet: str, dtype: type) -> None:
    # 8-bit values with flat parts and an odd size: rounding decides which coefficients are exactly zero
    image = (np.random.default_rng(0).integers(0, 4, (31, 29)) / 255).astype(dtype)
    image[8:24, 8:20] = 0
    wanted = pywt.dwt2(image, wavelet)[1][2]
    found = finest_diagonal(torch.from_numpy(image)[None], filter_bank(wavelet))[0].numpy()
    # PyWavelets sums in another order at the border, which longer filters feel
    assert ((found == 0) != (wanted == 0)).mean() <= (0 if wavelet == "db1" else 0.01)
    assert 10 < (found == 0).sum() < found.size
    if wavelet == "db1":
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_the_estimate_is_that_of_scikit_image() -> None:
    images = [GOLDEN["image/gray_64"].astype(np.float64), GOLDEN["image/gray_odd"].astype(np.float64)]
    for image, wanted in zip(images, GOLDEN["thr/sigma_est"], strict=True):
        # estimate_sigma uses db2
        found = estimate_noise(finest_diagonal(torch.from_numpy(image)[None], filter_bank("db2")))
        assert found.item() == pytest.approx(wanted, rel=1e-9)
        assert found.item() == pytest.approx(estimate_sigma(image), rel=1e-9)


def test_the_median_leaves_zeros_out_and_halves_an_even_count() -> None:
    bands = torch.tensor([[[0.0, 1.0, -2.0, 0.0]], [[0.0, 3.0, -1.0, 2.0]], [[0.0, 0.0, 0.0, 0.0]], [[4.0, 1, 2, 8]]])
    found = estimate_noise(bands) * 0.6744897501960817
    torch.testing.assert_close(found, torch.tensor([1.5, 2.0, 0.0, 3.0]))
    with pytest.raises(InputError, match="diagonal has shape"):
        estimate_noise(torch.ones(2, 0, 3))
