"""Thresholds of wavelet coefficients, how they are applied, and the estimate of the noise they come from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_robust.errors import InputError

# Upper quartile of the standard normal distribution: the median of |z| is this for standard normal z.
_NORMAL_QUARTILE = 0.6744897501960817


def soft_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """Move values toward zero by the threshold, and to zero where they do not reach it.

    Args:
        values: coefficients of any shape.
        threshold: at least 0; a number, or a tensor that broadcasts.

    Returns:
        ``sign(v) * max(|v| - T, 0)``, as ``pywt.threshold(..., "soft")``; differentiable twice in both arguments.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0).tolist()
        [-2.0, 0.0, 1.0]
    """
    return values - soft_residual(values, torch.as_tensor(threshold, dtype=values.dtype, device=values.device))


def hard_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """Set values below the threshold to zero and keep those that reach it.

    Args:
        values: coefficients of any shape.
        threshold: at least 0; a number, or a tensor that broadcasts. It gets no gradient.

    Returns:
        ``v`` where ``|v| >= T``, else 0, as ``pywt.threshold(..., "hard")``.
    """
    return torch.where(values.abs() >= threshold, values, 0.0)


def soft_residual(values: Tensor, threshold: Tensor) -> Tensor:
    """What :func:`soft_threshold` takes away: the values clamped to plus and minus the threshold."""
    return torch.clamp(values, -threshold, threshold)


def hard_residual(values: Tensor, threshold: Tensor) -> Tensor:
    """What :func:`hard_threshold` takes away: the values below the threshold."""
    return torch.where(values.abs() >= threshold, 0.0, values)


def bayes_shrink_threshold(details: Tensor, sigma: Tensor, *, floor: float | Tensor | None = None) -> Tensor:
    """Threshold of BayesShrink for each band: ``sigma^2 / sqrt(max(mean(d^2) - sigma^2, floor))``.

    A band that holds no more than the noise gets a threshold far above its coefficients and is zeroed. This is equation
    6 of the pixel deflection paper as scikit-image computes it.

    Args:
        details: bands (..., h, w), float32 or float64.
        sigma: standard deviation of the noise, broadcastable to the leading sizes (...).
        floor: least variance of the signal, likewise broadcastable; None takes the rounding unit of the dtype.

    Returns:
        Thresholds of shape (...), differentiable.

    Source: Chang, Yu and Vetterli, "Adaptive wavelet thresholding for image denoising and compression" (IEEE TIP 2000).
    """
    least = torch.as_tensor(
        torch.finfo(details.dtype).eps if floor is None else floor, dtype=details.dtype, device=details.device
    )
    if details.requires_grad and torch.is_grad_enabled():
        energy = details.square().mean((-2, -1))
    else:
        # in one pass; the norm's second derivative is undefined on a band of zeros
        energy = torch.linalg.vector_norm(details, dim=(-2, -1)).square() / (details.shape[-2] * details.shape[-1])
    variance = sigma.square()
    return variance / torch.maximum(energy - variance, least.clamp(min=torch.finfo(details.dtype).tiny)).sqrt()


def visu_shrink_threshold(pixels: int, sigma: Tensor) -> Tensor:
    """Universal threshold of VisuShrink, one for all bands: ``sigma * sqrt(2 ln N)``.

    Args:
        pixels: N, the pixels of one channel of the image.
        sigma: standard deviation of the noise, any shape.

    Returns:
        Thresholds of the shape of ``sigma``.

    Source: Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage" (Biometrika 1994). The pixel
    deflection paper prints the same and calls sigma the variance; it is the standard deviation.
    """
    return sigma * math.sqrt(2 * math.log(pixels))


def sure_shrink_threshold(details: Tensor, sigma: Tensor) -> Tensor:
    """Threshold of SureShrink for each band: the magnitude with the least unbiased estimate of the risk.

    With n coefficients and y = |d| / sigma sorted, ``risk(y_k) = n - 2 k + sum_{i <= k} y_i^2 + (n - k) y_k^2``. A band
    whose energy hardly exceeds the noise gets the universal threshold of its n coefficients, which is also the cap.

    Args:
        details: bands (..., h, w), float32 or float64.
        sigma: standard deviation of the noise, broadcastable to the leading sizes (...).

    Returns:
        Thresholds of shape (...), differentiable almost everywhere: a small change moves the chosen magnitude, not the
        choice.

    Source: Donoho and Johnstone, "Adapting to unknown smoothness via wavelet shrinkage" (JASA 1995), the hybrid scheme.
    """
    count = details.shape[-2] * details.shape[-1]
    sigma = sigma.expand(details.shape[:-2])
    scale = torch.where(sigma > 0, sigma, 1.0).detach()
    magnitude = details.abs().flatten(-2)
    ordered, order = (magnitude.detach() / scale[..., None]).sort(dim=-1)
    energy = ordered.square()
    rank = torch.arange(1, count + 1, dtype=ordered.dtype, device=ordered.device)
    risk = count - 2 * rank + energy.cumsum(-1) + (count - rank) * energy
    best = magnitude.gather(-1, order.gather(-1, risk.argmin(-1, keepdim=True))).squeeze(-1)
    universal = sigma * math.sqrt(2 * math.log(count))
    is_sparse = energy.mean(-1) - 1 <= math.log2(count) ** 1.5 / math.sqrt(count)
    return torch.where(is_sparse, universal, torch.minimum(best, universal))


def estimate_noise(diagonal: Tensor) -> Tensor:
    """Standard deviation of the noise from the finest diagonal band: median magnitude over 0.6745.

    Exact zeros are left out, as in scikit-image: they come from flat regions and repeated edges, not from noise.

    Args:
        diagonal: bands (..., h, w).

    Returns:
        Estimates of shape (...), 0 for a band of zeros; differentiable.

    Raises:
        InputError: if the bands are empty.
    """
    if diagonal.ndim < 2 or min(diagonal.shape[-2:]) < 1:
        raise InputError(f"diagonal has shape {tuple(diagonal.shape)}: give bands of shape (..., h, w).")
    magnitude = diagonal.abs().flatten(-2).sort(dim=-1).values
    zeros = (magnitude == 0).sum(-1, keepdim=True)
    last = magnitude.shape[-1] - 1
    lower = ((zeros + last) // 2).clamp(max=last)
    upper = ((zeros + last + 1) // 2).clamp(max=last)
    middle = magnitude.gather(-1, lower) + magnitude.gather(-1, upper)
    return middle.squeeze(-1) / (2 * _NORMAL_QUARTILE)
