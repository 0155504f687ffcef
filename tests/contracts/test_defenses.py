"""Every defense through every promise of the contract: a new defense is one line in DEFENSES."""

from __future__ import annotations

import copy
import io
import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_robust.defenses import (
    JPEG,
    AnisotropicDiffusion,
    BilateralFilter,
    BitDepth,
    BlockDCT,
    CropEnsemble,
    Defense,
    Identity,
    MatchedBlur,
    MatchedNoise,
    MedianFilter,
    NonLocalMeans,
    PatchBank,
    PixelDeflection,
    Purified,
    Quilting,
    RandomResizePad,
    Sequence,
    TotalVariationChambolle,
    TotalVariationMinimization,
    WaveletDenoising,
    WienerFilter,
)
from lightning_robust.errors import InputError


def bank_of(channels: int) -> PatchBank:
    images = torch.rand(4, channels, 12, 12, generator=torch.Generator().manual_seed(1))
    return PatchBank.from_images(images, per_image=30)


BANK = bank_of(3)
DEFENSES: dict[str, Defense] = {
    "identity": Identity(),
    "jpeg": JPEG(),
    "jpeg, kornia backward": JPEG(backward="kornia"),
    "bit depth": BitDepth(),
    "median 2": MedianFilter(),
    "median 3": MedianFilter(size=3),
    "non-local means": NonLocalMeans(),
    "bilateral": BilateralFilter(),
    "bilateral, fixed color": BilateralFilter(window=3, sigma_color=0.1),
    "anisotropic": AnisotropicDiffusion(),
    "anisotropic, rational": AnisotropicDiffusion(conductance="rational"),
    "tv chambolle": TotalVariationChambolle(iterations=30),
    "tvm": TotalVariationMinimization(iterations=20),
    "tvm by pixel": TotalVariationMinimization(iterations=20, drop="pixel"),
    "tvm without draw": TotalVariationMinimization(iterations=20, drop_rate=0),
    "wiener": WienerFilter(),
    "resize and pad": RandomResizePad(),
    "resize and pad, competition": RandomResizePad(variant="competition", interpolation="nearest"),
    "resize": RandomResizePad(steps="resize"),
    "pad": RandomResizePad(steps="pad"),
    "quilting": Quilting(BANK),
    "quilting, nearest": Quilting(BANK, neighbors=1),
    "quilting, pasted": Quilting(BANK, stitch="paste"),
    "quilting, averaged": Quilting(BANK, stitch="average"),
    "block dct": BlockDCT(),
    "noise": MatchedNoise(0.05),
    "noise like jpeg": MatchedNoise(JPEG()),
    "blur": MatchedBlur(0.02),
    "blur like wiener": MatchedBlur(WienerFilter()),
    "pixel deflection": PixelDeflection(window=3),
    "wavelet": WaveletDenoising(),
    "wavelet, visu": WaveletDenoising(method="VisuShrink"),
    "wavelet, sure": WaveletDenoising(method="SUREShrink"),
    "deflection and wavelet": Sequence([PixelDeflection(window=3), WaveletDenoising()]),
    "squeezing": Sequence([BitDepth(), MedianFilter(), NonLocalMeans()]),
    "random chain": Sequence([TotalVariationMinimization(iterations=10), Quilting(BANK)]),
}
RGB_ONLY = {name for name, defense in DEFENSES.items() if any(isinstance(part, Quilting) for part in defense.modules())}
RESIZING = {"resize and pad", "resize and pad, competition", "pad"}

every_defense = pytest.mark.parametrize("name", DEFENSES)
SEEDS = torch.tensor([3, 1 << 60, -5])


