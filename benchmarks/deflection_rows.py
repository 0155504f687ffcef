"""Which defense stands in which row of benchmarks/deflection_tables.py, and what the paper prints there.

Figures of the paper: Prakash et al., "Deflecting Adversarial Attacks with Pixel Deflection", CVPR 2018, Tables 1 to 9.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_robust import defenses as D
from lightning_robust import nn as N
from lightning_robust import seeds as streams

ATTACKS = ("FGSM", "IGSM", "DFool", "JSMA", "LBFGS", "C&W")
MAIN = "pd+rcam+dwt"
CROPS = 10  # of 90 x 90, as the row of Table 4 has it

# Table 1: |L2|, no defense, single, Ens-10
TABLE_1 = {
    "clean": (0.0, 100, 98.3, 98.9),
    "FGSM": (0.05, 20.0, 79.9, 81.5),
    "IGSM": (0.03, 14.1, 83.7, 83.7),
    "DFool": (0.02, 26.3, 86.3, 90.3),
    "JSMA": (0.02, 25.5, 91.5, 97.0),
    "LBFGS": (0.02, 12.1, 88.0, 91.6),
    "C&W": (0.04, 4.8, 92.7, 98.0),
}
TABLE_1_LARGE = {
    "FGSM": (0.12, 11.1, 61.5, 70.4),
    "IGSM": (0.09, 11.1, 62.5, 72.5),
    "DFool": (0.08, 8.0, 82.4, 88.9),
    "JSMA": (0.05, 22.1, 88.9, 92.1),
    "LBFGS": (0.04, 12.1, 77.0, 89.0),
}
# Table 2: another draw of 10,000 images
TABLE_2 = {
    "clean": (0.0, 100, 98.1, 98.9),
    "FGSM": (0.04, 19.2, 79.7, 81.2),
    "IGSM": (0.03, 11.8, 81.7, 82.4),
    "DFool": (0.02, 18.0, 87.7, 92.4),
    "JSMA": (0.02, 24.9, 93.0, 98.1),
    "LBFGS": (0.02, 11.6, 90.3, 93.6),
    "C&W": (0.04, 5.2, 93.1, 98.3),
}
# Table 3: |L2|, no defense, single, Ens-10 of VGG-19 and of Inception-v3 (ResNet-50 is Table 1)
TABLE_3 = {
    "clean": ((0.0, 100, 99.8, 99.8), (0.0, 100, 98.1, 98.5)),
    "FGSM": ((0.05, 12.2, 79.3, 81.3), (0.05, 22.1, 85.8, 87.1)),
    "IGSM": ((0.04, 9.79, 79.2, 81.6), (0.04, 15.5, 89.7, 89.1)),
    "DFool": ((0.01, 23.7, 83.9, 91.6), (0.02, 27.2, 82.6, 85.3)),
    "JSMA": ((0.01, 29.1, 95.8, 98.5), (0.02, 24.2, 93.7, 98.6)),
    "LBFGS": ((0.03, 13.8, 83.0, 93.9), (0.02, 12.5, 87.1, 91.0)),
    "C&W": ((0.04, 0.0, 93.1, 97.6), (0.04, 7.1, 93.9, 98.5)),
}
# Table 4: destruction rate under FGSM, IGSM, DeepFool, C&W
TABLE_4_ATTACKS = ("FGSM", "IGSM", "DFool", "C&W")
TABLE_4 = {
    "bits 2": ("Bit depth, 2 bits", (0.132, 0.511, 0.286, 0.170)),
    "bits 5": ("Bit depth, 5 bits", (0.057, 0.022, 0.310, 0.957)),
    "median 2": ("Median 2x2", (0.358, 0.422, 0.714, 0.894)),
    "median 3": ("Median 3x3", (0.264, 0.444, 0.500, 0.723)),
    "nlm 11-3-2": ("Non-local means 11-3-2", (0.113, 0.156, 0.357, 0.936)),
    "nlm 13-3-4": ("Non-local means 13-3-4", (0.226, 0.444, 0.548, 0.936)),
    "squeeze": ("5 bits + median 2x2 + 13-3-4", (0.434, 0.644, 0.786, 0.915)),
    "pad": ("Pixel padding", (0.050, None, 0.972, 0.698)),
    "resize": ("Pixel resizing", (0.360, None, 0.974, 0.971)),
    "resize+pad": ("Padding + resizing", (0.478, None, 0.983, 0.969)),
    "quilt": ("Quilting", (0.611, 0.862, 0.858, 0.843)),
    "tvm+quilt": ("TVM + quilting", (0.619, 0.866, 0.866, 0.841)),
    "crop+tvm+quilt": ("Cropping + TVM + quilting", (0.629, 0.882, 0.883, 0.859)),
    "pd": ("PD", (0.735, 0.880, 0.914, 0.931)),
    "pd+rcam": ("PD + R-CAM", (0.746, 0.912, 0.911, 0.952)),
    "pd+rcam+dct": ("PD + R-CAM + DCT", (0.737, 0.906, 0.874, 0.930)),
    "pd+rcam+dwt": ("PD + R-CAM + DWT", (0.769, 0.927, 0.948, 0.981)),
    "identity": ("control: nothing (8 bits)", (None,) * 4),
    "noise": ("control: noise of the RMSE of PD + R-CAM + DWT", (None,) * 4),
    "blur": ("control: blur of the same RMSE", (None,) * 4),
}
# Table 5: accuracy with JPEG, WD, PD, PD + JPEG, WD + PD + JPEG, WD + PD
TABLE_5_COLUMNS = ("jpeg", "wd", "pd", "pd+jpeg", "pd+wd+jpeg", "pd+dwt")
TABLE_5 = {
    "clean": (96.1, 98.7, 97.4, 96.1, 96.1, 98.9),
    "FGSM": (49.1, 40.6, 79.7, 81.1, 78.8, 81.5),
    "IGSM": (49.1, 31.2, 82.4, 82.4, 79.7, 83.7),
    "DFool": (67.8, 61.1, 86.3, 86.3, 86.3, 90.3),
    "JSMA": (91.6, 89.1, 95.7, 93.0, 93.0, 97.0),
    "LBFGS": (71.8, 67.2, 90.3, 89.1, 88.9, 91.6),
    "C&W": (85.5, 95.4, 95.4, 94.1, 93.4, 98.0),
}
# Table 6: hard, VisuShrink, SUREShrink, BayesShrink
TABLE_6_COLUMNS = ("threshold hard", "threshold visu", "threshold sure", MAIN)
TABLE_6 = {
    "clean": (39.5, 96.1, 92.1, 98.9),
    "FGSM": (35.9, 63.8, 79.7, 81.5),
    "IGSM": (42.5, 67.8, 81.1, 83.7),
    "DFool": (37.2, 78.4, 87.7, 90.3),
    "JSMA": (39.9, 93.0, 93.0, 97.0),
    "LBFGS": (37.2, 81.1, 90.4, 91.6),
    "C&W": (36.8, 93.4, 92.8, 98.0),
}
# Table 7: deflections 10, 100, 1,000, 10,000
TABLE_7_COLUMNS = ("deflections 10", MAIN, "deflections 1000", "deflections 10000")
TABLE_7 = {
    "clean": (98.4, 98.1, 94.7, 80.3),
    "FGSM": (75.7, 79.7, 71.7, 69.1),
    "IGSM": (78.4, 81.7, 75.2, 71.2),
    "DFool": (83.7, 87.7, 81.0, 77.0),
    "JSMA": (91.7, 93.0, 87.7, 67.7),
    "LBFGS": (85.0, 90.3, 82.4, 73.0),
    "C&W": (89.4, 93.1, 86.8, 69.7),
}
# Table 8: window 5, 10, 50, 100
TABLE_8_COLUMNS = ("window 5", MAIN, "window 50", "window 100")
TABLE_8 = {
    "clean": (98.6, 98.1, 96.4, 94.4),
    "FGSM": (79.7, 79.7, 78.4, 76.7),
    "IGSM": (81.0, 81.7, 79.7, 78.4),
    "DFool": (86.4, 87.7, 87.7, 85.0),
    "JSMA": (92.3, 93.0, 91.7, 90.3),
    "LBFGS": (89.4, 90.3, 89.0, 88.1),
    "C&W": (91.8, 93.1, 90.5, 89.2),
}
# Table 9: mean over the six attacks
TABLE_9 = {
    "Sampling: uniform": (("window 5", MAIN, "window 50", "window 100"), (86.7, 87.5, 86.1, 84.6)),
    "Sampling: Gaussian": (tuple(f"gaussian {r}" for r in (5, 10, 50, 100)), (80.0, 81.4, 79.0, 76.4)),
    "Replacement: min": (tuple(f"min {r}" for r in (5, 10, 50, 100)), (73.0, 64.4, 49.1, 44.3)),
    "Replacement: max": (tuple(f"max {r}" for r in (5, 10, 50, 100)), (69.7, 63.8, 51.9, 45.4)),
    "Replacement: mean": (tuple(f"mean {r}" for r in (5, 10, 50, 100)), (83.6, 72.3, 57.2, 49.1)),
    "Denoiser: bilateral, anisotropic, TVM, deconvolution": (
        ("denoise bilateral", "denoise anisotropic", "denoise tvm", "denoise wiener"),
        (78.1, 84.1, 77.26, 85.12),
    ),
}
# Ours: changes about as large as one and two 8-bit levels, where these nets already fail
SMALL = ("FGSM 0.008", "FGSM 0.016", "DFool 0.005", "DFool 0.01")
SMALL_COLUMNS = ("identity", MAIN, "pd+dwt", "pd", "wd", "jpeg", "median 2", "noise")
# the linear search of Figure 5: the mean accuracy over these picks each parameter, the others at their defaults
SEARCHED = ("clean", "FGSM 0.008", "DFool 0.005")
SEARCH = {
    "sigma": tuple(f"sigma {value}" for value in (0.01, 0.02, 0.04, 0.06, 0.08)),
    "deflections": ("deflections 10", "deflections 50", "deflections 100", "deflections 200", "deflections 500"),
    "window": ("window 2", "window 5", "window 10", "window 20", "window 50"),
}


def has_gradient(name: str) -> bool:
    """Whether a row's defense can be differentiated through; the others are attacked by their BPDA backward alone."""
    return not ("jpeg" in name or "quilt" in name or name.startswith(("bits", "nlm", "squeeze")))


