"""The formula of class activation maps and of their mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.errors import InputError
from lightning_robust.functional import robust_activation_map


def inputs(batch=2, channels=4, classes=7, height=3, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return draw(batch, channels, height, width), draw(classes, channels), draw(batch, classes)


def _class_maps(features, weights, logits, count):
    """For each image, the maps of its most probable classes in falling order."""
    found = []
    for f, row in zip(features.numpy(), logits.numpy(), strict=True):
        ranked = np.argsort(-row)[:count]
        found.append([sum(weights[c, k].item() * f[k] for k in range(len(f))) for c in ranked])
    return np.array(found)


@settings(max_examples=20)
@given(classes=st.integers(1, 9), decay=st.floats(0.1, 1), seed=st.integers(0, 999))
def test_equals_equation_5(classes, decay, seed):
    features, weights, logits = inputs(seed=seed)
    maps = _class_maps(features, weights, logits, classes)
    for normalize in ("max", "minmax"):
        ours = robust_activation_map(features, weights, logits, classes=classes, decay=decay, normalize=normalize)
        for one, ranks in zip(ours.numpy(), maps, strict=True):
            mixed = sum(decay**i * m for i, m in enumerate(ranks, start=1))
            low = mixed.min() if normalize == "minmax" else 0
            expected = np.clip((mixed - low) / (mixed.max() - low), 0, 1) if mixed.max() > low else 0 * mixed
            np.testing.assert_allclose(one, expected, atol=1e-9)


def test_released_weighting_is_its_recurrence():
    features, weights, logits = inputs(classes=9)
    size = (12, 10)
    maps = torch.from_numpy(_class_maps(features, weights, logits, 5))
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)

    def minmax(m):
        return (m - m.min()) / (m.max() - m.min())

    ours = robust_activation_map(features, weights, logits, weighting="released", size=size)
    for one, ranks in zip(ours, maps, strict=True):
        mixed = 1.2 * minmax(ranks[4])
        for rank in (3, 2, 1, 0):
            mixed = (mixed + minmax(ranks[rank])) / 2
        torch.testing.assert_close(one, minmax(mixed))
        assert one.min() == 0
        assert one.max() == 1


def test_size_is_by_bilinear_interpolation():
    features, weights, logits = inputs()
    small = robust_activation_map(features, weights, logits)
    large = robust_activation_map(features, weights, logits, size=(9, 11))
    expected = F.interpolate(small[:, None], (9, 11), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(large, expected)


def test_images_may_have_class_weights_of_their_own():
    features, weights, logits = inputs()
    own = weights[logits.topk(3).indices]
    ours = robust_activation_map(features, own, logits, classes=3)
    torch.testing.assert_close(ours, robust_activation_map(features, weights, logits, classes=3))


def test_scale_and_first_power_cancel():
    features, weights, logits = inputs()
    ours = robust_activation_map(features, weights, logits)
    torch.testing.assert_close(robust_activation_map(7 * features, weights / 3, 5 * logits), ours)


@pytest.mark.parametrize("weighting", ["paper", "released"])
@pytest.mark.parametrize("normalize", ["max", "minmax"])
def test_without_activation_no_pixel_is_spared(weighting, normalize):
    _, weights, logits = inputs()
    level = -0.37 if normalize == "max" else 0.37
    features = torch.full((2, 4, 3, 5), level)
    ours = robust_activation_map(features, weights.abs().float(), logits, weighting=weighting, normalize=normalize)
    assert torch.equal(ours, torch.zeros(2, 3, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    features, weights, logits = (value.to(dtype) for value in inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = robust_activation_map(features, weights, logits)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, robust_activation_map(features.float(), weights.float(), logits.float()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes=0"),
        ({"decay": 0.0}, "decay=0.0"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"weighting": "code"}, "weighting='code'"),
        ({"normalize": "sum"}, "normalize='sum'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        robust_activation_map(*inputs(), **options)


def test_shapes_that_do_not_fit_are_named():
    features, weights, logits = inputs()
    with pytest.raises(InputError, match=r"class_weights has the shape \(7, 3\).*\(7, 4\)"):
        robust_activation_map(features, weights[:, :3], logits)
    with pytest.raises(InputError, match=r"logits \(1, 7\)"):
        robust_activation_map(features, weights, logits[:1])
