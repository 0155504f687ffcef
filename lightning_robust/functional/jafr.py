"""Frequency bias of a loss's input gradient, after the released code of JaFR (IJCAI 2022, arXiv 2205.04533).

Every function reduces to one number that is large when the gradient is dominated by low frequencies. Half-precision
input is computed in float32, and autocast is switched off: the fast Fourier transform knows no bfloat16.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_robust.errors import InputError

BiasVariant: TypeAlias = Literal["released", "ratio"]
BiasReduction: TypeAlias = Literal["sum", "sumlog", "product"]
Direction: TypeAlias = Literal["low", "high"]

# One constant serves as floor of the spectrum and as offset of the exponents, as in the released code.
_FLOOR = 1e-5
# Radius, in units of the Nyquist frequency, that parts low from high in the `ratio` variant.
_SPLIT = 0.5


def jacobian_spectrum(gradient: Tensor) -> Tensor:
    """Mean modulus of the gradient's one-sided spectrum; negative vertical frequencies are left out, as released.

    Args:
        gradient: derivative of the batch's loss with respect to its images, shape (B, C, H, W).

    Returns:
        Spectrum of shape (H // 2 + 1, W // 2 + 1), zero frequency first, float32 for half-precision input.

    Raises:
        InputError: if the gradient is not a batch of floating-point images of at least 2 x 2 pixels.
    """
    if gradient.ndim != 4 or not gradient.is_floating_point() or min(gradient.shape[-2:]) < 2:
        raise InputError(
            f"The gradient is a {gradient.dtype} tensor of shape {tuple(gradient.shape)}: give the derivative of the "
            "loss with respect to a float batch of shape (B, C, H, W) with H and W of at least 2."
        )
    if gradient.dtype in (torch.float16, torch.bfloat16):
        gradient = gradient.float()
    with torch.autocast(gradient.device.type, enabled=False):
        modulus: Tensor = torch.fft.rfft2(gradient).abs().mean(dim=(0, 1))
    return modulus[: gradient.shape[-2] // 2 + 1]


def spectrum_frequency_bias(
    spectrum: Tensor,
    *,
    variant: BiasVariant = "released",
    reduction: BiasReduction = "sum",
    max_power: float = 1.0,
    temperature: float = 1.0,
    ignore_first_basis: bool = False,
    direction: Direction = "low",
) -> Tensor:
    """Bias value of a spectrum; a separate step so that processes can average the spectrum before it.

    ``released``: with L = log(spectrum + 1e-5) and exponents p that fall linearly from ``max_power`` at zero frequency
    to ``-max_power`` at Nyquist (plus 1e-5), every row has the tilt ``sum_v p_v L[u, v]`` and every column
    ``sum_u p_u L[u, v]``. ``sum`` is the log-sum-exp of all tilts minus log(temperature), ``sumlog`` their sum, and
    ``product`` their sum minus log(temperature). The released code knows square images only; exponents of their own
    length for rows and columns are our extension.

    ``ratio`` (ours): log of the mean spectrum within half the Nyquist radius, minus the log of the mean outside.

    Args:
        spectrum: of :func:`jacobian_spectrum`, shape (H // 2 + 1, W // 2 + 1).
        variant: ``released``, or ``ratio``, which takes no other option than ``ignore_first_basis`` and ``direction``.
        reduction: how the tilts become one number; the released scripts use ``sum``.
        max_power: exponent at zero frequency.
        temperature: positive divisor inside the logarithm.
        ignore_first_basis: in ``released``, put zero in the place of the spectrum at zero frequency (which leaves the
            floor 1e-5 there, as the released code does); in ``ratio``, leave that frequency out of the mean.
        direction: ``low`` is large for low-frequency spectra, ``high`` for high-frequency ones. The released code has
            no such switch; ``high`` is its ``max_power`` with the sign changed.

    Returns:
        Scalar.

    Raises:
        InputError: if an option is unknown or has no meaning for the variant.
    """
    check_bias_options(variant, reduction, max_power, temperature, direction)
    if spectrum.dtype in (torch.float16, torch.bfloat16):
        spectrum = spectrum.float()
    with torch.autocast(spectrum.device.type, enabled=False):
        if variant == "ratio":
            bias = _ratio(spectrum, ignore_first_basis)
            return bias if direction == "low" else -bias
        power = max_power if direction == "low" else -max_power
        return _tilted(spectrum, reduction, power, temperature, ignore_first_basis)


def jacobian_frequency_bias(
    gradient: Tensor,
    *,
    variant: BiasVariant = "released",
    reduction: BiasReduction = "sum",
    max_power: float = 1.0,
    temperature: float = 1.0,
    ignore_first_basis: bool = False,
    direction: Direction = "low",
) -> Tensor:
    """Bias value of an input gradient: :func:`spectrum_frequency_bias` of :func:`jacobian_spectrum`.

    Args:
        gradient: derivative of the batch-mean loss with respect to images in [0, 1], shape (B, C, H, W). Taken with
            ``create_graph=True``, the value can be trained.
        variant: see :func:`spectrum_frequency_bias`, as for the options below.
        reduction: how the tilts become one number.
        max_power: exponent at zero frequency.
        temperature: positive divisor inside the logarithm.
        ignore_first_basis: take the zero frequency out.
        direction: ``low`` or ``high``.

    Returns:
        Scalar, differentiable.

    Raises:
        InputError: if the gradient is not a batch of images or an option is unknown.

    Example:
        >>> smooth = torch.ones(1, 1, 8, 8)
        >>> rough = (torch.arange(8) % 2 * 2.0 - 1).expand(1, 1, 8, 8)
        >>> bool(jacobian_frequency_bias(smooth) > jacobian_frequency_bias(rough))
        True
    """
    return spectrum_frequency_bias(
        jacobian_spectrum(gradient),
        variant=variant,
        reduction=reduction,
        max_power=max_power,
        temperature=temperature,
        ignore_first_basis=ignore_first_basis,
        direction=direction,
    )


def check_bias_options(variant: str, reduction: str, max_power: float, temperature: float, direction: str) -> None:
    """Refuse options that :func:`spectrum_frequency_bias` does not know, before any training step runs.

    Raises:
        InputError: naming the option and its choices.
    """
    choices = {
        "variant": (variant, ("released", "ratio")),
        "reduction": (reduction, ("sum", "sumlog", "product")),
        "direction": (direction, ("low", "high")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, allowed))}.")
    if not temperature > 0:
        raise InputError(f"temperature={temperature} stands inside a logarithm: give a positive number.")
    if variant == "ratio" and (reduction, max_power, temperature) != ("sum", 1.0, 1.0):
        raise InputError(
            "variant='ratio' has no reduction, max_power or temperature: leave them out, or use variant='released'."
        )


def _tilted(
    spectrum: Tensor, reduction: BiasReduction, power: float, temperature: float, ignore_first_basis: bool
) -> Tensor:
    if ignore_first_basis:
        spectrum = spectrum * _keep_all_but_first(spectrum)
    logarithm = torch.log(spectrum + _FLOOR)
    rows = logarithm @ _exponents(spectrum, 1, power)
    columns = _exponents(spectrum, 0, power) @ logarithm
    tilts = torch.cat([rows, columns])
    if reduction == "sum":
        # the released code forms products of powers, which overflow float32; this is their logarithm
        return torch.logsumexp(tilts, dim=0) - math.log(temperature)
    return tilts.sum() - (math.log(temperature) if reduction == "product" else 0.0)


def _ratio(spectrum: Tensor, ignore_first_basis: bool) -> Tensor:
    vertical, horizontal = (
        torch.linspace(0, 1, size, dtype=spectrum.dtype, device=spectrum.device) for size in spectrum.shape
    )
    low = (vertical[:, None].square() + horizontal.square() <= _SPLIT**2).to(spectrum.dtype)
    high = 1 - low
    if ignore_first_basis:
        low = low * _keep_all_but_first(spectrum)
    low_mean, high_mean = ((spectrum * mask).sum() / mask.sum().clamp(min=1) for mask in (low, high))
    return torch.log(low_mean + _FLOOR) - torch.log(high_mean + _FLOOR)


def _exponents(spectrum: Tensor, dim: int, power: float) -> Tensor:
    return torch.linspace(power, -power, spectrum.shape[dim], dtype=spectrum.dtype, device=spectrum.device) + _FLOOR


def _keep_all_but_first(spectrum: Tensor) -> Tensor:
    mask = torch.ones_like(spectrum)
    mask[0, 0] = 0
    return mask
