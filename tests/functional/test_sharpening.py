from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.enhance import sharpness
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.functional import alpha_for_psnr, laplacian_sharpen, texture_intensity, undo_sharpening

NUMPY_PADDING = {"replicate": "edge", "reflect": "reflect", "zeros": "constant"}
OPTIONS = list(itertools.product((4, 8), (False, True), NUMPY_PADDING))
VERIFIED_SHIFTS = {
    # (neighbors, alpha): (multiplier, bias) of (multiplier * L + bias) >> 16, each proved over the whole range of L
    (4, Fraction(1, 20)): (3276, 33576),
    (4, Fraction(1, 10)): (6553, 33377),
    (4, Fraction(3, 20)): (9830, 33172),
    (4, Fraction(1, 5)): (13107, 32768),
    (4, Fraction(1, 4)): (16384, 32768),
    (4, Fraction(3, 10)): (19660, 33580),
    (4, Fraction(1, 2)): (32768, 32768),
    (8, Fraction(1, 20)): (3276, 34392),
    (8, Fraction(3, 20)): (9830, 33580),
    (8, Fraction(3, 10)): (19660, 34396),
}


def _reference_laplacian(values: np.ndarray, neighbors: int, padding: str) -> np.ndarray:
    height, width = values.shape[-2:]
    border = [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)]
    padded = np.pad(values, border, mode=NUMPY_PADDING[padding])
    result = np.zeros_like(values)
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        if (dy or dx) and (neighbors == 8 or dy * dx == 0):
            result += values - padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
    return result


def _reference_sharpen(
    image: Tensor, alpha: float, neighbors: int = 4, normalize: bool = False, padding: str = "replicate", top: int = 255
) -> np.ndarray:
    values = image.numpy().astype(np.int64)
    strength = Fraction(alpha).limit_denominator(1000) / (neighbors if normalize else 1)
    p, q = strength.numerator, strength.denominator
    detail = _reference_laplacian(values, neighbors, padding)
    return np.clip(values + (2 * p * detail + q) // (2 * q), 0, top)


def _random_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _natural_image(size: int = 224, channels: int = 3, contrast: float = 0.16) -> Tensor:
    """Noise with the 1/f amplitude of photographs, contrast and brightness like theirs: (1, C, size, size), float32."""
    generator = torch.Generator().manual_seed(1)
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    radius[0, 0] = 1.0
    spectrum = torch.fft.fft2(torch.randn(channels, size, size, generator=generator)) / radius**1.2
    spectrum[:, 0, 0] = 0
    image = torch.fft.ifft2(spectrum).real
    image = 0.5 + contrast * image / image.std((1, 2), keepdim=True)
    return ((image.clamp(0, 1) * 255).round() / 255).unsqueeze(0)


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    return -10 * torch.log10((a - b).double().square().mean((1, 2, 3)))


def test_impulse_on_gray_gives_the_textbook_values() -> None:
    image = torch.full((1, 1, 7, 7), 40, dtype=torch.uint8)
    image[..., 3, 3] = 140
    expected = torch.full((7, 7), 40, dtype=torch.uint8)
    expected[2:5, 3] = expected[3, 2:5] = 25
    expected[3, 3] = 200
    assert torch.equal(laplacian_sharpen(image)[0, 0], expected)


def test_impulse_on_black_clips_its_neighbors() -> None:
    image = torch.zeros(1, 5, 5, dtype=torch.uint8)
    image[0, 2, 2] = 100
    sharp = laplacian_sharpen(image)
    assert sharp[0, 2, 2] == 160
    assert sharp.sum() == 160


@pytest.mark.parametrize(("neighbors", "normalize", "padding"), OPTIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.001, 0.05, 0.15, 1 / 3, 0.137, 0.5, 0.999, 2.5])
def test_every_path_follows_the_integer_rule(alpha: float, neighbors: int, normalize: bool, padding: str) -> None:
    options = {"neighbors": neighbors, "normalize": normalize, "padding": padding}
    image = _random_bytes(3, 3, 9, 13)
    expected = torch.from_numpy(_reference_sharpen(image, alpha, **options)).to(torch.uint8)
    for layout in (torch.contiguous_format, torch.channels_last):
        source = image.to(memory_format=layout)
        assert torch.equal(laplacian_sharpen(source, alpha, **options), expected)
        for dtype in (torch.float32, torch.float64):
            sharp = laplacian_sharpen(source.to(dtype) / 255, alpha, **options)
            assert torch.equal(sharp, expected.to(dtype) / 255)
            assert sharp.is_contiguous(memory_format=layout)
    mixed = laplacian_sharpen(image, [alpha, alpha, 0.25], **options)
    assert torch.equal(mixed[:2], expected[:2])
    assert torch.equal(mixed[2:], laplacian_sharpen(image[2:], 0.25, **options))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    alpha=st.fractions(0, 3, max_denominator=1000),
    options=st.sampled_from([o for o in OPTIONS if o[2] != "reflect"]),
    seed=st.integers(0, 1000),
    channels_last=st.booleans(),
)
def test_any_shape_follows_the_integer_rule(
    shape: tuple[int, ...],
    alpha: Fraction,
    options: tuple[int, bool, str],
    seed: int,
    channels_last: bool,
) -> None:
    image = _random_bytes(*shape, seed=seed)
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
    neighbors, normalize, padding = options
    expected = _reference_sharpen(image, float(alpha), neighbors, normalize, padding)
    named = {"neighbors": neighbors, "normalize": normalize, "padding": padding}
    np.testing.assert_array_equal(laplacian_sharpen(image, float(alpha), **named).numpy(), expected)
    floating = laplacian_sharpen(image.float() / 255, float(alpha), **named)
    np.testing.assert_array_equal((floating * 255).round().numpy(), expected)


