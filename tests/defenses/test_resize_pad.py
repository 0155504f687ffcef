from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.defenses import RandomResizePad
from lightning_robust.errors import InputError


def images(count: int, height: int, width: int) -> torch.Tensor:
    # above the gray of the canvas, so that the image can be found on it
    return (
        torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2 + 0.4
    )


def placed(canvas: torch.Tensor) -> tuple[slice, slice]:
    """Rows and columns of one canvas with fill 0 that hold the image."""
    filled = canvas.amax(0) > 0
    rows, columns = filled.any(1).nonzero().flatten(), filled.any(0).nonzero().flatten()
    assert filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def size_of(part: slice) -> int:
    return part.stop - part.start


@settings(max_examples=20)
@given(
    height=st.integers(3, 60),
    width=st.integers(3, 60),
    interpolation=st.sampled_from(["bilinear", "nearest"]),
    variant=st.sampled_from(["paper", "competition"]),
    seed=st.integers(0, 2**31),
)
def test_every_image_is_resized_as_torch_does_and_placed_whole(height, width, interpolation, variant, seed):
    image = images(2, height, width)
    defense = RandomResizePad(variant=variant, interpolation=interpolation, fill=0.0)
    for one, canvas in zip(image, defense(image, seeds=torch.tensor([seed, seed + 1])), strict=True):
        rows, columns = placed(canvas)
        options = {} if interpolation == "nearest" else {"align_corners": False}
        size = (size_of(rows), size_of(columns))
        expected = F.interpolate(one[None], size, mode=interpolation, **options)[0]
        mirrored = F.interpolate(one[None].flip(-1), size, mode=interpolation, **options)[0]
        found = canvas[:, rows, columns]
        assert torch.allclose(found, expected, atol=1e-12) or (
            variant == "competition" and torch.allclose(found, mirrored, atol=1e-12)
        )


@pytest.mark.parametrize(("variant", "smallest"), [("paper", 299), ("competition", 310)])
def test_all_sizes_and_places_of_the_published_range_are_drawn(variant, smallest):
    defense, image = RandomResizePad(variant=variant, fill=0.0), torch.ones(1, 1, 299, 299)
    assert defense(image).shape[2:] == (331, 331)
    canvases = defense(image[..., :60].expand(400, -1, -1, -1), seeds=torch.arange(400))
    parts = [placed(canvas) for canvas in canvases]
    sizes = [size_of(rows) for rows, _ in parts]
    assert (min(sizes), max(sizes)) == (smallest, 330)
    assert set(sizes) == set(range(smallest, 331))
    assert all(abs(size_of(columns) - 0.2 * size_of(rows)) < 1.5 for rows, columns in parts)
    spare = [(rows.start, 331 - rows.stop) for rows, _ in parts]
    assert min(start for start, _ in spare) == 0
    assert min(end for _, end in spare) == 0
    assert any(rows.start != columns.start for rows, columns in parts)


def test_half_of_the_images_of_the_competition_are_mirrored():
    image = images(1, 16, 16).expand(200, -1, -1, -1)
    defense = RandomResizePad(variant="competition", steps="pad", fill=0.0)
    mirrored = 0
    for canvas in defense(image, seeds=torch.arange(200)):
        rows, columns = placed(canvas)
        found = canvas[:, rows, columns]
        assert torch.equal(found, image[0]) or torch.equal(found, image[0].flip(-1))
        mirrored += torch.equal(found, image[0].flip(-1))
    assert 70 < mirrored < 130


def test_padding_alone_keeps_the_pixels_and_resizing_alone_the_size():
    image = images(4, 40, 31)
    for one, canvas in zip(image, RandomResizePad(steps="pad", fill=0.0)(image), strict=True):
        rows, columns = placed(canvas)
        assert torch.equal(canvas[:, rows, columns], one)
    resized = RandomResizePad(steps="resize")(image)
    assert resized.shape == image.shape
    assert (resized - image).abs().amax((1, 2, 3)).min() > 0.01
    assert (resized - image).abs().mean() < 0.1


def test_the_canvas_is_gray():
    canvas = RandomResizePad()(torch.ones(1, 3, 299, 299))
    assert set(canvas.unique().tolist()) == {0.5, 1.0}


@pytest.mark.parametrize("option", ["variant", "steps", "interpolation"])
def test_unknown_options_are_refused(option):
    with pytest.raises(InputError, match=f"{option}='no' is unknown"):
        RandomResizePad(**{option: "no"})
