from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_robust.defenses import CropEnsemble
from lightning_robust.errors import InputError


class Recorder(nn.Module):
    """A linear classifier of the mean color that keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.seen: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(image.detach())
        return self.head(image.mean((2, 3)))


def images(count: int = 3, height: int = 20, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_probabilities_are_averaged_over_crops_of_the_image():
    model, image = Recorder(), images()
    output = CropEnsemble(model, crops=5, size=8, resize=False)(image)
    assert [crop.shape for crop in model.seen] == [(3, 3, 8, 8)] * 5
    expected = torch.stack([model.head(crop.mean((2, 3))).softmax(1) for crop in model.seen]).mean(0)
    torch.testing.assert_close(output.exp(), expected)
    windows = image.unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    for crop in model.seen:
        assert (windows == crop[:, None]).flatten(2).all(2).any(1).all()


def test_crops_are_enlarged_to_the_size_of_the_image():
    small, large, image, seeds = Recorder(), Recorder(), images(), torch.arange(3)
    CropEnsemble(small, crops=2, size=8, resize=False)(image, seeds=seeds)
    CropEnsemble(large, crops=2, size=8)(image, seeds=seeds)
    for before, after in zip(small.seen, large.seen, strict=True):
        expected = F.interpolate(before, (20, 24), mode="bilinear", align_corners=False)
        assert torch.equal(after, expected)


def test_every_place_is_drawn():
    model = Recorder()
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(200, 3, -1, -1) / 9
    CropEnsemble(model, crops=1, size=2, resize=False)(image, seeds=torch.arange(200))
    assert len(model.seen[0][:, 0, 0, 0].unique()) == 4


def test_a_result_depends_on_image_and_seed_and_not_on_neighbors():
    ensemble, image, seeds = CropEnsemble(Recorder(), crops=3, size=7), images(), torch.tensor([4, -1, 9])
    together = ensemble(image, seeds=seeds)
    apart = torch.cat([ensemble(image[i : i + 1], seeds=seeds[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(ensemble(image.flip(0)), ensemble(image).flip(0))
    assert (ensemble(image, seeds=seeds + 1) - together).abs().max() > 1e-4
    torch.testing.assert_close(copy.deepcopy(ensemble)(image, seeds=seeds), together)


def test_the_gradient_is_exact_and_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    ensemble = CropEnsemble(Recorder().double(), crops=4, size=5)
    before = torch.random.get_rng_state()
    image, seeds = images(2, 9, 11).double().requires_grad_(), torch.tensor([1, 2])
    assert torch.autograd.gradcheck(lambda x: ensemble(x, seeds=seeds), image, fast_mode=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_images_that_do_not_fit_are_refused():
    ensemble = CropEnsemble(Recorder())
    with pytest.raises(InputError, match=r"20 x 24 and the crops size=90: give a smaller size, for example 8"):
        ensemble(images())
    with pytest.raises(InputError, match="Put the normalization inside the model"):
        ensemble(images(1, 90, 90) * 3 - 1)
    with pytest.raises(InputError, match="crops=0"):
        CropEnsemble(Recorder(), crops=0)