@pytest.mark.parametrize(("rule", "constants"), VERIFIED_SHIFTS.items())
def test_every_laplacian_value_agrees_with_the_integer_shift(
    rule: tuple[int, Fraction], constants: tuple[int, int]
) -> None:
    neighbors, alpha = rule
    # a center pixel of value c between neighbors that add up to c * neighbors - L, for every L in the range
    detail = torch.arange(-255 * neighbors, 255 * neighbors + 1)
    center = (detail > 0).int() * 255
    total = center * neighbors - detail
    offsets = [(0, 1), (1, 0), (1, 2), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2)][:neighbors]
    image = torch.zeros(len(detail), 1, 3, 3, dtype=torch.uint8)
    image[:, 0, 1, 1] = center.to(torch.uint8)
    for k, (y, x) in enumerate(offsets):
        share = (total + k) // neighbors
        image[:, 0, y, x] = share.to(torch.uint8)
    multiplier, bias = constants
    expected = (center + ((multiplier * detail + bias) >> 16)).clamp(0, 255)
    assert torch.equal(laplacian_sharpen(image, float(alpha), neighbors=neighbors)[:, 0, 1, 1].int(), expected.int())


@pytest.mark.parametrize("levels", [2, 16, 1024, 65536])
def test_other_levels_follow_the_integer_rule(levels: int) -> None:
    generator = torch.Generator().manual_seed(3)
    grid = torch.randint(0, levels, (2, 3, 8, 9), generator=generator)
    sharp = laplacian_sharpen(grid.double() / (levels - 1), 0.137, levels=levels)
    expected = _reference_sharpen(grid, 0.137, top=levels - 1)
    np.testing.assert_array_equal((sharp * (levels - 1)).round().numpy(), expected)


def test_an_image_off_the_grid_is_put_on_it_first() -> None:
    image = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    stored = (image * 255).round().to(torch.uint8)
    assert torch.equal(laplacian_sharpen(image), laplacian_sharpen(stored).float() / 255)


