"""Normalization and the check of a batch's range."""

from __future__ import annotations

import jsonargparse
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_robust.errors import InputError
from lightning_robust.images import ImageSpec, Normalization, check_unit_range

IMAGE = torch.rand(2, 3, 4, 4)


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=4),
    st.floats(0.05, 2),
)
def test_normalization_is_undone(mean, std):
    normalization = Normalization(tuple(mean), (std,) * len(mean))
    image = torch.rand(2, len(mean), 3, 3)
    torch.testing.assert_close(normalization.denormalize(normalization.normalize(image)), image, atol=1e-5, rtol=0)


def test_normalization_is_that_of_the_formula():
    found = Normalization((0.5, 0.1), (0.25, 2.0)).normalize(torch.ones(1, 2, 1, 1))
    assert found.flatten().tolist() == pytest.approx([2.0, 0.45])


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.0,)), ((0.5, 0.5), (1.0,)), ((), ())])
def test_impossible_normalizations(mean, std):
    with pytest.raises(InputError, match="one mean and one positive std"):
        Normalization(mean, std)
    with pytest.raises(InputError):
        ImageSpec(mean=(0.5,))


def test_specs_that_say_the_same_are_equal():
    listed = ImageSpec(mean=[0.5, 0, 1], std=[1, 1.0, 0.25], image_key="image")
    assert listed == ImageSpec(mean=(0.5, 0.0, 1.0), std=(1.0, 1.0, 0.25), image_key="image")
    assert (listed.mean, listed.std) == ((0.5, 0.0, 1.0), (1.0, 1.0, 0.25))
    assert {type(value) for value in (*listed.mean, *listed.std)} == {float}
    assert listed != ImageSpec(mean=(0.5, 0.0, 0.9), std=(1.0, 1.0, 0.25), image_key="image")


def test_a_spec_from_yaml_is_equal_to_one_from_code():
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(ImageSpec, "spec")
    configured = parser.parse_string("spec: {mean: [0.5, 0.25, 1], std: [1, 0.5, 2]}")
    spec = parser.instantiate_classes(configured).spec
    assert spec == ImageSpec((0.5, 0.25, 1.0), (1.0, 0.5, 2.0))


def test_channels_must_fit():
    with pytest.raises(InputError, match="3 channels and the normalization 1"):
        Normalization((0.5,), (0.5,)).normalize(IMAGE)


@pytest.mark.parametrize(
    ("image", "spec", "message"),
    [
        (IMAGE * 255, ImageSpec(), "divide them by 255"),
        (Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).normalize(IMAGE), ImageSpec(), r"mean=\(0.485"),
        (IMAGE * 2 - 1, ImageSpec(), r"look normalized. Pass spec=ImageSpec"),
        (IMAGE * 9 - 4, ImageSpec(), "with the values you used"),
        (IMAGE, ImageSpec((0.5,) * 3, (3.0,) * 3), "correct mean and std"),
        (IMAGE * float("nan"), ImageSpec(), "NaN"),
    ],
)
def test_range_is_checked(image, spec, message):
    with pytest.raises(InputError, match=message):
        check_unit_range(image, spec, "the first train batch")


def test_images_in_the_box_pass():
    spec = ImageSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    check_unit_range(spec.from_unit(IMAGE), spec, "a batch")
    check_unit_range([IMAGE[0]], ImageSpec(), "a batch")
    check_unit_range((IMAGE * 255).to(torch.uint8), ImageSpec(), "a batch")
