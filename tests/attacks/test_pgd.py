from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_robust.attacks import fgsm, pgd
from lightning_robust.errors import InputError


@pytest.fixture(scope="module")
def net():
    """A small net trained on a checkerboard of two pixel sums, so that it is neither linear nor chance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3)).double()
        image, target = batch(512, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(image), target).backward()
            optimizer.step()
    return model.eval()


def batch(count, seed):
    image = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return image, image.mean((2, 3)).argmax(1)


def accuracy(record):
    return 1 - record.success.double().mean().item()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_falls_from_clean_to_zero_with_eps(net, norm):
    image, target = batch(300, 2)
    clean = (net(image).argmax(1) == target).double().mean().item()
    accuracies = [
        accuracy(pgd(net, image, target, eps=eps, norm=norm, return_record=True)) for eps in (0, 0.02, 0.05, 0.1, 1.0)
    ]
    assert accuracies[0] == clean > 0.9
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[2] < clean - 0.05
    assert accuracies[-1] == 0


def test_many_steps_beat_one(net):
    image, target = batch(300, 3)
    single = fgsm(net, image, target, eps=0.08, return_record=True)
    many = pgd(net, image, target, eps=0.08, random_start=False, return_record=True)
    assert accuracy(many) <= accuracy(single)
    assert (many.loss >= single.loss - 1e-9).double().mean() > 0.95


def test_one_step_from_the_clean_image_is_fgsm(net):
    image, target = batch(50, 4)
    record = pgd(net, image, target, eps=0.1, steps=1, random_start=False, return_record=True)
    assert record.trace.shape == (2, 50)
    single = fgsm(net, image, target, eps=0.1)
    better = (record.image == single).flatten(1).all(1)
    assert better.double().mean() > 0.9


def test_best_point_is_returned_not_the_last():
    # a narrow ridge: a step of 0.2 jumps over the point of highest loss and back
    def ridge(image):
        height = -(image.mean((1, 2, 3)) - 0.55).abs()
        return torch.stack([-height, torch.zeros_like(height)], dim=1) * 10

    image, target = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    record = pgd(ridge, image, target, eps=0.4, steps=7, step_size=0.2, random_start=False, return_record=True)
    assert record.loss.item() == pytest.approx(record.trace.max().item())


def test_restarts_work_on_the_survivors_only(net):
    image, target = batch(60, 5)
    seen = []

    def counting(x):
        seen.append(len(x))
        return net(x)

    record = pgd(counting, image, target, eps=0.05, steps=2, restarts=3, return_record=True)
    per_restart = seen[:-1:3]
    assert per_restart[0] == 60
    assert per_restart[0] > per_restart[1] >= per_restart[2] >= (~record.success).sum() > 0
    assert record.trace.shape == (9, 60)
    assert record.trace[3:][:, record.trace[3:].isnan().any(0)].isnan().any()
    single = pgd(net, image, target, eps=0.05, steps=2, return_record=True)
    assert (record.success >= single.success).all()


def test_early_stop_finds_the_same_victims_with_fewer_evaluations(net):
    image, target = batch(200, 6)
    counts = {}

    def run(early_stop):
        def counting(x):
            counts[early_stop] = counts.get(early_stop, 0) + len(x)
            return net(x)

        return pgd(counting, image, target, eps=0.1, early_stop=early_stop, return_record=True)

    early, full = run(True), run(False)
    assert torch.equal(early.success, full.success)
    assert counts[True] < 0.7 * counts[False]


def test_margin_keeps_its_gradient_where_probabilities_are_saturated():
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(7))

    def confident(image):
        return (image.flatten(1) @ weight.T) * 1e4

    image = 0.3 + 0.4 * torch.rand(50, 3, 2, 2, generator=torch.Generator().manual_seed(8))
    target = confident(image).argmax(1)
    by_margin = pgd(confident, image, target, eps=0.5, loss="margin", random_start=False, return_record=True)
    by_entropy = pgd(confident, image, target, eps=0.5, random_start=False, return_record=True)
    assert by_margin.success.all()
    assert by_entropy.success.double().mean() < 0.5


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}, {"restarts": 2, "random_start": False}])
def test_counts_that_make_no_attack_are_refused(net, options):
    image, target = batch(2, 0)
    with pytest.raises(InputError, match="at least one step and one restart"):
        pgd(net, image, target, eps=0.1, **options)
