from __future__ import annotations

import pytest
import torch

from lightning_robust.attacks import carlini_wagner
from lightning_robust.errors import InputError

QUICK = {"steps": 60, "searches": 4, "learning_rate": 0.05, "constant": 1.0}


def mean_model(image):
    """Class 0 while the sum of the image is above 2."""
    return torch.stack([image.sum((1, 2, 3)), torch.full_like(image[:, 0, 0, 0], 2.0)], dim=1)


def curved(seed=1):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(24, 48, generator=generator, dtype=torch.float64) / 4
    second = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    return lambda x: torch.tanh((x - 0.5).flatten(1) @ first.T * 3) @ second.T


def images(count, seed=2):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shift", [-30.0, 30.0])
def test_negative_logits_are_masked_like_others(shift):
    model, image = curved(), images(6)
    target = model(image).argmax(1)
    plain = carlini_wagner(model, image, target, return_record=True, **QUICK)
    shifted = carlini_wagner(lambda x: model(x) + shift, image, target, return_record=True, **QUICK)
    assert plain.success.all()
    torch.testing.assert_close(shifted.image, plain.image, rtol=0, atol=1e-7)


def test_saturated_pixels_move():
    # white pixels are the only way to fool it
    image = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    record = carlini_wagner(
        lambda x: mean_model(x) + torch.tensor([-1.9, 0.0], dtype=x.dtype),
        image,
        torch.tensor([0]),
        steps=300,
        searches=4,
        learning_rate=0.1,
        constant=10.0,
        return_record=True,
    )
    assert record.success.item()
    assert (record.image < 1).all()
    assert record.distance.item() == pytest.approx(0.05, rel=0.25)


def test_failed_sample_comes_back_clean_and_not_black():
    # black is class 1, so that an attack that starts from zeros would report it
    image = torch.full((2, 1, 2, 2), 0.9, dtype=torch.float64)
    record = carlini_wagner(
        mean_model,
        image,
        torch.zeros(2, dtype=torch.long),
        steps=2,
        searches=1,
        constant=1e-6,
        learning_rate=1e-3,
        return_record=True,
    )
    assert not record.success.any()
    assert torch.equal(record.image, image)


def test_samples_are_given_up_one_by_one():
    # the third sample has no slope, so that its loss stands still at once, and the others go on
    def flat_in_the_dark(x):
        seen.append(len(x))
        return mean_model(x) + 5 * (x.detach()[:, :1, 0, 0] < 0.1) * torch.tensor([1.0, 0.0], dtype=x.dtype)

    seen = []
    image = torch.full((3, 1, 2, 2), 0.6, dtype=torch.float64)
    image[2] = 0.001
    target = torch.zeros(3, dtype=torch.long)
    options = QUICK | {"searches": 1, "constant": 1e-9}
    carlini_wagner(flat_in_the_dark, image, target, **options)
    early = list(seen)
    seen.clear()
    carlini_wagner(flat_in_the_dark, image, target, abort_early=False, **options)
    assert sum(early) < sum(seen)
    assert early[:5] == [3] * 5


def test_abort_of_one_does_not_touch_another():
    model, image = curved(), images(5)
    target = model(image).argmax(1)
    together = carlini_wagner(model, image, target, **QUICK)
    alone = [carlini_wagner(model, one[None], label[None], **QUICK) for one, label in zip(image, target, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-7)


def test_confidence_is_a_lead_of_the_other_class():
    model, image = curved(), images(5)
    target = model(image).argmax(1)
    for confidence in (0.0, 0.5):
        record = carlini_wagner(model, image, target, confidence=confidence, return_record=True, **QUICK)
        assert record.success.all()
        assert (record.loss >= confidence).all()


def test_search_finds_the_price():
    model, image = curved(), images(8)
    target = model(image).argmax(1)

    def run(constant, searches):
        options = QUICK | {"constant": constant, "searches": searches}
        return carlini_wagner(model, image, target, return_record=True, **options)

    cheap, raised, dear, lowered = run(1e-4, 1), run(1e-4, 6), run(30.0, 1), run(30.0, 6)
    assert not cheap.success.all()
    assert raised.success.all()
    assert dear.success.all()
    assert (lowered.distance <= dear.distance).all()
    assert lowered.distance.sum() < dear.distance.sum()


def test_last_search_takes_the_highest_open_price():
    # the first price that works is beyond nine rounds of times ten
    image = torch.full((1, 1, 2, 2), 0.6, dtype=torch.float64)
    options = QUICK | {"steps": 20, "constant": 1e-10, "learning_rate": 0.2}
    results = [
        carlini_wagner(
            lambda x: mean_model(x) * 1e-4, image, torch.tensor([0]), return_record=True, **(options | {"searches": n})
        )
        for n in (9, 10)
    ]
    assert [one.success.item() for one in results] == [False, True]


def test_bisections_end_at_the_boundary():
    model, image = curved(), images(6)
    target = model(image).argmax(1)
    loose, tight = (
        carlini_wagner(model, image, target, bisections=count, return_record=True, **QUICK) for count in (0, 20)
    )
    assert tight.success.all()
    assert (tight.distance <= loose.distance).all()
    assert tight.distance.sum() < 0.999 * loose.distance.sum()
    shorter = image + (tight.image - image) * (1 - 1e-3)
    assert torch.equal(model(shorter).argmax(1), target)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"searches": 0}, {"learning_rate": 0}, {"constant": 0}, {"confidence": -1}, {"bisections": -1}],
)
def test_options_that_make_no_attack_are_refused(options):
    with pytest.raises(InputError, match="at least one step and one search"):
        carlini_wagner(mean_model, torch.full((1, 1, 2, 2), 0.6), torch.tensor([0]), **options)
