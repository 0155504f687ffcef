from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lightning_robust.defenses import Sequence, WaveletDenoising
from lightning_robust.errors import InputError
from lightning_robust.functional import wavelet_denoise


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 20, 17, generator=torch.Generator().manual_seed(0))


def test_the_defense_is_the_function(image: torch.Tensor) -> None:
    assert torch.equal(WaveletDenoising()(image), wavelet_denoise(image))
    options = {"wavelet": "db2", "method": "VisuShrink", "mode": "hard", "sigma_scale": "rgb", "ycbcr": False}
    defense = WaveletDenoising(0.1, **options, levels=1)  # type: ignore[arg-type]
    wanted = wavelet_denoise(image, 0.1, **options, levels=1).clamp(0, 1)  # type: ignore[arg-type]
    assert torch.equal(defense(image), wanted)
    assert "sigma=0.1, wavelet=db2, method=VisuShrink, mode=hard, sigma_scale=rgb, ycbcr=False, levels=1" in repr(
        defense
    )


def test_it_is_not_random_and_gives_its_true_gradient(image: torch.Tensor) -> None:
    defense = WaveletDenoising()
    assert not defense.is_random
    assert defense.is_differentiable
    assert torch.equal(defense(image, seeds=torch.tensor([1, 2])), defense(image, seeds=torch.tensor([3, 4])))
    leaf = image.double().requires_grad_()
    direction = torch.rand(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    weight = torch.rand(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((defense(leaf) * weight).sum(), leaf)
    step = 1e-7
    with torch.no_grad():
        inner = leaf.clamp(0.01, 0.99)
        rise = (defense(inner + step * direction) - defense(inner - step * direction)) * weight
    (gradient,) = torch.autograd.grad((defense(inner.requires_grad_()) * weight).sum(), inner)
    torch.testing.assert_close((gradient * direction).sum(), rise.sum() / (2 * step), rtol=1e-4, atol=1e-6)


def test_the_straight_through_gradient_is_the_identity(image: torch.Tensor) -> None:
    leaf = image.clone().requires_grad_()
    purified = WaveletDenoising().straight_through(leaf)
    torch.testing.assert_close(purified.detach(), WaveletDenoising()(image), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(purified.sum(), leaf)
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_copies_and_chains(image: torch.Tensor) -> None:
    defense = WaveletDenoising(None)
    for twin in (copy.deepcopy(defense), pickle.loads(pickle.dumps(defense))):
        assert torch.equal(twin(image), defense(image))
    assert torch.equal(Sequence([defense, defense])(image), defense(defense(image)))


def test_what_does_not_fit_is_refused(image: torch.Tensor) -> None:
    with pytest.raises(InputError, match="sigma=-1"):
        WaveletDenoising(-1)
    with pytest.raises(InputError, match="method='None'"):
        WaveletDenoising(method="None")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Purify before the normalization"):
        WaveletDenoising()(4 * image - 2)
    with pytest.raises(InputError, match="ycbcr=True needs 3 channels"):
        WaveletDenoising(ycbcr=True)(image[:, :1])
