"""Image and target are found in batches of any shape."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_robust.batches import BatchAdapter
from lightning_robust.errors import InputError
from lightning_robust.images import ImageSpec

IMAGE, TARGET = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])


class Named(NamedTuple):
    image: Tensor
    label: Tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    name: str
    img: Tensor
    y: Tensor


@dataclasses.dataclass
class Loose:
    pixels: Any = None


BATCHES = {
    "tensor": (IMAGE, None),
    "tuple": ((IMAGE, TARGET), TARGET),
    "list": ([IMAGE, TARGET, "extra"], TARGET),
    "dict": ({"id": 7, "jpg": IMAGE, "cls": TARGET}, TARGET),
    "namedtuple": (Named(IMAGE, TARGET), TARGET),
    "dataclass": (Frozen("a", IMAGE, TARGET), TARGET),
    "nested tuple": (((IMAGE, "meta"), TARGET), TARGET),
    "nested dict": ({"input": {"image": IMAGE}, "target": TARGET}, TARGET),
    "dict in a list": ([{"image": IMAGE, "label": TARGET}], TARGET),
    "list of images": ([[IMAGE[0], IMAGE[1, :, :2]], [1, 2]], [1, 2]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_found_and_written_without_touching_the_batch(name):
    batch, target = BATCHES[name]
    adapter = BatchAdapter(ImageSpec())
    image, found = adapter.read(batch)
    assert found is target or found == target
    new = [one + 1 for one in image] if isinstance(image, list) else image + 1
    written = adapter.write(batch, new)
    assert type(written) is type(batch)
    again, kept = adapter.read(written)
    assert again is new
    assert kept is found or kept == found
    assert adapter.read(batch)[0] is image


def test_a_target_is_written_too():
    assert BatchAdapter(ImageSpec()).write((IMAGE, TARGET), IMAGE, TARGET + 1)[1].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("key", "batch"),
    [
        (1, (TARGET, IMAGE)),
        ("scan", {"scan": IMAGE, "image": IMAGE * 0}),
        (["views", 1], {"views": [TARGET, IMAGE]}),
        ("pixels", Loose(IMAGE)),
    ],
)
def test_named_keys(key, batch):
    adapter = BatchAdapter(ImageSpec(image_key=key))
    assert adapter.read(batch)[0] is IMAGE
    assert torch.equal(adapter.read(adapter.write(batch, IMAGE + 1))[0], IMAGE + 1)


def test_what_was_found_and_what_to_write_is_said():
    with pytest.raises(InputError, match=r"dict with 'text': float32 tensor \(2, 3\).*image_key"):
        BatchAdapter(ImageSpec()).read({"text": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="leads nowhere"):
        BatchAdapter(ImageSpec(image_key="picture")).read({"image": IMAGE})
