"""Pixel deflection against a loop that deflects one pixel after another."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_robust import seeds as streams
from lightning_robust.errors import InputError
from lightning_robust.functional import pixel_deflection


def images(count=2, channels=3, height=9, width=12, dtype=torch.float32):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def maps(image, seed=2):
    return torch.rand(len(image), *image.shape[2:], generator=torch.Generator().manual_seed(seed))


def _reference_numbers(seed, count):
    """31-bit integers of one image's draws: row, column, and the two coordinates of the neighbor."""
    key = streams.derive(torch.tensor([seed]), "pixel_deflection")
    to, by = (streams.derive(key, torch.arange(count) + start).tolist() for start in (0, 1 << 40))
    chance = streams.uniform(torch.tensor([seed]), (count,), "pixel_deflection", "acceptance")[0].tolist()
    mask = (1 << 31) - 1
    return [((t >> 32) & mask, t & mask, (b >> 32) & mask, b & mask) for t, b in zip(to, by, strict=True)], chance


def _reference_axis(bits, center, size, window, first, sampling):
    low, high = max(min(first, size - 1), center - window), min(size - 1, center + window)
    if sampling == "uniform":
        return low + (bits * (high - low + 1) >> 31)
    std = window / 2
    start, end = stats.norm.cdf([low - 0.5 - center, high + 0.5 - center], scale=std)
    drawn = stats.norm.ppf(start + (end - start) * bits / 2**31, scale=std)
    return min(max(center + math.floor(drawn + 0.5), low), high)


def _reference_paper(image, deflections, window, probability, seed, sampling="uniform", replacement="random"):
    """Algorithm 1 for one (C, H, W) array."""
    result = image.copy()
    _, height, width = image.shape
    numbers, chance = _reference_numbers(seed, deflections)
    for (a, b, c, d), u in zip(numbers, chance, strict=True):
        y, x = a * height >> 31, b * width >> 31
        if probability is not None and u < probability[y, x]:
            continue
        if replacement == "random":
            m = _reference_axis(c, y, height, window, 0, sampling)
            n = _reference_axis(d, x, width, window, 0, sampling)
            result[:, y, x] = image[:, m, n]
        else:
            square = image[:, max(0, y - window) : y + window + 1, max(0, x - window) : x + window + 1]
            result[:, y, x] = getattr(square, replacement)((1, 2))
    return result


def _reference_released(image, deflections, window, probability, seed):
    """The released loop for one (C, H, W) array; it gives up after 16 times the groups that it needs."""
    result = image.copy()
    channels, height, width = image.shape
    patience = 16 * -(-deflections // channels)
    numbers, chance = _reference_numbers(seed, patience * channels)
    left, j = deflections, 0
    while left > 0 and j < patience * channels:
        for channel in range(channels):
            (a, b, c, d), u = numbers[j], chance[j]
            j += 1
            y, x = a * height >> 31, b * width >> 31
            if probability is not None and u < probability[y, x]:
                continue
            m = _reference_axis(c, y, height, window, 1, "uniform")
            n = _reference_axis(d, x, width, window, 1, "uniform")
            result[channel, y, x] = result[channel, m, n]
            left -= 1
    return result


def _reference(protocol, image, deflections, window, probability, seeds, **options):
    one = _reference_released if protocol == "released" else _reference_paper
    return torch.stack([
        torch.from_numpy(
            one(x.numpy(), deflections, window, None if probability is None else probability[i].numpy(), s, **options)
        )
        for i, (x, s) in enumerate(zip(image, seeds.tolist(), strict=True))
    ])  # fmt: skip


@pytest.mark.parametrize("protocol", ["paper", "released"])
@settings(max_examples=25)
@given(data=st.data())
def test_equals_the_sequential_loop(protocol, data):
    height, width = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))
    image = images(2, data.draw(st.sampled_from([1, 3, 4])), height, width)
    deflections, window = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 16))
    probability = maps(image) if data.draw(st.booleans()) else None
    seeds = torch.tensor(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2)))
    ours = pixel_deflection(image, deflections, window, probability, protocol=protocol, seeds=seeds)
    assert torch.equal(ours, _reference(protocol, image, deflections, window, probability, seeds))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_last_write_wins_where_draws_collide(protocol, mapped):
    image, seeds = images(3, 3, 6, 5), torch.tensor([7, 8, 9])
    probability = maps(image) if mapped else None
    ours = pixel_deflection(image, 400, 3, probability, protocol=protocol, seeds=seeds)
    assert torch.equal(ours, _reference(protocol, image, 400, 3, probability, seeds))


