"""The pooling layers: equal to the functions, without state, and strict about their options."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_robust.errors import InputError
from lightning_robust.functional import frequency_pool2d, released_pool2d
from lightning_robust.nn import ASAPPool2d, FLCPool2d


def _image(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("layer", "window"), [(ASAPPool2d, "asap"), (FLCPool2d, "rect")])
@pytest.mark.parametrize(("stride", "target"), [(2, (5, 4)), ((2, 1), (5, 7)), (3, (3, 3))])
def test_centered_layers_equal_the_function(layer: type, window: str, stride: object, target: tuple[int, int]) -> None:
    x = _image(9, 7)
    torch.testing.assert_close(layer(stride)(x), frequency_pool2d(x, target, window=window))
    assert layer(stride)(x, (6, 6)).shape[-2:] == (6, 6)


@pytest.mark.parametrize("padding", ["none", "one", "large"])
def test_released_layers_equal_the_function(padding: str) -> None:
    x = _image(8, 12)
    layer = ASAPPool2d(variant="released", padding=padding)
    torch.testing.assert_close(layer(x), released_pool2d(x, window="asap", padding=padding))
    torch.testing.assert_close(FLCPool2d(variant="released")(x), released_pool2d(x, window="rect"))
    turned = ASAPPool2d(variant="released", transpose=True)(x)
    torch.testing.assert_close(turned, released_pool2d(x, window="asap").mT)


@pytest.mark.parametrize("layer", [ASAPPool2d(), FLCPool2d(variant="released"), ASAPPool2d((2, 1))])
def test_layers_hold_no_state(layer: nn.Module) -> None:
    x = _image(8, 8)
    y = layer(x)
    assert not layer.state_dict()
    assert not list(layer.buffers())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
    assert "variant=" in repr(layer)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ASAPPool2d(0), "at least 1"),
        (lambda: ASAPPool2d(variant="paper"), "centered, released"),
        (lambda: FLCPool2d(3, variant="released"), "only halves"),
        (lambda: ASAPPool2d(padding="one"), "released"),
        (lambda: ASAPPool2d(transpose=True), "released"),
        (lambda: ASAPPool2d(variant="released", padding="huge"), "none, one, large"),
        (lambda: ASAPPool2d(variant="released", padding="one", transpose=True), "without padding"),
        (lambda: FLCPool2d(variant="released")(_image(8, 8), 4), "one output size"),
    ],
)
def test_options_that_do_not_fit_are_named(build: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()  # type: ignore[operator]
