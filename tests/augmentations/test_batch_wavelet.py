from __future__ import annotations

import copy
import pickle

import pytest
import torch
from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip

from lightning_robust.augmentations import RandomWaveletDenoising
from lightning_robust.errors import InputError
from lightning_robust.functional import wavelet_denoise


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(6, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_each_image_gets_the_noise_level_that_was_drawn(image: torch.Tensor) -> None:
    augmentation = RandomWaveletDenoising(p=1.0)
    denoised = augmentation(image)
    drawn = augmentation._params["sigma"]
    assert len(set(drawn.tolist())) == 6
    assert 0 <= drawn.min() <= drawn.max() <= 0.08
    for index in range(6):
        alone = wavelet_denoise(image[index], drawn[index].item())
        torch.testing.assert_close(denoised[index], alone, rtol=0, atol=1e-6)


def test_options_reach_the_function(image: torch.Tensor) -> None:
    options = {"wavelet": "db2", "method": "VisuShrink", "mode": "hard", "sigma_scale": "rgb", "levels": 2}
    augmentation = RandomWaveletDenoising(0.1, p=1.0, **options)
    assert torch.equal(augmentation(image), wavelet_denoise(image, 0.1, **options).clamp(0, 1))
    assert "wavelet=db2, method=VisuShrink, mode=hard, sigma_scale=rgb, levels=2" in repr(augmentation)


def test_replay_copy_and_pickle_give_the_same_bits(image: torch.Tensor) -> None:
    augmentation = RandomWaveletDenoising(p=0.5)
    denoised = augmentation(image)
    assert torch.equal(augmentation(image, params=augmentation._params), denoised)
    results = []
    for twin in (augmentation, copy.deepcopy(augmentation), pickle.loads(pickle.dumps(augmentation))):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            results.append(twin(image))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_skipped_images_keep_their_values(image: torch.Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        augmentation = RandomWaveletDenoising(0.05, p=0.5)
        denoised = augmentation(image)
    applied = augmentation._params["batch_prob"] > 0.5
    assert 0 < applied.sum() < 6
    assert torch.equal(denoised[~applied], image[~applied])
    assert torch.equal(denoised[applied], wavelet_denoise(image[applied], 0.05))


def test_masks_follow_the_geometry_only(image: torch.Tensor) -> None:
    mask = torch.zeros(6, 1, 12, 16)
    mask[..., :4] = 1
    augment = AugmentationSequential(
        RandomWaveletDenoising(0.04, p=1.0), RandomHorizontalFlip(p=1.0), data_keys=["input", "mask"]
    )
    denoised, flipped = augment(image, mask)
    assert torch.equal(denoised, wavelet_denoise(image).flip(-1))
    assert torch.equal(flipped, mask.flip(-1))


@pytest.mark.parametrize(
    "arguments",
    [{"sigma": (0.3, 0.1)}, {"sigma": -0.1}, {"wavelet": "db0"}, {"method": "x"}, {"mode": "x"}, {"levels": 0}],
)
def test_bad_options_are_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        RandomWaveletDenoising(**arguments)
