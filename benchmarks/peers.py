"""What the speed benchmarks compare with: pooling by FFT as its paper describes it, and JaFR by a second forward."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.functional import jacobian_frequency_bias


def asap_pool_by_fft(x: Tensor) -> Tensor:
    """Halve maps: transform, shift, root of a Hamming window, crop, shift back, inverse transform, real part.

    The released code with two of its costs taken out: the shifts leave batch and channels alone, and the window is
    kept on the device.
    """
    height, width = x.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(x, norm="forward"), dim=(-2, -1))
    spectrum = spectrum * _window(height, width, x.dtype, x.device)
    rows, columns = (slice(size // 4, size * 3 // 4) for size in (height, width))
    kept = torch.fft.ifftshift(spectrum[..., rows, columns], dim=(-2, -1))
    return torch.fft.ifft2(kept, norm="forward").real


def loss_with_second_forward(net: nn.Module, image: Tensor, target: Tensor, weight: float) -> Tensor:
    """Training loss with JaFR as the released code forms it: the term's gradient has a forward pass of its own."""
    loss = F.cross_entropy(net(image), target)
    leaf = image.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(leaf), target), leaf, create_graph=True)
    return loss - weight * jacobian_frequency_bias(gradient)


@lru_cache
def _window(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows, columns = (
        torch.hamming_window(size, periodic=False, dtype=dtype, device=device).sqrt() for size in (height, width)
    )
    return rows[:, None] * columns
