from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_robust.attacks import fgsm, pgd
from lightning_robust.corruptions import band_noise, contrast, gaussian_noise
from lightning_robust.errors import InputError
from lightning_robust.evaluation import Attack, Clean, Corruption, evaluate, worst_of_pgd

COUNT = 60


class Linear(nn.Module):
    """Two classes, logits (0, w.(x - 1/2)): everything about it can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))

    def forward(self, image):
        score = (image - 0.5).flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(score), score], dim=1)


def data():
    generator = torch.Generator().manual_seed(1)
    # 8-bit values far from the walls of the box
    image = torch.randint(64, 192, (COUNT, 3, 2, 2), generator=generator, dtype=torch.uint8)
    target = torch.randint(2, (COUNT,), generator=generator)
    return image, target


def batches(*sizes, order=None):
    image, target = data()
    ids = torch.arange(100, 100 + COUNT)
    order = torch.arange(COUNT) if order is None else order
    return [(image[i], target[i], ids[i]) for i in order.split(list(sizes) or COUNT)]


def margins(model):
    image, target = data()
    score = (image.double() / 255 - 0.5).flatten(1) @ model.weight.detach()
    return torch.where(target == 1, score, -score)


def test_bits_of_a_linear_model_equal_the_closed_form():
    model, eps = Linear(), 8 / 255
    columns = [
        Clean(),
        Attack("fgsm", [fgsm], eps),
        worst_of_pgd(eps),
        Attack("l2", [partial(pgd, steps=5)], 0.3, "l2"),
    ]
    clean, single, many, round_ball = evaluate(model, batches(), columns)
    margin = margins(model)
    assert clean.ids == tuple(range(100, 100 + COUNT))
    assert clean.correct == tuple((margin > 0).tolist())
    expected = margin > eps * model.weight.detach().abs().sum()
    assert 3 < expected.sum() < (margin > 0).sum() - 3
    assert single.correct == many.correct == tuple(expected.tolist())
    # rounding to 8 bits may cost the attack a little of an L2 ball, never of its right to be inside
    strongest = margin > 0.3 * model.weight.detach().norm()
    assert all(bit or not certain for bit, certain in zip(round_ball.correct, strongest.tolist(), strict=True))
    assert sum(round_ball.correct) <= strongest.sum() + 3


def test_result_does_not_depend_on_batches_or_order():
    columns = [
        Clean(),
        worst_of_pgd(4 / 255),
        Corruption("noise", partial(gaussian_noise, std=0.3)),
        Attack("random start", [partial(fgsm, random_start=True)], 8 / 255),
    ]
    whole = evaluate(Linear(), batches(), columns)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    assert evaluate(Linear(), batches(7, 13, 40, order=order), columns) == whole
    assert evaluate(Linear(), batches(), columns, seed=1)[2].correct != whole[2].correct


def test_order_is_publish_round_attack_round_purify_model():
    image, seen = torch.full((1, 3, 2, 2), 0.3), []

    def note(name, value):
        seen.append((name, round(value.detach().mean().item() * 255, 3)))
        return value

    def publish(x):
        return note("published", x + 0.1)

    def attack(model, x, target, *, eps, norm, seeds):
        note("attacked", x)
        model(x)
        return x + 0.3 * eps

    def purify(x):
        return note("purified", x) * 0 + 0.25

    def model(x):
        note("model", x)
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2) + 0 * x.sum()

    columns = [Clean(), Attack("fake", [attack], 8 / 255)]
    records = evaluate(model, [(image, torch.tensor([1]))], columns, publish=publish, purify=purify)
    assert [record.correct for record in records] == [(True,), (True,)]
    assert seen == [
        ("published", 102.0),
        # the clean column: 8 bits, purified, classified
        ("purified", 102.0),
        ("model", 63.75),
        # the attack is around the published image and goes through the purifier
        ("attacked", 102.0),
        ("purified", 102.0),
        ("model", 63.75),
        # 0.3 of 8 levels is received as 2 levels
        ("purified", 104.0),
        ("model", 63.75),
    ]


def test_published_image_is_rounded_before_anything_sees_it():
    seen = []

    def corrupt(image, *, seeds):
        seen.append(image)
        return image

    evaluate(Linear(), batches(), [Corruption("look", corrupt)], publish=lambda x: x + 0.0013)
    levels = seen[0] * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)


def test_model_sees_8_bit_images_only_also_inside_an_attack():
    seen = []

    def model(image):
        seen.append(image.detach() * 255)
        return image.flatten(1)[:, :2]

    noise = Corruption("noise", partial(gaussian_noise, std=0.1))
    evaluate(model, batches(), [Clean(), Attack("pgd", [partial(pgd, steps=3)], 8 / 255), noise])
    assert len(seen) == 7
    for levels in seen:
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_later_members_see_the_survivors_only():
    counts = []

    def weak(model, image, target, *, eps, norm, seeds):
        counts.append(len(image))
        return fgsm(model, image, target, eps=eps / 4)

    def idle(model, image, target, *, eps, norm, seeds):
        counts.append(len(image))
        return image

    model, eps = Linear(), 8 / 255
    (record,) = evaluate(model, batches(), [Attack("both", [weak, idle], eps)])
    margin = margins(model)
    survivors = margin > eps / 4 * model.weight.detach().abs().sum()
    assert counts == [(margin > 0).sum(), survivors.sum()]
    assert record.correct == tuple(survivors.tolist())


def test_transferred_attack_is_crafted_on_the_surrogate():
    class Opposite(Linear):
        def forward(self, image):
            return -super().forward(image)

    # ascending the loss of the opposite model helps this one: every right answer stays right
    clean, transfer = evaluate(Linear(), batches(), [Clean(), worst_of_pgd(8 / 255, surrogate=Opposite())])
    assert transfer.correct == clean.correct
    assert transfer.column == "PGD-20 8/255 (transfer)"
    assert transfer.settings["surrogate"] == "Opposite"


def test_corruptions_do_not_require_a_right_answer_before():
    def invert(image, *, seeds):
        return 1 - image

    clean, inverted = evaluate(Linear(), batches(), [Clean(), Corruption("invert", invert)])
    assert inverted.correct == tuple(not bit for bit in clean.correct)


def test_model_and_random_state_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2)).train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.random.get_rng_state()
    columns = [worst_of_pgd(2 / 255), Corruption("contrast", partial(contrast, factor=0.5))]
    with torch.inference_mode():
        evaluate(model, batches(20, 40), columns)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [part.training for part in model] == [True, False, True, True, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_settings_are_plain_and_progress_is_told():
    told = []
    columns = [worst_of_pgd(8 / 255, steps=2), Corruption("low", partial(gaussian_noise, std=0.1))]
    attack, corruption = evaluate(
        Linear(), batches(20, 40), columns, progress=lambda name, count: told.append((name, count))
    )
    assert attack.settings["members"][1] == {"name": "pgd", "steps": 2, "early_stop": True, "loss": "margin"}
    assert corruption.settings == {"function": {"name": "gaussian_noise", "std": 0.1}}
    assert told == [("PGD-2 8/255", 20), ("low", 20), ("PGD-2 8/255", 40), ("low", 40)]


def test_ids_default_to_the_position_in_the_stream():
    image, target = data()
    (record,) = evaluate(Linear(), [(image[:50], target[:50]), (image[50:], target[50:])], [Clean()])
    assert record.ids == tuple(range(COUNT))


def test_every_band_of_noise_is_a_column():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    columns = [Corruption(band, partial(band_noise, band=band, rmse=0.1)) for band in ("low", "middle", "high")]
    image = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    records = evaluate(model, [(image, torch.tensor([0, 1, 0, 1]))], columns)
    assert [record.column for record in records] == ["low", "middle", "high"]


def greedy(model, image, target, *, eps, norm, seeds):
    return (image + 2 * eps).clamp(0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": [Clean(), Clean()]}, "every one a name of its own"),
        ({"columns": []}, "at least one"),
        ({"batches": []}, "no batches"),
        ({"batches": batches() + batches()}, "id 100 came twice"),
        ({"batches": [torch.zeros(2, 3, 2, 2)]}, "A batch is a Tensor"),
        ({"batches": [(torch.zeros(2, 3, 2, 2), torch.zeros(3, dtype=torch.int64))]}, r"targets \(3,\)"),
        ({"batches": [(torch.full((1, 3, 2, 2), 3.0), torch.tensor([0]))]}, r"lies in \[3, 3\]"),
        ({"columns": [Attack("greedy", [greedy], 8 / 255)]}, r"changed an image by 0.06275 in linf, its budget is"),
        ({"model": lambda image: image}, "one row of class logits"),
    ],
)
def test_wrong_input_is_named(change, message):
    arguments = {"model": Linear(), "batches": batches(), "columns": [Clean()]} | change
    with pytest.raises(InputError, match=message):
        evaluate(**arguments)


def test_attack_column_without_attacks_is_refused():
    with pytest.raises(InputError, match="'none' has 0 attacks"):
        Attack("none", [], 0.1)
