from __future__ import annotations

import copy
import pickle

import pytest
import torch
from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip

from lightning_robust.augmentations import RandomLaplacianSharpening
from lightning_robust.errors import InputError
from lightning_robust.functional import laplacian_sharpen


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(6, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_each_image_gets_the_strength_that_was_drawn(image: torch.Tensor) -> None:
    augmentation = RandomLaplacianSharpening(p=1.0)
    sharp = augmentation(image)
    drawn = augmentation._params["alpha"]
    assert len(set(drawn.tolist())) == 6
    assert drawn.min() >= 0
    assert drawn.max() <= 0.3
    assert torch.equal(sharp, laplacian_sharpen(image, drawn))


def test_one_number_is_a_fixed_strength(image: torch.Tensor) -> None:
    assert torch.equal(RandomLaplacianSharpening(0.15, p=1.0)(image), laplacian_sharpen(image, 0.15))


def test_options_reach_the_function(image: torch.Tensor) -> None:
    options = {"neighbors": 8, "normalize": True, "padding": "reflect", "levels": None}
    augmentation = RandomLaplacianSharpening(0.2, p=1.0, **options)
    assert torch.equal(augmentation(image), laplacian_sharpen(image, 0.2, **options))
    assert "neighbors=8, normalize=True, padding=reflect, levels=None" in repr(augmentation)


def test_replay_gives_the_same_bits(image: torch.Tensor) -> None:
    augmentation = RandomLaplacianSharpening(p=0.5)
    sharp = augmentation(image)
    assert torch.equal(augmentation(image, params=augmentation._params), sharp)


def test_same_on_batch_draws_once(image: torch.Tensor) -> None:
    augmentation = RandomLaplacianSharpening((0.1, 0.3), p=1.0, same_on_batch=True)
    augmentation(image)
    assert len(set(augmentation._params["alpha"].tolist())) == 1


def test_skipped_images_keep_their_values(image: torch.Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        augmentation = RandomLaplacianSharpening(0.3, p=0.5)
        sharp = augmentation(image)
    applied = augmentation._params["batch_prob"] > 0.5
    assert 0 < applied.sum() < 6
    assert torch.equal(sharp[~applied], image[~applied])
    assert torch.equal(sharp[applied], laplacian_sharpen(image[applied], 0.3))


def test_masks_and_boxes_follow_the_geometry_only(image: torch.Tensor) -> None:
    mask = torch.zeros(6, 1, 12, 16)
    mask[..., :4] = 1
    boxes = torch.tensor([[[1.0, 2.0, 8.0, 9.0]]]).repeat(6, 1, 1)
    flip = RandomHorizontalFlip(p=1.0)
    keys = ["input", "mask", "bbox_xyxy"]
    with_ours = AugmentationSequential(RandomLaplacianSharpening(0.15, p=1.0), flip, data_keys=keys)
    without = AugmentationSequential(flip, data_keys=keys)
    ours, theirs = with_ours(image, mask, boxes), without(image, mask, boxes)
    assert torch.equal(ours[0], laplacian_sharpen(image).flip(-1))
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])


def test_gradient_passes(image: torch.Tensor) -> None:
    leaf = (0.4 + 0.2 * image).requires_grad_()
    RandomLaplacianSharpening((0.01, 0.02), p=1.0)(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, torch.ones_like(leaf))


def test_one_image_keeps_its_shape_where_asked(image: torch.Tensor) -> None:
    assert RandomLaplacianSharpening(p=1.0, keepdim=True)(image[0]).shape == (3, 12, 16)


def test_a_copy_and_a_pickle_draw_as_the_original(image: torch.Tensor) -> None:
    augmentation = RandomLaplacianSharpening(p=1.0)
    results = []
    for twin in (augmentation, copy.deepcopy(augmentation), pickle.loads(pickle.dumps(augmentation))):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            results.append(twin(image))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_normalized_batch_is_refused(image: torch.Tensor) -> None:
    with pytest.raises(InputError, match="undo a normalization"):
        RandomLaplacianSharpening(p=1.0)(4 * image - 2)


@pytest.mark.parametrize(
    "arguments", [{"alpha": (0.3, 0.1)}, {"alpha": -0.1}, {"neighbors": 5}, {"padding": "same"}, {"levels": 0}]
)
def test_bad_options_are_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        RandomLaplacianSharpening(**arguments)
