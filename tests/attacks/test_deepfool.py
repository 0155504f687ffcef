from __future__ import annotations

import pytest
import torch

from lightning_robust.attacks import deepfool
from lightning_robust.errors import InputError


def linear(classes, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, size, generator=generator, dtype=torch.float64)
    return lambda x: x.flatten(1) @ weight.T, weight


def curved(seed=1, classes=12):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(24, 48, generator=generator, dtype=torch.float64) / 4
    second = torch.randn(classes, 24, generator=generator, dtype=torch.float64)
    return lambda x: torch.tanh((x - 0.5).flatten(1) @ first.T * 3) @ second.T


def images(count, seed=2):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _reference_deepfool(model, image, *, candidates, overshoot, steps):
    """One image at a time, after algorithm 2 of the paper with the released code's push, clipped to the box."""
    with torch.no_grad():
        order = model(image[None])[0].argsort(descending=True)
    own, change, point = order[0], torch.zeros_like(image), image
    for _ in range(steps):
        if model(point[None]).argmax() != own:
            break
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], point)
        logits = model(point[None])[0]
        steps_to = []
        for rival in order[1:candidates]:
            slope, gap = jacobian[rival] - jacobian[own], (logits[rival] - logits[own]).abs()
            steps_to.append((gap / slope.norm(), slope / slope.norm()))
        distance, direction = min(steps_to, key=lambda one: one[0])
        change = change + (distance + 1e-4) * direction
        point = (image + (1 + overshoot) * change).clamp(0, 1)
    return point


@pytest.mark.parametrize("candidates", [3, 10])
def test_batched_walk_equals_the_paper_image_by_image(candidates):
    model, image = curved(), images(8)
    with torch.no_grad():
        target = model(image).argmax(1)
    result = deepfool(model, image, target, candidates=candidates)
    expected = [_reference_deepfool(model, one, candidates=candidates, overshoot=0.02, steps=50) for one in image]
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=1e-9)


def test_linear_model_takes_one_step_of_the_distance_to_the_boundary():
    model, weight = linear(2, 48)
    image = 0.4 + 0.2 * images(1)
    shift = (model(image)[0, 0] - model(image)[0, 1]).item() - 0.3

    def near(x):
        return model(x) - torch.tensor([shift, 0.0], dtype=torch.float64)

    record = deepfool(near, image, torch.tensor([0]), steps=1, overshoot=0.1, return_record=True)
    distance = 0.3 / (weight[0] - weight[1]).norm().item()
    assert record.success.item()
    assert record.distance.item() == pytest.approx(1.1 * (distance + 1e-4))


def test_samples_leave_when_they_are_done():
    model, seen = curved(), []

    def counting(x):
        seen.append((len(x), torch.is_grad_enabled()))
        return model(x)

    image = images(30)
    with torch.no_grad():
        target = model(image).argmax(1)
    assert deepfool(counting, image, target, return_record=True).success.all()
    walked = [count for count, grad in seen if grad]
    assert walked == sorted(walked, reverse=True)
    assert walked[0] == 30 > walked[-1]


def test_saturated_pixels_do_not_stop_the_walk():
    # half of the values are pushed out of the box, so that the others have to do their part in later steps
    def model(x):
        height = x[:, :, :2].sum((1, 2, 3)) - x[:, :, 2:].sum((1, 2, 3)) + 12
        return torch.stack([height, torch.zeros_like(height)], dim=1)

    image = torch.full((1, 3, 4, 4), 0.6, dtype=torch.float64)
    image[:, :, 2:] = 1.0
    record = deepfool(model, image, torch.tensor([0]), return_record=True)
    assert record.success.item()
    # 2.4 have to be taken from 24 values
    assert record.distance.item() == pytest.approx(2.4 / 24**0.5, rel=0.05)
    assert torch.equal(record.image[:, :, 2:], image[:, :, 2:])


@pytest.mark.parametrize("options", [{"steps": 0}, {"candidates": 1}, {"overshoot": -0.1}])
def test_options_that_make_no_attack_are_refused(options):
    with pytest.raises(InputError, match="at least one step and two candidate"):
        deepfool(curved(), images(1), torch.tensor([0]), **options)
