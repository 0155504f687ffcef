"""Input transformations that stand before an unchanged net at inference; one contract, one file each."""

from lightning_robust.defenses.contract import Defense, Sequence
from lightning_robust.defenses.pixel_deflection import PixelDeflection
from lightning_robust.defenses.purified import Purified, majority
from lightning_robust.defenses.wavelet import WaveletDenoising

__all__ = ["Defense", "PixelDeflection", "Purified", "Sequence", "WaveletDenoising", "majority"]