@pytest.mark.parametrize(("neighbors", "normalize", "padding"), OPTIONS)
def test_continuous_matches_float64_reference(neighbors: int, normalize: bool, padding: str) -> None:
    image = torch.rand(2, 3, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    strength = 0.15 / (neighbors if normalize else 1)
    expected = np.clip(image.numpy() + strength * _reference_laplacian(image.numpy(), neighbors, padding), 0, 1)
    options = {"neighbors": neighbors, "normalize": normalize, "padding": padding, "levels": None}
    for source in (image, image.to(memory_format=torch.channels_last), image.clone().requires_grad_()):
        np.testing.assert_allclose(laplacian_sharpen(source, **options).detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(laplacian_sharpen(image.float(), **options).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(laplacian_sharpen(image, [0.15, 0.3], **options)[0].numpy(), expected[0], atol=1e-12)


def test_eight_neighbors_equal_kornia_sharpness_inside() -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    ours = laplacian_sharpen(image, 0.15, neighbors=8, levels=None)
    theirs = sharpness(image, 1 + 13 * 0.15)
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], atol=2e-6, rtol=0)


def test_normalization_is_a_smaller_strength() -> None:
    image = _random_bytes(2, 3, 10, 10)
    assert torch.equal(laplacian_sharpen(image, 0.6, normalize=True), laplacian_sharpen(image, 0.15))
    assert torch.equal(
        laplacian_sharpen(image, 0.8, neighbors=8, normalize=True), laplacian_sharpen(image, 0.1, neighbors=8)
    )


def test_a_constant_image_stays_with_replicate_padding_only() -> None:
    image = torch.full((1, 3, 6, 6), 200, dtype=torch.uint8)
    assert torch.equal(laplacian_sharpen(image), image)
    assert not torch.equal(laplacian_sharpen(image, padding="zeros"), image)
    floating = torch.full((2, 3, 6, 6), 0.3)
    torch.testing.assert_close(laplacian_sharpen(floating, levels=None), floating, atol=1e-7, rtol=0)


def test_a_ramp_changes_on_its_border_lines_only() -> None:
    image = (torch.arange(12) * 10).to(torch.uint8).expand(1, 1, 12, 12).contiguous()
    change = laplacian_sharpen(image).int() - image.int()
    assert change[..., 1:-1].abs().sum() == 0
    assert (change[..., -1] > 0).all()


def test_strength_zero_is_the_identity() -> None:
    image = _random_bytes(2, 3, 7, 7)
    assert torch.equal(laplacian_sharpen(image, 0.0), image)


def test_the_mean_is_kept_where_nothing_clips() -> None:
    image = 0.4 + 0.2 * torch.rand(2, 3, 11, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    sharp = laplacian_sharpen(image, levels=None)
    torch.testing.assert_close(sharp.mean((2, 3)), image.mean((2, 3)), atol=1e-14, rtol=0)


def test_a_single_image_equals_a_batch_of_one() -> None:
    image = _random_bytes(3, 8, 9)
    assert torch.equal(laplacian_sharpen(image, torch.tensor(0.2)), laplacian_sharpen(image[None], [0.2])[0])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 8), (2, 3, 8, 1), (0, 3, 4, 4)])
def test_thin_and_empty_images(shape: tuple[int, ...]) -> None:
    image = _random_bytes(*shape)
    np.testing.assert_array_equal(laplacian_sharpen(image).numpy(), _reference_sharpen(image, 0.15))
    assert laplacian_sharpen(image.float() / 255, levels=None).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("levels", [256, None])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, levels: int | None) -> None:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(8)).to(dtype)
    sharp = laplacian_sharpen(image, levels=levels)
    assert sharp.dtype == dtype
    assert torch.equal(sharp, laplacian_sharpen(image.float(), levels=levels).to(dtype))


