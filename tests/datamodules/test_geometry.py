from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.datamodules import geometry
from lightning_robust.datamodules.geometry import Boxes, clip_boxes, fit_boxes, fit_image, fit_mask
from lightning_robust.shards.decode import MAX_PIXELS

sides = st.integers(3, 24)
sizes = st.tuples(sides, sides)


def _reference_cover(image_size, size):
    """Scaled size and crop, by the words of the documentation."""
    factor = max(size[0] / image_size[0], size[1] / image_size[1])
    scaled = [max(wanted, round(side * factor)) for side, wanted in zip(image_size, size, strict=True)]
    return scaled, [(s - w) // 2 for s, w in zip(scaled, size, strict=True)]


def _reference_box(box, image_size, size):
    """The box after scaling and cropping, one coordinate at a time; None if nothing is left of it."""
    (height, width), (top, left) = _reference_cover(image_size, size)
    x0, y0, x1, y1 = box
    left_edge, right_edge = x0 * width / image_size[1] - left, x1 * width / image_size[1] - left
    top_edge, bottom_edge = y0 * height / image_size[0] - top, y1 * height / image_size[0] - top
    cut = [max(0, left_edge), max(0, top_edge), min(size[1], right_edge), min(size[0], bottom_edge)]
    return cut if np.float32(cut[0]) < np.float32(cut[2]) and np.float32(cut[1]) < np.float32(cut[3]) else None


def _reference_nearest(length, scaled, start, count):
    """For each pixel of a scaled and cropped line, all pixels whose centers are nearest: two, in the middle between."""
    for pixel in range(start, start + count):
        center = Fraction(2 * pixel + 1, 2) * length / scaled
        distances = [abs(Fraction(2 * other + 1, 2) - center) for other in range(length)]
        yield [other for other, distance in enumerate(distances) if distance == min(distances)]


@settings(max_examples=60, deadline=None)
@given(image_size=sizes, size=sizes)
def test_masks_are_scaled_to_the_nearest_pixel(image_size, size):
    mask = np.arange(image_size[0] * image_size[1], dtype=np.uint16).reshape(image_size)
    scaled, start = _reference_cover(image_size, size)
    rows, columns = (list(_reference_nearest(image_size[k], scaled[k], start[k], size[k])) for k in range(2))
    found = fit_mask(mask, size)
    assert found.dtype == np.uint16
    assert found.shape == size
    assert all(found[i, j] // image_size[1] in rows[i] for i in range(size[0]) for j in range(size[1]))
    assert all(found[i, j] % image_size[1] in columns[j] for i in range(size[0]) for j in range(size[1]))
    # where one pixel alone is nearest, OpenCV takes that too
    certain = np.ix_([len(row) == 1 for row in rows], [len(column) == 1 for column in columns])
    whole = cv2.resize(mask, scaled[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    cropped = whole[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
    np.testing.assert_array_equal(found[certain], cropped[certain])


@settings(max_examples=200, deadline=None)
@given(image_size=sizes, size=sizes, data=st.data())
def test_boxes_are_scaled_cropped_and_dropped(image_size, size, data):
    corner = st.tuples(st.floats(0, image_size[1] - 1, width=32), st.floats(0, image_size[0] - 1, width=32))
    drawn = data.draw(st.lists(st.tuples(corner, st.floats(0.5, 9, width=32), st.floats(0.5, 9, width=32)), max_size=6))
    boxes = np.array([[x, y, x + w, y + h] for (x, y), w, h in drawn], np.float32).reshape(-1, 4)
    boxes[:, 2:] = np.minimum(boxes[:, 2:], [image_size[1], image_size[0]])
    found = fit_boxes(Boxes(boxes, np.arange(len(boxes))), image_size, size)
    expected = [(number, _reference_box(box, image_size, size)) for number, box in enumerate(boxes.tolist())]
    if image_size != size:
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [size[1], size[0]] * 2).all()
    for number, box in expected:
        assert (number in found.labels) == (box is not None) or min(box[2] - box[0], box[3] - box[1]) < 1e-5
    for label, box in zip(found.labels.tolist(), found.boxes, strict=True):
        np.testing.assert_allclose(box, expected[label][1], atol=1e-4)


def _center(weights):
    """Center (x, y) of what is bright."""
    rows, columns = np.indices(weights.shape) + 0.5
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


def _shown(size):
    """Image, mask and box of one thing, 8 x 6 pixels of 24 x 16, brought to a size."""
    image, mask = np.zeros((16, 24, 3), np.uint8), np.zeros((16, 24), np.uint8)
    image[6:12, 8:16], mask[6:12, 8:16] = 255, 1
    box = fit_boxes(Boxes(np.array([[8, 6, 16, 12]], np.float32), np.array([1])), (16, 24), size).boxes[0]
    return fit_image(image, size)[..., 0], fit_mask(mask, size), box


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (32, 40), (24, 16), (12, 20)])
def test_the_image_is_where_the_box_is(size):
    image, _, box = _shown(size)
    np.testing.assert_allclose(_center(image.astype(float)), (box[:2] + box[2:]) / 2, atol=0.05)


# scaled by 2 or 1/2, so that edges stay between pixels
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (32, 40)])
def test_image_mask_and_box_stay_together(size):
    image, mask, box = _shown(size)
    rows, columns = np.nonzero(mask)
    np.testing.assert_array_equal(box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_array_equal(image > 127, mask == 1)


@settings(max_examples=60, deadline=None)
@given(image_size=st.tuples(st.integers(1, 24), st.integers(1, 24)), size=sizes, seed=st.integers(0, 99))
def test_a_part_that_is_enlarged_alone_is_that_of_the_whole(image_size, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*image_size, 3), dtype=np.uint8)
    whole = fit_image(image, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "MAX_PIXELS", 0)
        part = fit_image(image, size)
    assert (part.dtype, part.shape) == (np.uint8, (*size, 3))
    np.testing.assert_allclose(part.astype(int), whole.astype(int), atol=1)


@pytest.mark.parametrize("turned", [False, True])
def test_a_line_of_pixels_takes_no_more_than_it_holds(turned):
    image, middle = np.zeros((1, MAX_PIXELS, 3), np.uint8), MAX_PIXELS // 2
    image[:, middle] = 200
    found = fit_image(image.transpose(1, 0, 2) if turned else image, (8, 8))
    between = np.rint(200 * (np.arange(8) + 0.5) / 8)
    np.testing.assert_array_equal(found[..., 0], np.tile(between, (8, 1)).T if turned else np.tile(between, (8, 1)))
    mask = np.zeros((1, MAX_PIXELS), np.uint8)
    mask[:, middle] = 1
    found = fit_mask(mask.T if turned else mask, (8, 4096) if turned else (4096, 8))
    np.testing.assert_array_equal(found.T if turned else found, [[0] * 4 + [1] * 4] * 4096)


def test_what_has_the_size_already_is_not_copied():
    mask = np.zeros((4, 5), np.uint8)
    found = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert fit_mask(mask, (4, 5)) is mask
    assert fit_boxes(found, (4, 5), (4, 5)) is found
    assert fit_boxes(found, (4, 5), (8, 8)).boxes.shape == (0, 4)


def test_boxes_are_cut_off_at_the_border():
    boxes = np.array([[-2, 1, 3, 9], [5, 0, 7, 2], [1, 1, 2, 2]], np.float32)
    kept = clip_boxes(Boxes(boxes, np.array([7, 8, 9])), (4, 5))
    np.testing.assert_array_equal(kept.boxes, [[0, 1, 3, 4], [1, 1, 2, 2]])
    assert kept.labels.tolist() == [7, 9]
