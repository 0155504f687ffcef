"""The discrete Laplacian, center minus neighbors, with its adjoint."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_robust.functional._sharpening_planes import Padding, filter_planes, suits_opencv

Neighbors: TypeAlias = Literal[4, 8]


def laplacian(image: Tensor, *, neighbors: Neighbors, padding: Padding) -> Tensor:
    """Laplacian of every plane of a floating (B, C, H, W) image, differentiable.

    Exact on integer-valued floats. With ``replicate`` and ``zeros`` padding the operator is symmetric, so that its
    backward pass is the operator itself, at any order.
    """
    if padding == "reflect" and torch.is_grad_enabled() and image.requires_grad:
        return _by_slices(image, neighbors, padding)
    result: Tensor = _Laplacian.apply(image, neighbors, padding)
    return result


def laplacian_kernel(neighbors: Neighbors) -> Tensor:
    """The 3x3 stencil of the Laplacian, float64."""
    kernel = torch.full((3, 3), -1.0, dtype=torch.float64)
    if neighbors == 4:
        kernel[::2, ::2] = 0
    kernel[1, 1] = neighbors
    return kernel


class _Laplacian(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, neighbors: Neighbors, padding: Padding) -> Tensor:
        if suits_opencv(image):
            return filter_planes(image, laplacian_kernel(neighbors), padding=padding)
        return _by_slices(image, neighbors, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Neighbors, Padding], output: Tensor) -> None:
        ctx.options = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        neighbors, padding = ctx.options
        return laplacian(grad_outputs[0], neighbors=neighbors, padding=padding), None, None


def _by_slices(image: Tensor, neighbors: Neighbors, padding: Padding) -> Tensor:
    if neighbors == 4:
        return 4 * image - _beside(image, -1, padding) - _beside(image, -2, padding)
    rows = image + _beside(image, -1, padding)
    return 9 * image - rows - _beside(rows, -2, padding)


def _beside(image: Tensor, dim: int, padding: Padding) -> Tensor:
    """Sum of the two neighbors along one axis."""
    size = image.shape[dim]
    first, last = image.narrow(dim, 0, 1), image.narrow(dim, size - 1, 1)
    if padding == "reflect":
        first, last = image.narrow(dim, 1, 1), image.narrow(dim, size - 2, 1)
    elif padding == "zeros":
        first, last = torch.zeros_like(first), torch.zeros_like(last)
    before = torch.cat((first, image.narrow(dim, 0, size - 1)), dim)
    after = torch.cat((image.narrow(dim, 1, size - 1), last), dim)
    return before + after
