from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust import seeds as streams
from lightning_robust.defenses import PatchBank, Quilting
from lightning_robust.errors import InputError


def bank_of(count: int, patch: int = 5, channels: int = 3, seed: int = 0) -> PatchBank:
    generator = torch.Generator().manual_seed(seed)
    return PatchBank(torch.randint(256, (count, channels, patch, patch), generator=generator, dtype=torch.uint8))


def images(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64)


def _reference_seam(error: np.ndarray) -> list[int]:
    """Cheapest of all connected seams, by trying every one."""
    lines, overlap = error.shape
    seams = [
        seam
        for seam in itertools.product(range(overlap), repeat=lines)
        if all(abs(a - b) <= 1 for a, b in itertools.pairwise(seam))
    ]
    return list(min(seams, key=lambda seam: sum(error[line, pixel] for line, pixel in enumerate(seam))))


def _reference_quilt(image: np.ndarray, tiles: np.ndarray, stitch: str) -> np.ndarray:
    """Tile after tile in raster order; tiles of shape (rows, columns, C, P, P)."""
    rows, columns, channels, patch, _ = tiles.shape
    overlap, step = patch // 2, patch - patch // 2
    canvas = np.zeros((channels, (rows - 1) * step + patch, (columns - 1) * step + patch))
    weight = np.zeros(canvas.shape[1:])
    for row, column in itertools.product(range(rows), range(columns)):
        area = (slice(None), slice(row * step, row * step + patch), slice(column * step, column * step + patch))
        old, new = canvas[area].copy(), tiles[row, column]
        if stitch == "average":
            canvas[area] += new
            weight[area[1:]] += 1
            continue
        taken = np.ones((patch, patch), dtype=bool)
        if stitch == "cut":
            error = ((old - new) ** 2).sum(0)
            if column:
                for line, first in enumerate(_reference_seam(error[:, :overlap])):
                    taken[line, :first] = False
            if row:
                for line, first in enumerate(_reference_seam(error[:overlap].T)):
                    taken[:first, line] = False
        canvas[area] = np.where(taken, new, old)
    result = canvas / weight if stitch == "average" else canvas
    return result[:, : image.shape[1], : image.shape[2]]


def _reference_tiles(image: np.ndarray, bank: PatchBank, neighbors: int, seed: int) -> np.ndarray:
    known = bank.patches.numpy() / 255
    patch = known.shape[-1]
    step = patch - patch // 2
    size = [max(side, patch) + -(max(side, patch) - patch) % step for side in image.shape[1:]]
    padded = np.pad(image, ((0, 0), (0, size[0] - image.shape[1]), (0, size[1] - image.shape[2])), mode="edge")
    rows, columns = ((side - patch) // step + 1 for side in size)
    rank = streams.integers(torch.tensor([seed]), (rows * columns, 1), neighbors, "quilting").flatten()
    tiles = np.empty((rows, columns, *known.shape[1:]))
    for number, (row, column) in enumerate(itertools.product(range(rows), range(columns))):
        window = padded[:, row * step : row * step + patch, column * step : column * step + patch]
        distance = ((known - window) ** 2).sum((1, 2, 3))
        tiles[row, column] = known[np.argsort(distance)[rank[number]]]
    return tiles


@settings(max_examples=25)
@given(
    stitch=st.sampled_from(["cut", "paste", "average"]),
    patch=st.integers(3, 6),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    neighbors=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_it_equals_tiles_laid_one_after_another(stitch, patch, height, width, neighbors, seed):
    bank, image = bank_of(30, patch), images(2, height, width)
    seeds = torch.tensor([seed, seed + 7])
    found = Quilting(bank, neighbors=neighbors, stitch=stitch)(image, seeds=seeds)
    for one, own, result in zip(image.numpy(), seeds.tolist(), found.numpy(), strict=True):
        expected = _reference_quilt(one, _reference_tiles(one, bank, neighbors, own), stitch)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stitch", ["cut", "paste", "average"])
@pytest.mark.parametrize("size", [(14, 17), (13, 16), (5, 5)])
def test_an_image_whose_patches_are_in_the_bank_comes_back(stitch, size):
    pixels = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    extended = torch.nn.functional.pad(pixels[None].float(), (0, 2, 0, 2), mode="replicate")[0].to(torch.uint8)
    windows = extended.unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    image = pixels[None].double() / 255
    torch.testing.assert_close(Quilting(PatchBank(windows), neighbors=1, stitch=stitch)(image), image)


def test_every_neighbor_is_drawn_about_as_often():
    levels = torch.tensor([100, 101, 102, 103, 200], dtype=torch.uint8).view(5, 1, 1, 1).expand(-1, 1, 5, 5)
    image = torch.full((400, 1, 5, 5), 100 / 255)
    drawn = Quilting(PatchBank(levels), neighbors=4)(image, seeds=torch.arange(400))[:, 0, 0, 0]
    counts = (drawn * 255).round().int().bincount(minlength=201)[100:104]
    assert counts.sum() == 400
    assert counts.min() > 70


def test_the_search_in_parts_finds_the_same(monkeypatch):
    defense, image = Quilting(bank_of(50)), images(2, 20, 20)
    whole = defense(image)
    monkeypatch.setattr("lightning_robust.defenses.quilting._CHUNK", 150)
    assert torch.equal(defense(image), whole)


def test_a_saved_bank_is_given_by_its_path(tmp_path):
    bank, image = bank_of(20), images(1, 11, 11)
    bank.save(tmp_path / "bank.npz")
    assert torch.equal(Quilting(str(tmp_path / "bank.npz"))(image), Quilting(bank)(image))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="neighbors=10 is out of range: give a number from 1 to 4"):
        Quilting(bank_of(4))
    with pytest.raises(InputError, match="1 channels and the patch bank 3"):
        Quilting(bank_of(20))(images(1, 8, 8, channels=1))
    with pytest.raises(InputError, match="stitch='glue' is unknown"):
        Quilting(bank_of(20), stitch="glue")
