"""Counter-based random numbers: one stream per sample, the same bits for any batch split, device and order.

A seed is an int64. Streams are derived by hashing counters into it (the finalizer of SplitMix64, Steele et al.,
OOPSLA 2014), so that draw ``j`` of a sample depends on its seed and on ``j`` alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_robust.errors import InputError

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)

Integers = TypeVar("Integers", Tensor, "np.ndarray[tuple[int, ...], np.dtype[np.int64]]")


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _hash(state: Integers) -> Integers:
    """SplitMix64 finalizer on int64 with wrap-around; right shifts are made logical by a mask.

    Works in place on arrays, so it is given new ones only.
    """
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, None), strict=True):
        high = state >> shift
        high &= (1 << (64 - shift)) - 1
        state ^= high
        if multiplier is not None:
            state *= _signed(multiplier)
    return state


def _counter(part: int | str) -> int:
    return zlib.crc32(part.encode()) if isinstance(part, str) else part


def derive(seed: Integers, *path: int | str | Integers) -> Integers:
    """Derive new seeds by hashing a path of counters and names into old ones.

    Args:
        seed: int64 seeds, any shape.
        path: integers, names, or int64 arrays that broadcast against ``seed``.

    Returns:
        int64 seeds of the broadcast shape.

    Example:
        >>> derive(torch.tensor([0, 1]), "noise", 3).tolist() == [
        ...     derive(torch.tensor([s]), "noise", 3).item() for s in (0, 1)]
        True
    """
    with np.errstate(over="ignore"):
        state = _hash(seed + _signed(_GOLDEN))
        for part in path:
            step = _signed(_counter(part) * _GOLDEN) if isinstance(part, int | str) else _hash(part + _signed(_GOLDEN))
            state = state ^ step
            state += _signed(_GOLDEN)
            state = _hash(state)
    return state


def derive_int(seed: int, *path: int | str) -> int:
    """:func:`derive` for one Python integer, as a non-negative 63-bit number that any generator takes."""
    return int(derive(torch.tensor([_signed(seed)]), *path).item()) & ((1 << 63) - 1)


def uniform(seeds: Tensor, shape: tuple[int, ...], *path: int | str) -> Tensor:
    """Uniform numbers in [0, 1), float32 with 24 random bits.

    Args:
        seeds: int64, shape (B,).
        shape: shape of one sample's draw.
        path: names the stream.

    Returns:
        float32 tensor of shape (B, *shape) on the device of ``seeds``.
    """
    bits = _draw(seeds, math.prod(shape), path)
    return (((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24).reshape(len(seeds), *shape)


def normal(seeds: Tensor, shape: tuple[int, ...], *path: int | str) -> Tensor:
    """Standard normal numbers by the Box-Muller transform; arguments as in :func:`uniform`."""
    radius = uniform(seeds, shape, *path, "radius")
    angle = uniform(seeds, shape, *path, "angle")
    return torch.sqrt(-2.0 * torch.log1p(-radius)) * torch.cos(2.0 * math.pi * angle)


def integers(seeds: Tensor, shape: tuple[int, ...], high: int, *path: int | str) -> Tensor:
    """Integers in [0, high), int64; ``high`` at most 2**31. Arguments as in :func:`uniform`."""
    bits = _draw(seeds, math.prod(shape), path)
    return ((((bits >> 32) & 0x7FFFFFFF) * high) >> 31).reshape(len(seeds), *shape)


def _draw(seeds: Tensor, count: int, path: tuple[int | str, ...]) -> Tensor:
    keys = derive(seeds, *path)[:, None]
    return _hash(keys + torch.arange(1, count + 1, device=seeds.device) * _signed(_GOLDEN))


def per_image(image: Tensor, seeds: Tensor | None) -> Tensor:
    """Return one seed per image; without seeds, from the position in the batch.

    Args:
        image: shape (B, ...).
        seeds: int64, shape (B,), or None.

    Returns:
        int64, shape (B,), on the image's device.

    Raises:
        InputError: if there is not one int64 per image.
    """
    if seeds is None:
        return derive(torch.arange(len(image), device=image.device))
    if not isinstance(seeds, Tensor) or seeds.dtype != torch.int64 or seeds.shape != (len(image),):
        seen = (
            f"a {seeds.dtype} tensor of shape {tuple(seeds.shape)}"
            if isinstance(seeds, Tensor)
            else f"of type {type(seeds).__name__}"
        )
        raise InputError(f"seeds is {seen}: give one int64 per image, a tensor of shape ({len(image)},).")
    return seeds.to(image.device)


def of_content(image: Tensor, *path: int | str) -> Tensor:
    """Derive one seed per image from its pixel values: the same image has the same seed wherever it stands.

    Args:
        image: floats, shape (B, ...); hashed as float32.
        path: names the stream.

    Returns:
        int64, shape (B,).
    """
    bits = image.detach().float().flatten(1).contiguous().view(torch.int32).to(torch.int64)
    weights = _hash(torch.arange(1, bits.shape[1] + 1, device=image.device) * _signed(_GOLDEN)) | 1
    return derive((bits * weights).sum(dim=1), *path)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of the CPU and of a device, and put their states back on leaving.

    For what draws from them: Kornia, dropout.

    Args:
        seed: of both.
        device: where the computation runs.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