def test_chains_of_the_released_code_move_values_beyond_the_window():
    image = torch.linspace(0, 1, 24).view(1, 1, 1, 24)
    seeds = torch.tensor([3])
    steps = torch.arange(24)
    reach = {}
    for protocol in ("paper", "released"):
        deflected = pixel_deflection(image, 300, 1, protocol=protocol, seeds=seeds)
        reach[protocol] = ((deflected * 23).round().long().view(-1) - steps).abs().max().item()
    assert reach["paper"] == 1
    assert reach["released"] > 3


@pytest.mark.parametrize(("deflections", "written"), [(200, 201), (100, 102), (3, 3)])
def test_the_released_loop_finishes_its_group(deflections, written):
    # each value has a neighbor of its own, and so few writes seldom meet
    image = torch.rand(1, 3, 400, 400, generator=torch.Generator().manual_seed(0))
    image[..., 0, :] = image[..., 0] = 2**-30
    deflected = pixel_deflection(image, deflections, 9, protocol="released", seeds=torch.tensor([11]))
    changed = (deflected != image).sum().item()
    assert written - 3 <= changed <= written
    assert (deflected == 2**-30).sum() <= (image == 2**-30).sum()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("sampling", ["uniform", "gaussian"])
@pytest.mark.parametrize("replacement", ["random", "min", "max", "mean"])
def test_sampling_and_replacement(sampling, replacement, mapped):
    image, seeds = images(2, 3, 11, 8, dtype=torch.float64), torch.tensor([1, 2])
    probability = maps(image) if mapped else None
    for window in (2, 30):
        options = {"sampling": sampling, "replacement": replacement}
        ours = pixel_deflection(image, 70, window, probability, **options, seeds=seeds)
        expected = _reference("paper", image, 70, window, probability, seeds, **options)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12 if replacement == "mean" else 0)


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_does_not_depend_on_split_order_or_layout(protocol):
    image, seeds = images(6, 3, 16, 16), torch.arange(20, 26)
    probability = maps(image)
    deflect = partial(pixel_deflection, deflections=90, window=4, protocol=protocol)
    whole = deflect(image, activation_map=probability, seeds=seeds)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    parts = [deflect(image[i], activation_map=probability[i], seeds=seeds[i]) for i in order.split([1, 3, 2])]
    assert torch.equal(torch.cat(parts), whole[order])
    last = deflect(image.to(memory_format=torch.channels_last), activation_map=probability, seeds=seeds)
    assert torch.equal(last, whole)
    assert last.is_contiguous(memory_format=torch.channels_last)
    strided = deflect(image.transpose(2, 3).contiguous().transpose(2, 3), activation_map=probability, seeds=seeds)
    assert torch.equal(strided, whole)


def test_more_draws_continue_the_fewer():
    # a pixel that 40 draws changed differs from that of 60 draws only if a later draw met it
    image, seeds = images(1, 1, 64, 64), torch.tensor([5])
    few, more = (pixel_deflection(image, k, 5, seeds=seeds) for k in (40, 60))
    assert (few != more).sum() <= 20
    assert ((few != image) & (more == few)).sum() >= 30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("replacement", ["random", "min", "max"])