def images(count: int = 3, channels: int = 3, height: int = 22, width: int = 25, dtype=torch.float32) -> Tensor:
    """Smooth images with an edge and some texture."""
    generator = torch.Generator().manual_seed(height)
    noise = torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64)
    ramp = torch.linspace(0.1, 0.6, width, dtype=torch.float64)
    image = ramp + 0.3 * (torch.arange(height) > height // 2)[:, None] + 0.1 * (noise - 0.5)
    return image.clamp(0, 1).to(dtype)


def change_of(image: Tensor, defense: Defense) -> Tensor:
    return defense(image, seeds=SEEDS)


@every_defense
@settings(max_examples=8)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_any_size_gives_finite_images_in_the_box_of_the_same_type(name, height, width, channels, dtype, seed):
    channels = 3 if name in RGB_ONLY else channels
    shape = (2, channels, height, width)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    purified = DEFENSES[name](image)
    assert purified.dtype == dtype
    assert torch.isfinite(purified).all()
    assert purified.min() >= 0
    assert purified.max() <= 1
    wanted = tuple(round(331 * side / 299) for side in shape[2:]) if name in RESIZING else shape[2:]
    assert purified.shape == (*shape[:2], *wanted)


@every_defense
def test_the_bits_do_not_depend_on_split_and_order(name):
    defense, image = DEFENSES[name], images()
    together = defense(image, seeds=SEEDS)
    order = torch.tensor([2, 0, 1])
    parts = [defense(image[part], seeds=SEEDS[part]) for part in order.split([1, 2])]
    assert torch.equal(torch.cat(parts), together[order])
    by_content = defense(image)
    assert torch.equal(defense(image[order]), by_content[order])


@every_defense
def test_it_is_random_exactly_where_it_says_so(name):
    defense, image = DEFENSES[name], images()
    first, other = defense(image, seeds=SEEDS), defense(image, seeds=SEEDS + 1)
    assert torch.equal(first, defense(image, seeds=SEEDS))
    differs = (first != other).flatten(1).any(1)
    assert differs.any() if defense.is_random else not differs.any()


@every_defense
def test_the_global_random_states_are_left_alone(name):
    torch.manual_seed(3)
    states = (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    DEFENSES[name](images())
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


@every_defense
def test_the_gradient_is_the_true_one_where_it_says_so(name):
    defense = DEFENSES[name]
    image = images(height=9, width=11, dtype=torch.float64).clamp(0.05, 0.95).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    purified = defense(image, seeds=SEEDS)
    if not defense.is_differentiable:
        assert purified.grad_fn is None or not torch.autograd.grad(purified.sum(), image)[0].any()
        return
    weight = torch.randn(purified.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((purified * weight).sum(), image)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).any(1).all()
    # the matched blur finds its sigma to 1e-7
    size = 1e-5 if "blur" in name else 1e-6
    step = size * torch.randn(image.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ends = [(defense(image + sign * step, seeds=SEEDS) * weight).sum() for sign in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / 2, (gradient * step).sum(), rtol=5e-3, atol=1e-8)


@every_defense
def test_straight_through_has_the_value_and_a_gradient(name):
    defense, image = DEFENSES[name], images().requires_grad_()
    purified = defense.straight_through(image, seeds=SEEDS)
    assert torch.equal(purified.detach(), defense(image.detach(), seeds=SEEDS))
    (gradient,) = torch.autograd.grad((purified * torch.linspace(1, 2, purified.shape[-1])).sum(), image)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).any(1).all()


@every_defense
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_images_have_finite_results_and_gradients(name, level):
    image = torch.full((1, 3, 10, 10), level).requires_grad_()
    purified = DEFENSES[name](image)
    assert torch.isfinite(purified).all()
    if purified.requires_grad:
        (gradient,) = torch.autograd.grad(purified.sum(), image)
        assert torch.isfinite(gradient).all()


@every_defense
def test_modes_do_not_change_the_result(name):
    defense, image = DEFENSES[name], images()
    plain = change_of(image, defense)
    with torch.inference_mode():
        assert torch.equal(change_of(image, defense), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(change_of(image, defense), plain)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(change_of(image, defense), plain)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(change_of(image.to(memory_format=torch.channels_last), defense), plain)
    torch.testing.assert_close(change_of(image.clone().requires_grad_(), defense).detach(), plain)


@every_defense
def test_the_images_are_not_changed(name):
    image = images()
    before = image.clone()
    DEFENSES[name](image)
    assert torch.equal(image, before)


@every_defense
def test_copies_do_the_same(name):
    defense, image = DEFENSES[name], images()
    plain = change_of(image, defense)
    assert torch.equal(change_of(image, copy.deepcopy(defense)), plain)
    assert torch.equal(change_of(image, pickle.load(io.BytesIO(pickle.dumps(defense)))), plain)


@every_defense
def test_it_adds_nothing_to_a_checkpoint(name):
    assert not DEFENSES[name].state_dict()


@every_defense
def test_an_empty_batch_stays_empty(name):
    assert len(DEFENSES[name](torch.zeros(0, 3, 12, 12))) == 0


@every_defense
@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((images() - 0.45) / 0.25, r"\[0, 1\]. Purify before the normalization"),
        (torch.full((1, 3, 8, 8), torch.nan), "hold NaN or infinite values"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
    ],
    ids=["normalized", "nan", "bytes"],
)
def test_what_is_no_unit_image_is_refused(name, image, message):
    with pytest.raises(InputError, match=message):
        DEFENSES[name](image)


@pytest.mark.parametrize("wrong", [2.5, 3.0, True, "3"], ids=repr)
@pytest.mark.parametrize(
    ("make", "option"),
    [
        (JPEG, "quality"),
        (BitDepth, "bits"),
        (MedianFilter, "size"),
        (WienerFilter, "size"),
        (NonLocalMeans, "search"),
        (NonLocalMeans, "patch"),
        (BilateralFilter, "window"),
        (AnisotropicDiffusion, "iterations"),
        (TotalVariationChambolle, "iterations"),
        (TotalVariationMinimization, "iterations"),
        (BlockDCT, "block"),
        (PixelDeflection, "deflections"),
        (PixelDeflection, "window"),
        (partial(Quilting, BANK), "neighbors"),
        (partial(PatchBank.from_images, torch.rand(1, 3, 9, 9)), "patch"),
        (partial(PatchBank.from_images, torch.rand(1, 3, 9, 9)), "per_image"),
        (partial(CropEnsemble, torch.nn.Flatten()), "crops"),
        (partial(CropEnsemble, torch.nn.Flatten()), "size"),
        (partial(Purified, torch.nn.Flatten(), PixelDeflection()), "votes"),
        (partial(Purified, torch.nn.Flatten(), PixelDeflection()), "votes_at_once"),
    ],
)
def test_counts_and_sizes_are_whole_numbers(make, option, wrong):
    with pytest.raises(InputError, match=rf"^{option}={wrong!r}.* whole number"):
        make(**{option: wrong})
