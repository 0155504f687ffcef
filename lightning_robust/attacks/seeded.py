"""Calling functions of images that may or may not take one random seed per image."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

Transform: TypeAlias = Callable[..., Tensor]


def takes_seeds(function: Transform) -> bool:
    """Whether a function, or a module's forward pass, has an argument named ``seeds``."""
    try:
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):
        return False
    return "seeds" in parameters


def call_seeded(function: Transform, image: Tensor, seeds: Tensor | None) -> Tensor:
    """Call a function with the seeds, if there are any and it takes them."""
    return function(image, seeds=seeds) if seeds is not None and takes_seeds(function) else function(image)
