from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_robust.attacks import fgsm, margin
from lightning_robust.errors import InputError


def linear(classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
    return weight, lambda image: image.flatten(1) @ weight.T


def images(count, seed=1):
    # away from the walls of the box, so that closed forms hold
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(count, 3, 2, 2, generator=generator, dtype=torch.float64)


def test_two_classes_break_exactly_where_the_closed_form_says():
    weight, model = linear(classes=2)
    image, eps = images(400), 0.05
    target = model(image).argmax(1)
    record = fgsm(model, image, target, eps=eps, return_record=True)
    expected = -margin(model(image), target) < eps * (weight[0] - weight[1]).abs().sum()
    assert 10 < expected.sum() < 390
    assert torch.equal(record.success, expected)


def test_l2_step_follows_the_gradient_to_the_end_of_the_budget():
    weight, model = linear(classes=2)
    image, target = images(5), torch.tensor([0, 1, 0, 1, 1])
    adversarial = fgsm(model, image, target, eps=0.2, norm="l2")
    toward = (weight[1] - weight[0]) / (weight[1] - weight[0]).norm()
    expected = 0.2 * torch.where(target == 0, 1.0, -1.0)[:, None] * toward
    torch.testing.assert_close((adversarial - image).flatten(1), expected)


def test_random_start_takes_a_longer_step_and_differs_by_seed():
    _, model = linear()
    image, target = images(50), torch.zeros(50, dtype=torch.int64)
    first, second = (
        fgsm(model, image, target, eps=0.1, random_start=True, seeds=torch.arange(50) + shift) for shift in (0, 50)
    )
    assert not torch.equal(first, second)
    change = (first - image).abs()
    # a start in [-eps, eps] moved by 1.25 eps ends on the face of the ball, or at least 0.25 eps from the middle
    assert change.min() >= 0.025 - 1e-9
    assert change.max() <= 0.1 + 1e-9
    assert (change > 0.1 - 1e-9).double().mean() == pytest.approx(0.625, abs=0.05)


def test_step_size_is_taken_as_given():
    _, model = linear()
    image, target = images(3), torch.tensor([0, 1, 2])
    sizes = torch.tensor([0.0, 0.01, 0.5], dtype=torch.float64)
    change = fgsm(model, image, target, eps=0.1, step_size=sizes) - image
    torch.testing.assert_close(change.abs().flatten(1).amax(1), torch.tensor([0.0, 0.01, 0.1], dtype=torch.float64))


# dynamo looks at the .grad of its inputs and hides the warning itself, but not from the filter "error"
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_attack_reaches_through_a_compiled_model():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Softplus(), nn.Linear(8, 3)).double().train()
    image, target = images(4), torch.tensor([0, 1, 2, 0])
    expected = fgsm(net, image, target, eps=0.1)
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(fgsm(compiled, image, target, eps=0.1), expected)
    assert compiled.training
    assert net.training


def test_a_budget_in_8_bit_levels_is_pointed_out():
    _, model = linear()
    with pytest.raises(InputError, match=r"eps=8 is more than the whole range of a pixel: .* is eps=8 / 255"):
        fgsm(model, images(2), torch.tensor([0, 1]), eps=8)
    fgsm(model, images(2), torch.tensor([0, 1]), eps=8, norm="l2")
