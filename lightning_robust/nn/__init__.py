"""Layers over the functions, and what is done to a model: surgery, restoring."""

from lightning_robust.nn.activation_map import RobustActivationMap
from lightning_robust.nn.jafr import JaFRLoss
from lightning_robust.nn.pooling import ASAPPool2d, FLCPool2d
from lightning_robust.nn.probe import find_unreached
from lightning_robust.nn.report import SwapReport
from lightning_robust.nn.restore import restore
from lightning_robust.nn.surgery import apply_record, is_swapped, revert_downsampling, swap_downsampling
from lightning_robust.nn.wavelets import WaveletDecomposition2d, WaveletReconstruction2d

__all__ = [
    "ASAPPool2d",
    "FLCPool2d",
    "JaFRLoss",
    "RobustActivationMap",
    "SwapReport",
    "WaveletDecomposition2d",
    "WaveletReconstruction2d",
    "apply_record",
    "find_unreached",
    "is_swapped",
    "restore",
    "revert_downsampling",
    "swap_downsampling",
]
