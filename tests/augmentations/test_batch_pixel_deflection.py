from __future__ import annotations

import copy
import pickle

import pytest
import torch
from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip

from lightning_robust.augmentations import RandomPixelDeflection
from lightning_robust.errors import InputError
from lightning_robust.functional import pixel_deflection


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(6, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_each_image_gets_the_seed_that_was_drawn(image: torch.Tensor) -> None:
    augmentation = RandomPixelDeflection(30, 4, sampling="gaussian", replacement="max", p=1.0)
    deflected = augmentation(image)
    seeds = augmentation._params["seeds"]
    assert len(set(seeds.tolist())) == 6
    expected = pixel_deflection(image, 30, 4, sampling="gaussian", replacement="max", seeds=seeds)
    assert torch.equal(deflected, expected)
    assert "deflections=30, window=4, sampling=gaussian, replacement=max" in repr(augmentation)


def test_replay_gives_the_same_bits_and_a_new_call_others(image: torch.Tensor) -> None:
    augmentation = RandomPixelDeflection(p=1.0)
    deflected = augmentation(image)
    params = augmentation._params
    assert not torch.equal(augmentation(image), deflected)
    assert torch.equal(augmentation(image, params=params), deflected)


def test_same_on_batch_draws_once(image: torch.Tensor) -> None:
    augmentation = RandomPixelDeflection(p=1.0, same_on_batch=True)
    deflected = augmentation(image[:1].expand(6, -1, -1, -1))
    assert torch.equal(deflected, deflected[:1].expand(6, -1, -1, -1))


def test_skipped_images_keep_their_values(image: torch.Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        augmentation = RandomPixelDeflection(p=0.5)
        deflected = augmentation(image)
    applied = augmentation._params["batch_prob"] > 0.5
    assert 0 < applied.sum() < 6
    assert torch.equal(deflected[~applied], image[~applied])
    assert (deflected != image)[applied].flatten(1).any(1).all()


def test_masks_follow_the_geometry_only(image: torch.Tensor) -> None:
    mask = torch.zeros(6, 1, 12, 16)
    mask[..., :4] = 1
    augment = AugmentationSequential(
        RandomPixelDeflection(p=1.0), RandomHorizontalFlip(p=1.0), data_keys=["input", "mask"]
    )
    deflected, flipped = augment(image, mask)
    assert torch.equal(flipped, mask.flip(-1))
    assert 0 < (deflected != image.flip(-1)).any(1).sum() <= 600


def test_a_copy_and_a_pickle_draw_as_the_original(image: torch.Tensor) -> None:
    augmentation = RandomPixelDeflection(p=1.0, keepdim=True)
    results = []
    for twin in (augmentation, copy.deepcopy(augmentation), pickle.loads(pickle.dumps(augmentation))):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            results.append(twin(image[0]))
    assert results[0].shape == (3, 12, 16)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("arguments", [{"deflections": -1}, {"window": -1}, {"sampling": "s"}, {"replacement": "r"}])
def test_bad_options_are_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        RandomPixelDeflection(**arguments)
