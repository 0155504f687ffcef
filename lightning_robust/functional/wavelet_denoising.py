"""Wavelet shrinkage of images as the pixel deflection paper applies it, and as scikit-image does today."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_robust.functional._wavelet_banks import FilterBank, constant_matrix, product
from lightning_robust.functional._wavelet_haar import is_plain
from lightning_robust.functional._wavelet_noise import finest_diagonal
from lightning_robust.functional._wavelet_options import (
    Method,
    Shrinkage,
    Sigma,
    SigmaScale,
    check_denoising,
    read_images,
    read_sigma,
)
from lightning_robust.functional._wavelet_shrinkage import Noise, removed_noise
from lightning_robust.functional.thresholds import estimate_noise
from lightning_robust.functional.wavelets import max_level

# A slab's buffers should stay in the cache; smaller slabs pay more for the calls.
_SLAB_BYTES = 5 * 2**19


def wavelet_denoise(
    image: Tensor,
    sigma: Sigma = 0.04,
    wavelet: str = "db1",
    method: Method = "BayesShrink",
    *,
    mode: Shrinkage = "soft",
    sigma_scale: SigmaScale = "channel",
    ycbcr: bool | None = None,
    levels: int | None = None,
) -> Tensor:
    """Remove noise by shrinking wavelet coefficients, channel by channel, in YCbCr for color images.

    What ``sigma`` means has changed since the paper. ``sigma_scale="channel"``, the default, is scikit-image of 2018:
    every channel is taken to [0, 1] by its own least and largest value in the image, and ``sigma`` is meant there; the
    scaled channels and the result are clipped to [0, 1]. ``"rgb"`` is scikit-image from 0.18 on
    (``rescale_sigma=True``): ``sigma`` is meant on the image as given, and nothing is clipped. The released defense
    used the first, which smooths luma about 1.5 times as much.

    The gradient is the true one, through the thresholds and the ranges too; it exists twice almost everywhere. The
    result for an image does not depend on its neighbors in the batch. An image too small for a level gets one level,
    as in scikit-image. A channel of a single value is left as it is.

    Args:
        image: (B, C, H, W) or (C, H, W), floating in [0, 1]. Half precision is computed in float32. On the CPU every
            eighth row is checked for its range and for NaN; on other devices, where that would wait for the device,
            none.
        sigma: standard deviation of the noise: a number, a list with one per channel, a tensor (C,), (B, 1) or (B, C),
            or None to estimate it for each channel from the finest diagonal band. In YCbCr, numbers per channel belong
            to R, G and B with ``"rgb"`` and to Y, Cb and Cr with ``"channel"``.
        wavelet: name of a discrete wavelet of PyWavelets. ``"db1"`` has a fast path.
        method: how the threshold of a band comes from ``sigma``; see :mod:`lightning_robust.functional.thresholds`.
        mode: soft or hard thresholding.
        sigma_scale: what ``sigma`` refers to.
        ycbcr: work in YCbCr (ITU-R BT.601); None does for three channels.
        levels: number of wavelet levels; None takes three less than the most, at least one, as scikit-image does.

    Returns:
        The denoised image, of the shape and type of ``image``.

    Raises:
        InputError: for a wrong shape, type, range or option.

    Source: equation 6 and section 6 of "Deflecting Adversarial Attacks with Pixel Deflection" (CVPR 2018), and
    ``denoise_wavelet`` of scikit-image 0.13 to 0.15 (``"channel"``) and 0.26 (``"rgb"``).

    Example:
        >>> checked = (torch.arange(64) % 2 * 0.02 + 0.5).view(1, 1, 8, 8)
        >>> checked[..., :4] -= 0.4
        >>> wavelet_denoise(checked)[0, 0, 0].mul(100).round().tolist()
        [11.0, 11.0, 11.0, 11.0, 51.0, 51.0, 51.0, 51.0]
    """
    bank = check_denoising(
        sigma=sigma, wavelet=wavelet, method=method, mode=mode, sigma_scale=sigma_scale, levels=levels
    )
    batch, in_ycbcr = read_images(image, ycbcr)
    count = max(max_level((batch.shape[-2], batch.shape[-1]), wavelet) - 3, 1) if levels is None else levels
    given = None if sigma is None else read_sigma(sigma, batch).expand(batch.shape[:2])
    plan = _Plan(bank, method, mode, sigma_scale, in_ycbcr, count)
    with torch.autocast(batch.device.type, enabled=False):
        if is_plain(batch) and (given is None or is_plain(given)):
            result = _by_slabs(batch, given, plan)
        else:
            result = _denoised(batch, given, plan)
    result = result.to(image.dtype)
    return result if image.ndim == 4 else result.squeeze(0)


@dataclasses.dataclass(frozen=True)
class _Plan:
    bank: FilterBank
    method: Method
    mode: Shrinkage
    sigma_scale: SigmaScale
    in_ycbcr: bool
    levels: int


def _by_slabs(batch: Tensor, sigma: Tensor | None, plan: _Plan) -> Tensor:
    """Denoise a few images at a time on the CPU: a batch at once pays twice, for memory that has left the cache."""
    size = max(1, _SLAB_BYTES * torch.get_num_threads() // max(batch[:1].nbytes, 1))
    if batch.device.type != "cpu" or len(batch) <= size:
        return _denoised(batch, sigma, plan)
    result = torch.empty_like(batch, memory_format=torch.contiguous_format)
    for start in range(0, len(batch), size):
        slab = slice(start, start + size)
        result[slab] = _denoised(batch[slab], None if sigma is None else sigma[slab], plan)
    return result


def _denoised(batch: Tensor, sigma: Tensor | None, plan: _Plan) -> Tensor:
    colored = _recolored(batch, "ycbcr") if plan.in_ycbcr else batch
    is_scaled = plan.in_ycbcr or plan.sigma_scale == "channel"
    bounds = (colored.amin((-2, -1)), colored.amax((-2, -1))) if is_scaled else None
    noise = _noise(colored, sigma, plan, bounds)
    planes = colored.reshape(-1, *colored.shape[-2:])
    removed = removed_noise(planes, noise, plan.bank, method=plan.method, mode=plan.mode, levels=plan.levels)
    denoised = _subtracted(colored, removed.reshape(colored.shape))
    clips = plan.sigma_scale == "channel"
    if clips and bounds is not None:
        denoised = _clamped(denoised, *bounds)
    result = _recolored(denoised, "rgb") if plan.in_ycbcr else denoised
    if clips:
        # what is not plain is watched by autograd or a compiler; the result is never the caller's own tensor
        result = result.clamp_(0, 1) if is_plain(result) else result.clamp(0, 1)
    return result


def _noise(colored: Tensor, sigma: Tensor | None, plan: _Plan, bounds: tuple[Tensor, Tensor] | None) -> Noise:
    """Noise of each plane in the units of ``colored``, whatever the scale that sigma was given in."""
    unit = colored.new_ones(colored.shape[:2]) if bounds is None else bounds[1] - bounds[0]
    if sigma is None:
        level = estimate_noise(finest_diagonal(colored.reshape(-1, *colored.shape[-2:]), plan.bank))
        return Noise(level, unit.reshape(-1))
    if plan.sigma_scale == "channel":
        sigma = sigma * unit
    elif plan.in_ycbcr:
        gains = constant_matrix("ycbcr", "", colored.dtype, colored.device).square()
        sigma = product(sigma.square(), gains.T).sqrt()
    return Noise(sigma.reshape(-1), unit.reshape(-1))


def _recolored(image: Tensor, kind: str) -> Tensor:
    matrix = constant_matrix(kind, "", image.dtype, image.device)
    return product(matrix, image.flatten(-2)).view_as(image)


def _subtracted(image: Tensor, removed: Tensor) -> Tensor:
    if is_plain(image) and is_plain(removed):
        return torch.sub(image, removed, out=removed)
    return image - removed


def _clamped(image: Tensor, low: Tensor, high: Tensor) -> Tensor:
    rows = (*image.shape[:2], 1, image.shape[-1])
    # written out along a row: torch clamps by broadcast bounds one value at a time
    low, high = (bound[..., None, None].expand(rows).contiguous() for bound in (low, high))
    return torch.clamp(image, low, high, out=image) if is_plain(image) and is_plain(low) else image.clamp(low, high)
