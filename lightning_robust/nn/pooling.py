"""Alias-free pooling layers without parameters and without buffers."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn

from lightning_robust.errors import InputError
from lightning_robust.functional.pooling import frequency_pool2d, released_pool2d

Variant: TypeAlias = Literal["centered", "released"]
_VARIANTS = ("centered", "released")
_PADDINGS = ("none", "one", "large")


class FLCPool2d(nn.Module):
    """Downsample maps by cutting off the frequencies that the smaller grid cannot hold.

    Args:
        stride: reduction, one value or (height, width). The result has ceil(N / stride) samples per axis, as a
            convolution with kernel 3, stride 2 and padding 1.
        variant: ``"centered"`` (default) is real and works at every size; ``"released"`` is the released code with its
            quirks, for stride 2 only. They differ by a faint checkerboard where N is divisible by 4, and greatly at
            14 x 14, where the released code shifts the spectrum.

    Raises:
        InputError: if the variant is unknown, a stride is below 1, or the released variant gets another stride than 2.

    Source: "FrequencyLowCut Pooling" (arXiv 2204.00491) and its released ``FLC_Pooling``.
    """

    def __init__(self, stride: int | tuple[int, int] = 2, *, variant: Variant = "centered") -> None:
        super().__init__()
        self.stride = _check_stride(stride, variant)
        self.variant = variant

    def forward(self, x: Tensor, output_size: int | tuple[int, int] | None = None) -> Tensor:
        """Pool maps of shape (..., H, W), to ``output_size`` where one is given."""
        if self.variant == "released":
            _refuse_size(output_size)
            return released_pool2d(x, window="rect")
        return frequency_pool2d(x, _target(x, self.stride, output_size), window="rect")

    def extra_repr(self) -> str:
        """Show stride and variant."""
        return f"stride={self.stride}, variant={self.variant}"


class ASAPPool2d(nn.Module):
    """Downsample maps as ``FLCPool2d``, with the kept frequencies weighted by the root of a Hamming window.

    Args:
        stride: reduction, one value or (height, width). The result has ceil(N / stride) samples per axis.
        variant: ``"centered"`` (default) centers the window on frequency 0, is real and works at every size;
            ``"released"`` is the released code with its quirks, for stride 2 only.
        padding: released variant only: ``"none"``, ``"one"`` (the class ``ASAP_padding_one``) or ``"large"``
            (``ASAP_padding_large``).
        transpose: released variant without padding only: return transposed maps, as the released class ``ASAP`` does
            by default. Off here, since a network then sees mirrored features after every layer.

    Raises:
        InputError: if an option is unknown or belongs to the other variant, or the stride does not fit.

    Source: "ASAP: Aliasing and Spectral Artifact free Pooling" (arXiv 2307.09804) and its released ``asap.py``.
    """

    def __init__(
        self,
        stride: int | tuple[int, int] = 2,
        *,
        variant: Variant = "centered",
        padding: Literal["none", "one", "large"] = "none",
        transpose: bool = False,
    ) -> None:
        super().__init__()
        self.stride = _check_stride(stride, variant)
        if padding not in _PADDINGS:
            raise InputError(f"padding={padding!r} is unknown: choose one of {', '.join(_PADDINGS)}.")
        if variant == "centered" and (padding != "none" or transpose):
            raise InputError(
                'padding and transpose are quirks of the released code: give variant="released" with them.'
            )
        if transpose and padding != "none":
            raise InputError(
                f"The released code transposes only without padding: padding={padding!r} has no such form."
            )
        self.variant = variant
        self.padding = padding
        self.transpose = transpose

    def forward(self, x: Tensor, output_size: int | tuple[int, int] | None = None) -> Tensor:
        """Pool maps of shape (..., H, W), to ``output_size`` where one is given."""
        if self.variant == "released":
            _refuse_size(output_size)
            return released_pool2d(x, window="asap", padding=self.padding, transpose=self.transpose)
        return frequency_pool2d(x, _target(x, self.stride, output_size), window="asap")

    def extra_repr(self) -> str:
        """Show stride, variant and, for the released variant, its options."""
        options = f", padding={self.padding}, transpose={self.transpose}" if self.variant == "released" else ""
        return f"stride={self.stride}, variant={self.variant}{options}"


def _check_stride(stride: int | tuple[int, int], variant: Variant) -> tuple[int, int]:
    pair = (stride, stride) if isinstance(stride, int) else (int(stride[0]), int(stride[1]))
    if variant not in _VARIANTS:
        raise InputError(f"variant={variant!r} is unknown: choose one of {', '.join(_VARIANTS)}.")
    if min(pair) < 1:
        raise InputError(f"stride={stride} must be at least 1 along each axis.")
    if variant == "released" and pair != (2, 2):
        raise InputError(f'The released code only halves both axes: stride={stride} needs variant="centered".')
    return pair


def _target(x: Tensor, stride: tuple[int, int], output_size: int | tuple[int, int] | None) -> int | tuple[int, int]:
    if output_size is not None:
        return output_size
    return -(-x.shape[-2] // stride[0]), -(-x.shape[-1] // stride[1])


def _refuse_size(output_size: int | tuple[int, int] | None) -> None:
    if output_size is not None:
        raise InputError('The released code has one output size per input size: output_size needs variant="centered".')
