"""Pixel deflection and wavelet denoising for benchmarks/gpu.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from lightning_robust.functional import pixel_deflection, wavelet_denoise

Call = Callable[[], Any]


def rows(device: torch.device, *, quick: bool) -> Iterator[tuple[str, Call, int, Call]]:
    """Yield name, call, the least bytes it moves (the batch in and out), and a copy of the batch as its peer."""
    batch, size, counts = (2, 32, (100,)) if quick else (32, 224, (100, 1_000, 10_000))
    image = torch.rand(batch, 3, size, size, device=device)
    maps, seeds = torch.rand(batch, size, size, device=device), torch.arange(batch, device=device)
    target = torch.empty_like(image)
    shape, floor, copy = "x".join(map(str, image.shape)), 2 * image.nbytes, partial(target.copy_, image)
    for count in counts:
        for named, found in (("", None), (", with a map", maps)):
            run = partial(pixel_deflection, image, count, 10, found, seeds=seeds)
            yield f"pixel deflection, K {count:,}{named}, {shape}", torch.no_grad()(run), floor, copy
    for wavelet in ("db1", "bior2.2"):
        run = partial(wavelet_denoise, image, wavelet=wavelet)
        yield f"wavelet denoising, {wavelet}, {shape}", torch.no_grad()(run), floor, copy
