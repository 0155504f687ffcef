from __future__ import annotations

import pytest
import torch

from lightning_robust.attacks import igsm, pgd
from lightning_robust.errors import InputError


def two_class(image):
    """Class 0 while the mean is above one half."""
    height = image.mean((1, 2, 3)) - 0.5
    return torch.stack([height, -height], dim=1) * 10


def constant_images(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()


def test_every_sample_stops_at_its_first_success():
    image = constant_images(0.515, 0.535, 0.575, 0.48)
    record = igsm(two_class, image, torch.zeros(4, dtype=torch.long), eps=0.06, step_size=0.01, return_record=True)
    assert record.success.tolist() == [True, True, False, True]
    torch.testing.assert_close(record.distance, torch.tensor([0.02, 0.04, 0.06, 0], dtype=torch.float64))
    assert torch.equal(record.image[3], image[3])


def test_default_step_is_a_sixth_of_the_budget():
    image = constant_images(0.9)
    record = igsm(two_class, image, torch.tensor([0]), eps=0.3, steps=2, return_record=True)
    torch.testing.assert_close(record.distance, torch.tensor([0.1], dtype=torch.float64))


def test_is_projected_descent_without_a_random_start():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(20, 3, 4, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 48, generator=generator, dtype=torch.float64)

    def model(x):
        return torch.tanh(x.flatten(1) @ weight.T)

    target = model(image).argmax(1)
    options = {"eps": 0.1, "steps": 6, "step_size": 0.03, "return_record": True}
    ours = igsm(model, image, target, **options)
    torch.testing.assert_close(
        ours.image, pgd(model, image, target, random_start=False, early_stop=True, **options).image
    )
    assert ours.success.sum() > 0


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="at least one step"):
        igsm(two_class, constant_images(0.5), torch.tensor([0]), eps=0.1, steps=0)
