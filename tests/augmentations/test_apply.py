"""augment_batch: who gets the target, and what an augmentation may return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kornia.augmentation import (
    AugmentationSequential,
    ColorJitter,
    RandomCrop,
    RandomCutMixV2,
    RandomHorizontalFlip,
    RandomJigsaw,
    RandomMixUpV2,
    RandomMosaic,
)
from torch import Tensor, nn

from lightning_robust.augmentations.batch.apply import augment_batch
from lightning_robust.errors import InputError

IMAGE = torch.rand(3, 3, 8, 6, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    """A module from images to whatever a function makes of them."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Any:
        return self.function(image)


def test_a_module_gets_the_image_and_the_target_passes_by() -> None:
    target = torch.tensor([0, 1, 2])
    image, passed = augment_batch(Own(lambda image: 1 - image), IMAGE, target)
    assert torch.equal(image, 1 - IMAGE)
    assert passed is target


def test_two_data_keys_carry_the_target_along() -> None:
    flip = AugmentationSequential(RandomHorizontalFlip(p=1.0), data_keys=["input", "mask"])
    image, mask = augment_batch(flip, IMAGE, IMAGE[:, :1].round())
    assert torch.equal(image, IMAGE.flip(-1))
    assert torch.equal(mask, IMAGE[:, :1].round().flip(-1))


def test_masks_of_class_numbers_are_carried_along_as_such() -> None:
    flip = AugmentationSequential(RandomHorizontalFlip(p=1.0), data_keys=["input", "mask"])
    numbers = torch.randint(0, 1 << 16, (3, 8, 6))
    _, mask = augment_batch(flip, IMAGE, numbers)
    assert mask.dtype == torch.int64
    assert torch.equal(mask, numbers.flip(-1))


@pytest.mark.parametrize(
    "augmentation",
    [
        RandomMixUpV2(p=1.0),
        RandomMosaic((8, 6), p=1.0),
        nn.Sequential(ColorJitter(), RandomCutMixV2(p=1.0, use_correct_lambda=True)),
        AugmentationSequential(RandomMixUpV2(p=1.0), data_keys=["input"]),
    ],
)
def test_images_are_not_mixed_without_their_targets(augmentation: nn.Module) -> None:
    with pytest.raises(
        InputError, match=r"Random\w+ mixes the images of a batch and would leave their targets unmixed"
    ):
        augment_batch(augmentation, IMAGE, torch.tensor([0, 1, 2]))
    mixed, _ = augment_batch(augmentation, IMAGE, None)
    assert mixed.shape == IMAGE.shape


def test_class_numbers_are_mixed_where_the_augmentation_takes_them() -> None:
    labels = torch.tensor([0, 1, 2])
    mixed, target = augment_batch(RandomMixUpV2(p=1.0, data_keys=["input", "class"]), IMAGE, labels)
    assert torch.equal(target[:, 0], labels.float())
    share = target[:, 2].view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, IMAGE * (1 - share) + IMAGE[target[:, 1].long()] * share)


def test_a_jigsaw_stays_within_its_image() -> None:
    image, target = augment_batch(RandomJigsaw(grid=(2, 2), p=1.0), IMAGE, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(image.flatten(1).sort().values, IMAGE.flatten(1).sort().values)
    assert target.tolist() == [0, 1, 2]


def test_the_size_may_change() -> None:
    image, _ = augment_batch(RandomCrop((4, 5)), IMAGE, None)
    assert image.shape == (3, 3, 4, 5)


@pytest.mark.parametrize(("keys", "target"), [(["input", "mask"], None), (["input", "mask", "bbox"], IMAGE)])
def test_data_keys_that_the_batch_cannot_serve_are_refused(keys: list[str], target: Tensor | None) -> None:
    with pytest.raises(InputError, match=r"AugmentationSequential has data_keys=.*Give data_keys that fit"):
        augment_batch(AugmentationSequential(RandomHorizontalFlip(), data_keys=keys), IMAGE, target)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda image: (image, image), "tuple"),
        (lambda image: None, "NoneType"),
        (lambda image: image[0], r"float32 tensor of shape \(3, 8, 6\)"),
        (lambda image: image[:2], r"shape \(2, 3, 8, 6\)"),
        (lambda image: (image * 255).to(torch.uint8), "uint8 tensor"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(function: Callable[[Tensor], Any], found: str) -> None:
    with pytest.raises(InputError, match=rf"Own returned .*{found}.* for a batch of shape \(3, 3, 8, 6\).*Wrap it"):
        augment_batch(Own(function), IMAGE, None)