def test_types(dtype, replacement):
    image = images(2).to(dtype)
    deflected = pixel_deflection(image, 30, 3, maps(image).to(dtype), replacement=replacement)
    assert deflected.dtype == dtype
    wide = pixel_deflection(image.double(), 30, 3, maps(image).to(dtype), replacement=replacement)
    assert torch.equal(deflected.double(), wide)


@pytest.mark.parametrize(
    ("protocol", "replacement"),
    [("paper", "random"), ("paper", "min"), ("paper", "max"), ("paper", "mean"), ("released", "random")],
)
def test_gradient_is_exact_under_collisions(protocol, replacement):
    image = images(2, 2, 3, 4, dtype=torch.float64).requires_grad_()
    deflect = partial(
        pixel_deflection,
        deflections=40,
        window=2,
        activation_map=maps(image),
        protocol=protocol,
        replacement=replacement,
        seeds=torch.tensor([4, 5]),
    )
    assert torch.autograd.gradcheck(deflect, image)
    assert torch.autograd.gradgradcheck(deflect, image)


def test_the_map_gets_no_gradient():
    image = images().requires_grad_()
    probability = maps(image).requires_grad_()
    pixel_deflection(image, 20, 3, probability).sum().backward()
    assert probability.grad is None
    assert image.grad.sum().item() == pytest.approx(image.numel())


def test_places_and_neighbors_are_uniform():
    # every pixel carries its own number, so that a result tells where each value came from
    size, window, runs = 8, 2, 6000
    image = (torch.arange(size * size) / 64).view(1, 1, size, size).expand(runs, -1, -1, -1)
    deflected = pixel_deflection(image, 1, window, seeds=torch.arange(runs))
    place = (deflected != image).flatten(1)
    moved = place.any(1)
    target = place.float().argmax(1)[moved]
    source = (deflected.flatten(1)[moved].gather(1, target[:, None]) * 64).round().long().squeeze(1)
    row, column = (torch.arange(size)[:, None].expand(size, size).flatten(), torch.arange(size).repeat(size))
    near = ((row[:, None] - row).abs() <= window) & ((column[:, None] - column).abs() <= window)
    assert near[target, source].all()
    # a pixel of n neighbors, itself among them, shows with probability (n - 1) / n / 64 and each neighbor alike
    expected = (near & ~torch.eye(64, dtype=torch.bool)) / near.sum(1, keepdim=True) / 64
    counts = torch.zeros(64, 64).index_put((target, source), torch.ones(()), accumulate=True)
    for seen, wanted in ((counts.sum(1), expected.sum(1)), (counts.sum(0), expected.sum(0))):
        assert stats.chisquare(seen.numpy(), (wanted / wanted.sum() * seen.sum()).numpy()).pvalue > 0.001
    assert moved.float().mean().item() == pytest.approx(expected.sum().item(), abs=0.01)
    inside = near.sum(1) == 25
    offsets = (source - target)[inside[target]]
    counts = torch.unique(offsets, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


def test_gaussian_neighbors_follow_the_rounded_normal():
    window, runs = 4, 6000
    image = (torch.arange(81) / 81).view(1, 1, 1, 81).expand(runs, -1, -1, -1)
    deflected = pixel_deflection(image, 1, window, sampling="gaussian", seeds=torch.arange(runs))
    offsets = ((deflected - image).flatten(1) * 81).round().long()
    inner = offsets[:, window:-window]
    offset = inner.sum(1)[inner.any(1)].numpy()
    steps = np.array([k for k in range(-window, window + 1) if k])
    chances = stats.norm.cdf(steps + 0.5, scale=window / 2) - stats.norm.cdf(steps - 0.5, scale=window / 2)
    seen = np.array([(offset == step).sum() for step in steps])
    assert stats.chisquare(seen, chances / chances.sum() * seen.sum()).pvalue > 0.001


def test_the_map_is_the_probability_to_be_spared():
    image, probability = torch.rand(400, 1, 16, 16), torch.full((400, 16, 16), 0.75)
    probability[..., 8:] = 0.25
    changed = pixel_deflection(image, 20, 5, probability) != image
    left, right = changed[..., :8].sum().item(), changed[..., 8:].sum().item()
    assert left / right == pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_a_map_of_ones_spares_everything_and_of_zeros_nothing(protocol):
    image, seeds = images(), torch.tensor([1, 2])
    deflect = partial(pixel_deflection, image, 50, 3, protocol=protocol, seeds=seeds)
    assert torch.equal(deflect(torch.ones(2, 9, 12)), image)
    assert torch.equal(deflect(torch.zeros(2, 9, 12)), deflect())


def test_small_images_large_windows_and_no_draws():
    image = images(2, 1, 3, 2)
    wide = pixel_deflection(image, 1000, 500)
    assert set(wide.flatten().tolist()) <= set(image.flatten().tolist())
    assert torch.equal(wide, pixel_deflection(image, 1000, 3))
    still = pixel_deflection(image, 0)
    assert torch.equal(still, image)
    assert still.data_ptr() != image.data_ptr()
    assert torch.equal(pixel_deflection(image, 50, 0), image)
    assert pixel_deflection(image[:0], 5).shape == (0, 1, 3, 2)


def test_input_and_global_random_state_are_left_alone():
    image = images()
    before, state = image.clone(), torch.random.get_rng_state()
    assert torch.equal(pixel_deflection(image), pixel_deflection(image))
    assert torch.equal(image, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 3, 8, 8), 3.0), r"lie in \[3, 3\].*before the normalization"),
        (torch.full((1, 3, 8, 8), torch.nan), "hold NaN or infinite values"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"torch.uint8, \(1, 3, 8, 8\): deflections need float images"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\): deflections need .* shape \(B, C, H, W\)"),
        (torch.zeros(3), r"\(3,\): deflections need"),
        ([0.5], "The image is list: deflections need"),
    ],
)
def test_wrong_images_are_named(image, message):
    with pytest.raises(InputError, match=message):
        pixel_deflection(image)


