from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.defenses import Defense, RandomResizePad, Sequence
from lightning_robust.errors import InputError


class Noisy(Defense):
    is_random = True

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        return image + 0.5 * streams.uniform(seeds, tuple(image.shape[1:])).to(image)


class Levels(Defense):
    is_differentiable = False

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        return (image * 3).round() / 3


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def test_a_result_depends_on_image_and_seed_and_not_on_neighbors() -> None:
    image = images()
    together = Noisy()(image)
    assert torch.equal(together, torch.cat([Noisy()(one[None]) for one in image]))
    assert torch.equal(together[[2, 0, 1]], Noisy()(image[[2, 0, 1]]))
    seeds = torch.tensor([5, 5, 6])
    seeded = Noisy()(image, seeds=seeds)
    assert torch.equal(seeded[:1], Noisy()(image[:1], seeds=seeds[:1]))
    assert not torch.equal(seeded, together)


def test_equal_images_share_their_draws_and_other_images_do_not() -> None:
    image = torch.full((2, 1, 8, 8), 0.25)
    draws = Noisy()(image) - image
    assert torch.equal(draws[0], draws[1])
    image[1, 0, 0, 0] = 0.250001
    draws = Noisy()(image) - image
    assert (draws[0] - draws[1]).abs().max() > 0.1


def test_the_result_is_in_the_box_and_the_type_of_the_image() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        purified = Noisy()(images().to(dtype))
        assert purified.dtype == dtype
        assert purified.min() >= 0
        assert purified.max() == 1  # some sums exceed one


def test_autocast_does_not_reach_a_defense() -> None:
    class Product(Defense):
        def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
            return image @ torch.eye(5)

    image = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Product()(image), image)


def test_straight_through_has_the_value_of_the_defense_and_the_gradient_of_the_identity() -> None:
    image = images().requires_grad_()
    purified = Levels().straight_through(image)
    torch.testing.assert_close(purified, Levels()(image), rtol=0, atol=1e-7)
    (gradient,) = torch.autograd.grad((purified * 2).sum(), image)
    torch.testing.assert_close(gradient, torch.full_like(image, 2.0))


def test_a_sequence_applies_its_stages_in_order_with_streams_of_their_own() -> None:
    image, seeds = images(), torch.arange(3)
    chain = Sequence([Noisy(), Noisy(), Levels()])
    by_hand = Noisy()(image, seeds=streams.derive(seeds, 0))
    by_hand = Levels()(Noisy()(by_hand, seeds=streams.derive(seeds, 1)))
    assert torch.equal(chain(image, seeds=seeds), by_hand)
    assert chain.is_random
    assert not chain.is_differentiable
    assert not Sequence([Levels()]).is_random


def test_a_sequence_chains_the_surrogates_of_its_stages() -> None:
    image, seeds = images(), torch.arange(3)
    chain = Sequence([RandomResizePad(), Levels(), RandomResizePad()])
    by_hand = RandomResizePad()(image, seeds=streams.derive(seeds, 0))
    by_hand = RandomResizePad()(by_hand, seeds=streams.derive(seeds, 2))
    assert torch.equal(chain.surrogate(image, seeds), by_hand)
    assert by_hand.shape == chain(image, seeds=seeds).shape


def test_a_sequence_chains_the_straight_through_passes() -> None:
    class Halving(Defense):
        def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
            return image.detach() / 2

        def surrogate(self, image: Tensor, seeds: Tensor) -> Tensor:
            return image / 2

    image = images().requires_grad_()
    purified = Sequence([Halving(), Levels(), Halving()]).straight_through(image)
    (gradient,) = torch.autograd.grad(purified.sum(), image)
    torch.testing.assert_close(gradient, torch.full_like(image, 0.25))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.full((1, 3, 4, 4), 1.5),
            r"The images lie in \[1.5, 1.5\]: defenses need them in \[0, 1\]. Purify before",
        ),
        (torch.full((1, 3, 4, 4), torch.nan), "hold NaN or infinite values: defenses need finite ones.*Mend the data"),
        (torch.full((1, 3, 4, 4), -torch.inf), "The images hold NaN or infinite"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(3, 4, 4), r"\(3, 4, 4\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(image: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Noisy()(image)


def test_seeds_and_stages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="give one int64 per image"):
        Noisy()(images(), seeds=torch.tensor([1, 2]))
    with pytest.raises(InputError, match="at least one Defense"):
        Sequence([])
    with pytest.raises(InputError, match="Linear"):
        Sequence([torch.nn.Linear(1, 1)])  # type: ignore[list-item]
