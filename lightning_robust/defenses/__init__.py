"""Input transformations that stand before an unchanged net at inference; one contract, one file each."""

from lightning_robust.defenses.anisotropic_diffusion import AnisotropicDiffusion
from lightning_robust.defenses.bilateral import BilateralFilter
from lightning_robust.defenses.bit_depth import BitDepth
from lightning_robust.defenses.block_dct import BlockDCT
from lightning_robust.defenses.contract import Defense, Sequence
from lightning_robust.defenses.controls import Identity, MatchedBlur, MatchedNoise
from lightning_robust.defenses.crop_ensemble import CropEnsemble
from lightning_robust.defenses.jpeg import JPEG
from lightning_robust.defenses.median import MedianFilter
from lightning_robust.defenses.non_local_means import NonLocalMeans
from lightning_robust.defenses.patch_bank import PatchBank
from lightning_robust.defenses.pixel_deflection import PixelDeflection
from lightning_robust.defenses.purified import Purified, majority
from lightning_robust.defenses.quilting import Quilting
from lightning_robust.defenses.resize_pad import RandomResizePad
from lightning_robust.defenses.total_variation import TotalVariationChambolle, TotalVariationMinimization
from lightning_robust.defenses.wavelet import WaveletDenoising
from lightning_robust.defenses.wiener import WienerFilter

__all__ = [
    "JPEG",
    "AnisotropicDiffusion",
    "BilateralFilter",
    "BitDepth",
    "BlockDCT",
    "CropEnsemble",
    "Defense",
    "Identity",
    "MatchedBlur",
    "MatchedNoise",
    "MedianFilter",
    "NonLocalMeans",
    "PatchBank",
    "PixelDeflection",
    "Purified",
    "Quilting",
    "RandomResizePad",
    "Sequence",
    "TotalVariationChambolle",
    "TotalVariationMinimization",
    "WaveletDenoising",
    "WienerFilter",
    "majority",
]