class OncePerImage(nn.Module):
    """A map computed once for each different image of a batch, in which every image comes many times."""

    def __init__(self, activation_map: nn.Module) -> None:
        super().__init__()
        self.activation_map = activation_map

    def forward(self, image: Tensor) -> Tensor:
        keys, where = streams.of_content(image).unique(return_inverse=True)
        first = torch.full((len(keys),), len(image)).scatter_reduce(0, where, torch.arange(len(image)), "amin")
        found: Tensor = self.activation_map(image[first])
        return found[where]


def defense_named(name: str, net: nn.Module, bank: Callable[[], D.PatchBank]) -> D.Defense:
    """Build the defense of a row; ``bank`` gives the patches for quilting."""
    kind, _, value = name.partition(" ")
    if name == "identity":
        return D.Identity()
    if kind == "bits":
        return D.BitDepth(bits=int(value))
    if kind == "median":
        return D.MedianFilter(size=int(value))
    if kind == "nlm":
        search, patch, strength = (int(part) for part in value.split("-"))
        return D.NonLocalMeans(search=search, patch=patch, strength=strength)
    if name == "squeeze":
        return D.Sequence([D.BitDepth(bits=5), D.MedianFilter(size=2), D.NonLocalMeans(search=13, patch=3, strength=4)])
    if name == "jpeg":
        return D.JPEG()
    if name == "wd":
        return D.WaveletDenoising()
    if name == "noise":
        return D.MatchedNoise(defense_named(MAIN, net, bank))
    if name == "blur":
        return D.MatchedBlur(defense_named(MAIN, net, bank))
    if name == "quilt":
        return D.Quilting(bank())
    if name in ("tvm+quilt", "crop+tvm+quilt"):  # the crops are taken by the net: see net_behind
        return D.Sequence([D.TotalVariationMinimization(), D.Quilting(bank())])
    if name in ("pad", "resize", "resize+pad"):
        return D.RandomResizePad(steps="both" if name == "resize+pad" else name)
    if kind == "threshold":
        return D.Sequence([deflection(net), threshold(value)])
    if kind == "sigma":
        return D.Sequence([deflection(net), D.WaveletDenoising(sigma=float(value))])
    if kind == "chosen":
        sigma, deflections, window = value.split("-")
        found = deflection(net, deflections=int(deflections), window=int(window))
        return D.Sequence([found, D.WaveletDenoising(sigma=float(sigma))])
    if kind in ("deflections", "window"):
        return D.Sequence([deflection(net, **{kind: int(value)}), D.WaveletDenoising()])
    if kind == "gaussian":
        return D.Sequence([deflection(net, sampling="gaussian", window=int(value)), D.WaveletDenoising()])
    if kind in ("min", "max", "mean"):
        return D.Sequence([deflection(net, replacement=kind, window=int(value)), D.WaveletDenoising()])
    if kind == "denoise":
        return D.Sequence([deflection(net), denoiser(value)])
    stages = {
        "pd": lambda: D.PixelDeflection(),
        "rcam": lambda: None,
        "dwt": D.WaveletDenoising,
        "wd": D.WaveletDenoising,
        "dct": D.BlockDCT,
        "jpeg": D.JPEG,
    }
    parts = name.split("+")
    built = [stages[part]() for part in parts if part != "rcam"]
    if "rcam" in parts:
        built[0] = deflection(net)
    return built[0] if len(built) == 1 else D.Sequence(built)


def net_behind(name: str, net: nn.Module) -> nn.Module:
    """The net that a row's defense stands before: some average its predictions over crops."""
    return D.CropEnsemble(net, crops=CROPS) if name.startswith("crop+") else net


def deflection(net: nn.Module, **options: object) -> D.Defense:
    """Pixel deflection with the robust activation map of the attacked net."""
    return D.PixelDeflection(activation_map=OncePerImage(N.RobustActivationMap(net)), **options)  # type: ignore[arg-type]


def threshold(name: str) -> D.Defense:
    if name == "hard":
        return D.WaveletDenoising(method="VisuShrink", mode="hard")
    return D.WaveletDenoising(method={"visu": "VisuShrink", "sure": "SUREShrink"}[name])


def denoiser(name: str) -> D.Defense:
    return {
        "bilateral": D.BilateralFilter,
        "anisotropic": D.AnisotropicDiffusion,
        "tvm": D.TotalVariationChambolle,
        "wiener": D.WienerFilter,
    }[name]()