@pytest.mark.parametrize(("neighbors", "normalize", "padding"), OPTIONS)
def test_gradient_of_the_continuous_map(neighbors: int, normalize: bool, padding: str) -> None:
    generator = torch.Generator().manual_seed(9)
    image = (0.45 + 0.1 * torch.rand(2, 2, 5, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    alpha = [0.1, 0.05]

    def sharpen(x: Tensor) -> Tensor:
        return laplacian_sharpen(x, alpha, neighbors=neighbors, normalize=normalize, padding=padding, levels=None)

    assert torch.autograd.gradcheck(sharpen, image)
    assert torch.autograd.gradgradcheck(lambda x: sharpen(x).square(), image)


@pytest.mark.parametrize("neighbors", [4, 8])
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_the_operator_is_symmetric(neighbors: int, padding: str) -> None:
    generator = torch.Generator().manual_seed(10)
    a, b = 0.5 + 0.02 * torch.rand(2, 1, 3, 7, 8, dtype=torch.float64, generator=generator)
    options = {"neighbors": neighbors, "padding": padding, "levels": None}
    if padding == "zeros":
        a, b = (x[..., :4, :4] - 0.4 for x in (a, b))
    left = (laplacian_sharpen(a, 0.02, **options) * b).sum()
    right = (a * laplacian_sharpen(b, 0.02, **options)).sum()
    torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


def test_rounding_passes_the_gradient_and_clipping_stops_it() -> None:
    image = _natural_image(32, contrast=0.4).double()
    weight = torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    gradients = []
    for levels in (256, None):
        leaf = image.clone().requires_grad_()
        sharp = laplacian_sharpen(leaf, levels=levels)
        gradients.append(torch.autograd.grad((sharp * weight).sum(), leaf)[0])
        assert torch.equal(sharp.detach(), laplacian_sharpen(image, levels=levels)) or levels is None
    assert torch.equal(*gradients)
    raw = image.numpy() + 0.15 * _reference_laplacian(image.numpy(), 4, "replicate")
    masked = np.where((raw >= 0) & (raw <= 1), weight.numpy(), 0.0)
    assert (masked == 0).mean() > 0.02
    expected = masked + 0.15 * _reference_laplacian(masked, 4, "replicate")
    np.testing.assert_allclose(gradients[0].numpy(), expected, atol=1e-12)


def test_black_and_white_pixels_keep_their_gradient() -> None:
    image = torch.zeros(1, 1, 3, 3, requires_grad=True)
    laplacian_sharpen(image).sum().backward()
    torch.testing.assert_close(image.grad, torch.ones(1, 1, 3, 3))


def test_the_input_is_left_alone() -> None:
    image = torch.rand(2, 3, 6, 6)
    before = image.clone()
    laplacian_sharpen(image)
    laplacian_sharpen(image, levels=None)
    undo_sharpening(image, 0.15)
    alpha_for_psnr(image, 30.0)
    assert torch.equal(image, before)


# the compiler of torch 2.11 builds an object of every autograd function, of which torch itself warns
@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")
def test_compiled_code_gives_the_same_values() -> None:
    image = torch.rand(2, 3, 8, 8)
    compiled = torch.compile(laplacian_sharpen, backend="eager")
    assert torch.equal(compiled(image), laplacian_sharpen(image))


def test_texture_intensity_is_the_mean_laplacian_in_levels() -> None:
    image = _random_bytes(3, 3, 9, 9)
    expected = np.abs(_reference_laplacian(image.numpy().astype(np.float64), 4, "replicate")).mean((1, 2, 3))
    np.testing.assert_allclose(texture_intensity(image).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(texture_intensity(image.float() / 255).numpy(), expected, rtol=1e-5)
    assert texture_intensity(image[0]).shape == ()


def test_sharpening_raises_texture_as_on_photographs() -> None:
    image = _natural_image()
    ratio = texture_intensity(laplacian_sharpen(image)) / texture_intensity(image)
    assert 1.4 < ratio.item() < 1.9


@pytest.mark.parametrize("levels", [256, None])
@pytest.mark.parametrize(("neighbors", "normalize"), [(4, False), (8, True)])
@pytest.mark.parametrize("psnr", [24.0, 32.0, 38.0])
def test_the_wanted_psnr_is_reached(psnr: float, neighbors: int, normalize: bool, levels: int | None) -> None:
    image = torch.cat([_natural_image(96, contrast=c) for c in (0.1, 0.2, 0.4)])
    options = {"neighbors": neighbors, "normalize": normalize, "levels": levels}
    alpha = alpha_for_psnr(image, psnr, max_alpha=20.0, **options)
    reached = _psnr(laplacian_sharpen(image, alpha, **options), image)
    torch.testing.assert_close(reached, torch.full((3,), psnr, dtype=torch.float64), atol=0.05, rtol=0)
    assert alpha[0] > alpha[1] > alpha[2]
    bytes_alpha = alpha_for_psnr(
        (image * 255).round().to(torch.uint8), psnr, max_alpha=20.0, **options | {"levels": 256}
    )
    assert levels is None or torch.equal(bytes_alpha, alpha)


def test_the_limit_on_alpha_binds() -> None:
    image = torch.cat([_natural_image(64), torch.full((1, 3, 64, 64), 0.5)])
    assert alpha_for_psnr(image, 20.0, max_alpha=0.25).tolist() == [0.25, 0.25]
    assert alpha_for_psnr(image[0], 20.0, max_alpha=0.25).shape == ()


@pytest.mark.parametrize(("alpha", "exact"), [(0.15, 0.983), (0.3, 0.93)])
def test_an_informed_attacker_recovers_a_published_image(alpha: float, exact: float) -> None:
    image = (_natural_image() * 255).round().to(torch.uint8)
    recovered = undo_sharpening(laplacian_sharpen(image, alpha), alpha)
    assert recovered.dtype == torch.uint8
    assert (recovered == image).float().mean() >= exact


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    neighbors=st.sampled_from([4, 8]),
    normalize=st.booleans(),
    alpha=st.lists(st.floats(0, 0.5), min_size=2, max_size=2),
)
def test_the_inverse_is_exact_without_clipping(
    height: int, width: int, neighbors: int, normalize: bool, alpha: list[float]
) -> None:
    generator = torch.Generator().manual_seed(12)
    image = 0.5 + 0.1 * (torch.rand(2, 3, height, width, dtype=torch.float64, generator=generator) - 0.5)
    options = {"neighbors": neighbors, "normalize": normalize}
    sharp = laplacian_sharpen(image, alpha, levels=None, **options)
    torch.testing.assert_close(undo_sharpening(sharp, alpha, **options), image, atol=1e-12, rtol=0)


def test_gradient_of_the_inverse() -> None:
    image = (0.4 + 0.1 * torch.rand(2, 1, 4, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: undo_sharpening(x, [0.15, 0.3]), image)


@pytest.mark.parametrize("neighbors", [4, 8])
def test_gain_law_of_the_cosine_transform(neighbors: int) -> None:
    height, width, i, j = 8, 10, 3, 7
    rows = torch.cos(torch.pi * i * (torch.arange(height, dtype=torch.float64) + 0.5) / height)
    columns = torch.cos(torch.pi * j * (torch.arange(width, dtype=torch.float64) + 0.5) / width)
    wave = 0.01 * rows[:, None] * columns
    u, v = np.cos(np.pi * i / height), np.cos(np.pi * j / width)
    gain = 1 + 0.15 * (4 - 2 * u - 2 * v if neighbors == 4 else 8 - 2 * u - 2 * v - 4 * u * v)
    sharp = laplacian_sharpen(0.5 + wave[None, None], neighbors=neighbors, levels=None)
    torch.testing.assert_close(sharp - 0.5, gain * wave[None, None], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(2, 3, 4, 4) * 255, r"lies in .* divide 8-bit values by 255"),
        (torch.randn(2, 3, 4, 4), r"undo a normalization"),
        (torch.rand(2, 3, 4, 4) - 0.5, r"lies in \[-0"),
        (torch.full((3, 4, 4), torch.nan), r"NaN"),
        (torch.rand(4, 4), r"shape \(4, 4\)"),
        (torch.ones(1, 3, 4, 4, dtype=torch.int64), r"int64"),
    ],
)
def test_bad_images_are_refused(image: Tensor, message: str) -> None:
    for function in (laplacian_sharpen, texture_intensity, lambda x: undo_sharpening(x, 0.1)):
        with pytest.raises(InputError, match=message):
            function(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -0.1}, r"alpha=-0.1"),
        ({"alpha": float("nan")}, r"alpha=nan"),
        ({"alpha": [0.1, 0.2, 0.3]}, r"3 values for a batch of 2"),
        ({"neighbors": 6}, r"neighbors=6"),
        ({"padding": "circular"}, r"padding='circular'"),
        ({"levels": 1}, r"levels=1"),
        ({"levels": None}, r"does not fit a uint8 image"),
    ],
)
def test_bad_options_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        laplacian_sharpen(_random_bytes(2, 3, 4, 4), **arguments)


def test_reflection_needs_two_pixels() -> None:
    with pytest.raises(InputError, match="at least 2 x 2"):
        laplacian_sharpen(_random_bytes(1, 3, 1, 4), padding="reflect")


@pytest.mark.parametrize("arguments", [{"psnr": 0.0}, {"psnr": float("inf")}, {"psnr": 30.0, "max_alpha": 0.0}])
def test_an_impossible_distance_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match="give a positive number"):
        alpha_for_psnr(_random_bytes(1, 3, 4, 4), **arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("neighbors", "normalize", "padding"), OPTIONS)
def test_cuda_gives_the_same_bits(neighbors: int, normalize: bool, padding: str) -> None:
    options = {"neighbors": neighbors, "normalize": normalize, "padding": padding}
    image = _random_bytes(4, 3, 33, 47)
    for source in (image, image.float() / 255, image.double() / 255, torch.rand(4, 3, 33, 47)):
        for alpha in (0.15, 0.137, 2.5, [0.1, 0.15, 0.999, 1 / 3]):
            here, there = (laplacian_sharpen(x, alpha, **options).cpu() for x in (source, source.cuda()))
            assert torch.equal(here, there)