def test_a_value_out_of_range_in_an_unchecked_row_is_only_moved():
    image = images(1, 1, 9, 9)
    image[0, 0, 4, 4] = torch.nan
    deflected = pixel_deflection(image, 40, 3, seeds=torch.tensor([2]))
    assert torch.isfinite(deflected[0, 0, 8]).all() or deflected.isnan().sum() < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deflections": -1}, "deflections=-1"),
        ({"deflections": 2.5}, "deflections=2.5"),
        ({"deflections": True}, "deflections=True"),
        ({"window": -2}, "window=-2"),
        ({"protocol": "code"}, "protocol='code'"),
        ({"sampling": "normal"}, "sampling='normal'"),
        ({"replacement": "median"}, "replacement='median'"),
        ({"protocol": "released", "replacement": "min"}, "protocol='released' with"),
        ({"protocol": "released", "sampling": "gaussian"}, "protocol='released' with"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, "one int64 per image"),
        ({"seeds": [1, 2]}, "seeds is of type list: give one int64 per image"),
        ({"activation_map": torch.zeros(2, 3, 3)}, r"shape \(2, 3, 3\).*\(2, 9, 12\)"),
        ({"activation_map": torch.zeros(9, 12)}, r"shape \(9, 12\)"),
        ({"activation_map": torch.zeros(2, 9, 12, dtype=torch.int64)}, "activation_map is torch.int64"),
        ({"activation_map": torch.full((2, 9, 12), 1.5)}, r"activation_map lies in \[1.5, 1.5\]"),
        ({"activation_map": torch.full((2, 9, 12), torch.nan)}, r"activation_map lies in \[nan, nan\]"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        pixel_deflection(images(), **arguments)
