"""Wavelet transforms as layers without parameters and without buffers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_robust.functional._wavelet_border import BorderMode
from lightning_robust.functional.wavelets import check_transform, wavedec2, waverec2


class WaveletDecomposition2d(nn.Module):
    """Decompose maps into wavelet bands; :func:`~lightning_robust.functional.wavedec2` as a layer.

    Args:
        wavelet: name of a discrete wavelet of PyWavelets.
        level: number of levels, or None for as many as fit.
        mode: what lies beyond the border, as PyWavelets names it.

    Raises:
        InputError: if wavelet or mode is unknown.
    """

    def __init__(self, wavelet: str = "db1", *, level: int | None = None, mode: BorderMode = "symmetric") -> None:
        super().__init__()
        check_transform(wavelet, mode)
        self.wavelet = wavelet
        self.level = level
        self.mode = mode

    def forward(self, x: Tensor) -> list[Tensor]:
        """Take (..., H, W) to the approximation (..., h, w) and details (..., 3, h, w), coarsest first."""
        return wavedec2(x, self.wavelet, self.level, self.mode)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"wavelet={self.wavelet}, level={self.level}, mode={self.mode}"


class WaveletReconstruction2d(nn.Module):
    """Compose maps from wavelet bands; :func:`~lightning_robust.functional.waverec2` as a layer.

    Args:
        wavelet: the name that the bands were made with.
        mode: the border that they were made with.

    Raises:
        InputError: if wavelet or mode is unknown.
    """

    def __init__(self, wavelet: str = "db1", *, mode: BorderMode = "symmetric") -> None:
        super().__init__()
        check_transform(wavelet, mode)
        self.wavelet = wavelet
        self.mode = mode

    def forward(self, coefficients: Sequence[Tensor]) -> Tensor:
        """Take bands to maps (..., H, W); a map of odd size comes back one sample longer."""
        return waverec2(coefficients, self.wavelet, self.mode)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"wavelet={self.wavelet}, mode={self.mode}"
