"""Pixel deflection of Prakash et al., CVPR 2018 (arXiv 1801.08926): pixels replaced by random neighbors."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.errors import InputError
from lightning_robust.functional._deflection_draws import Sampling, paper_draws, released_draws
from lightning_robust.functional._deflection_writes import over_channels, resolve, write
from lightning_robust.images import check_unit_batch

DeflectionProtocol: TypeAlias = Literal["paper", "released"]
Replacement: TypeAlias = Literal["random", "min", "max", "mean"]

_CHECKED_ROWS = 8


def pixel_deflection(
    image: Tensor,
    deflections: int = 100,
    window: int = 10,
    activation_map: Tensor | None = None,
    *,
    protocol: DeflectionProtocol = "paper",
    sampling: Sampling = "uniform",
    replacement: Replacement = "random",
    seeds: Tensor | None = None,
) -> Tensor:
    """Replace randomly drawn pixels by pixels of their neighborhood.

    ``paper`` (Algorithm 1 and section 8): draw ``deflections`` pixels, each uniform over the image; with an activation
    map, go on with probability 1 - map; write there the value of a pixel of the original image, uniform over the square
    of 2 * ``window`` + 1 pixels a side around it, cut at the image's border. A pixel may be drawn twice (the later draw
    counts) and may be replaced by itself. ``deflections`` may exceed the number of pixels, and ``window`` the image:
    then every pixel is a neighbor.

    ``released`` (code of the authors, June 2018): draws single values, one for each channel in turn, each with its own
    place and test; counts those that pass and stops after the group of channels in which the count is reached (so 100
    deflections of RGB are 102 values without a map); reads what it wrote before; and never takes from the first row or
    column. Where the map leaves too few, it stops after 16 times the number of draws; the released loop hangs.

    The range of the image is checked on every eighth row; a value outside, or NaN, is moved like any other.

    A map that is 1 everywhere leaves the image as it is, under either protocol.

    For given seeds the result is a selection of the image's values, with its exact gradient in the image. The map gets
    no gradient. Draw ``j`` of an image depends on its seed and ``j`` alone, so it is the same for any batch, order,
    device, memory layout and number of deflections.

    Args:
        image: floats in [0, 1], shape (B, C, H, W), any number of channels.
        deflections: number of draws K (``paper``) or of replaced values (``released``, whose own default is 200).
        window: apothem r of the square, in pixels.
        activation_map: probability that a pixel is spared, in [0, 1], shape (B, H, W).
        protocol: ``paper`` or ``released``.
        sampling: of the neighbor: ``uniform``, or ``gaussian``, rounded and truncated to the same square. The paper
            gives no standard deviation; window / 2 is ours.
        replacement: ``random`` neighbor, or the ``min``, ``max`` or ``mean`` of the square, per channel (Table 9; per
            channel is our reading).
        seeds: int64 random seeds, shape (B,); None takes them from the position in the batch.

    Returns:
        Deflected images, of the image's type and memory layout.

    Raises:
        InputError: if the image, the map, the seeds or an option is not as described, or ``released`` is combined with
            a sampling or replacement that the released code does not have.

    Example:
        >>> image = torch.rand(2, 3, 32, 32)
        >>> deflected = pixel_deflection(image, 50, seeds=torch.tensor([1, 2]))
        >>> changed = (deflected != image).any(1).sum((1, 2))
        >>> bool((changed > 0).all()), bool((changed <= 50).all())
        (True, True)
    """
    # reading every value would take as long as deflecting 100 pixels
    check_unit_batch(image, "deflections", "Deflect before the normalization.", row_step=_CHECKED_ROWS)
    check_deflection_options(deflections, window, protocol, sampling, replacement)
    seeds = streams.per_image(image, seeds)
    if activation_map is not None:
        activation_map = _checked_map(activation_map, image)
    if image.numel() == 0 or deflections == 0:
        return image.clone()
    if protocol == "released":
        draws = released_draws(image, deflections, window, activation_map, seeds)
        # one plane of C * H * W values, each of which has draws of its own
        flat = image.flatten(1)[:, None]
    else:
        draws = paper_draws(image, deflections, window, activation_map, sampling, seeds)
        flat = image.flatten(2)
    writes = resolve(draws, flat.shape[2], chained=protocol == "released")
    if replacement == "random":
        values = flat.gather(2, over_channels(writes.source, flat))
    else:
        target = over_channels(writes.target, flat)
        values = _square_statistic(image, window, replacement).flatten(2).gather(2, target)
        if writes.replaced is not None:
            values = torch.where(writes.replaced[:, None], values, flat.gather(2, target))
    layout = torch.channels_last if image.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return write(flat, values, writes).reshape(image.shape).contiguous(memory_format=layout)


def check_deflection_options(deflections: int, window: int, protocol: str, sampling: str, replacement: str) -> None:
    """Refuse options that :func:`pixel_deflection` does not know, before any image is there.

    Raises:
        InputError: naming the option and its choices.
    """
    choices = {
        "protocol": (protocol, ("paper", "released")),
        "sampling": (sampling, ("uniform", "gaussian")),
        "replacement": (replacement, ("random", "min", "max", "mean")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, allowed))}.")
    for name, number in (("deflections", deflections), ("window", window)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(f"{name}={number!r}: give a whole number of at least 0.")
    if protocol == "released" and (sampling, replacement) != ("uniform", "random"):
        raise InputError(
            f"protocol='released' with sampling={sampling!r} and replacement={replacement!r}: the released code knows "
            "uniform sampling of random neighbors only. Leave them out, or use protocol='paper'."
        )


def _checked_map(activation_map: Tensor, image: Tensor) -> Tensor:
    wanted = (len(image), *image.shape[2:])
    if not isinstance(activation_map, Tensor) or not activation_map.is_floating_point():
        found = activation_map.dtype if isinstance(activation_map, Tensor) else type(activation_map).__name__
        raise InputError(f"activation_map is {found}: give a float tensor of shape {wanted} with values in [0, 1].")
    if tuple(activation_map.shape) != wanted:
        raise InputError(
            f"activation_map has the shape {tuple(activation_map.shape)}: give one value per pixel, shape {wanted}; "
            "resize a map of the net's features to the image first."
        )
    activation_map = activation_map.detach().to(image.device)
    if activation_map.numel():
        low, high = (value.item() for value in activation_map.aminmax())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"activation_map lies in [{low:.3g}, {high:.3g}]: give finite probabilities in [0, 1], for example the "
                "map divided by its maximum and clamped."
            )
    return activation_map


def _square_statistic(image: Tensor, window: int, replacement: Replacement) -> Tensor:
    """Minimum, maximum or mean of the square around every pixel, cut at the border."""
    wide = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
    # a rectangle's statistic is that of its rows' statistics
    for size, kernel in ((image.shape[2], (1, 0)), (image.shape[3], (0, 1))):
        reach = min(window, size - 1)
        padding = (reach * kernel[0], reach * kernel[1])
        extent = (2 * padding[0] + 1, 2 * padding[1] + 1)
        if replacement == "mean":
            wide = F.avg_pool2d(wide, extent, 1, padding, count_include_pad=False)
        elif replacement == "max":
            wide = F.max_pool2d(wide, extent, 1, padding)
        else:
            wide = -F.max_pool2d(-wide, extent, 1, padding)
    return wide.to(image.dtype)
