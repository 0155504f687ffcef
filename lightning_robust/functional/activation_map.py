"""Class activation maps and the robust activation map of Prakash et al., CVPR 2018, section 6.1."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_robust.errors import InputError

Weighting: TypeAlias = Literal["paper", "released"]
MapNormalization: TypeAlias = Literal["max", "minmax"]

# the released recurrence starts from 1.2 times the last map
_RELEASED_START = 1.2


def robust_activation_map(
    features: Tensor,
    class_weights: Tensor,
    logits: Tensor,
    *,
    classes: int = 5,
    decay: float = 0.5,
    weighting: Weighting = "paper",
    normalize: MapNormalization | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Mix the activation maps of the most probable classes into one map that an attack moves less than each of them.

    The map of a class is ``M_c = sum_k w_ck f_k`` (equation 4; Zhou et al., CVPR 2016). ``paper`` sums
    ``decay ** i * M_ci`` over the ranks i = 1, 2, ... (equation 5) and normalizes the sum. ``released`` follows the
    map generator of the authors: each class's map is resized and taken to [0, 1] by its minimum and maximum before the
    sum, and the last rank weighs ``1.2 * decay ** (classes - 1)``.

    Args:
        features: output of the last convolution, shape (B, K, h, w).
        class_weights: of the linear head, shape (number of classes, K), the same for all images; or shape
            (B, classes, K), those of each image's most probable classes in falling order (Grad-CAM).
        logits: shape (B, number of classes); they only rank the classes.
        classes: how many classes are mixed; fewer where there are fewer.
        decay: factor from one rank to the next; 1/2 in the paper.
        weighting: ``paper`` or ``released``.
        normalize: ``max`` divides by the maximum (section 6.1) and cuts negative values off; ``minmax`` takes minimum
            and maximum to 0 and 1. None is what the source of the weighting does: ``max`` for ``paper``, ``minmax`` for
            ``released``.
        size: (H, W) of the map, by bilinear interpolation; None leaves that of the features.

    Returns:
        Map in [0, 1], shape (B, H, W), float32 for half-precision features. Zero where no value is positive (``max``)
        or all are equal (``minmax``), so that no pixel is spared.

    Raises:
        InputError: if shapes do not fit or an option is unknown.

    Example:
        >>> features = torch.rand(2, 8, 7, 7)
        >>> robust_activation_map(features, torch.randn(10, 8), torch.randn(2, 10), size=(32, 32)).shape
        torch.Size([2, 32, 32])
    """
    check_map_options(classes, decay, weighting, normalize)
    if features.ndim != 4 or logits.ndim != 2 or len(logits) != len(features):
        raise InputError(
            f"features has the shape {tuple(features.shape)} and logits {tuple(logits.shape)}: give (B, K, h, w) and "
            "(B, number of classes)."
        )
    features, logits, class_weights = (
        value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        for value in (features, logits, class_weights)
    )
    with torch.autocast(features.device.type, enabled=False):
        weights = _top_weights(features, class_weights, logits, min(classes, logits.shape[1]))
        powers = decay ** torch.arange(weights.shape[1], dtype=features.dtype, device=features.device)
        if weighting == "paper":
            # the mix of the maps is the map of the mixed weights
            mixed = torch.einsum("r,brk,bkhw->bhw", powers, weights, features)
            return _resize(_normalize(mixed, normalize or "max"), size).clamp(0, 1)
        maps = _resize(torch.einsum("brk,bkhw->brhw", weights, features), size)
        powers[-1] *= _RELEASED_START / decay
        return _normalize(torch.einsum("r,brhw->bhw", powers, _normalize(maps, "minmax")), normalize or "minmax")


def check_map_options(classes: int, decay: float, weighting: str, normalize: str | None) -> None:
    """Refuse options that :func:`robust_activation_map` does not know.

    Raises:
        InputError: naming the option.
    """
    if not isinstance(classes, int) or classes < 1:
        raise InputError(f"classes={classes!r}: give how many classes are mixed, at least 1.")
    if not 0 < decay <= 1:
        raise InputError(f"decay={decay} is out of range: give a factor above 0 and up to 1.")
    if weighting not in ("paper", "released"):
        raise InputError(f"weighting={weighting!r} is unknown: choose 'paper' or 'released'.")
    if normalize not in (None, "max", "minmax"):
        raise InputError(f"normalize={normalize!r} is unknown: choose 'max', 'minmax' or None.")


def _top_weights(features: Tensor, class_weights: Tensor, logits: Tensor, count: int) -> Tensor:
    """Weights of each image's most probable classes, shape (B, count, K)."""
    channels = features.shape[1]
    if tuple(class_weights.shape) == (logits.shape[1], channels):
        return class_weights[logits.topk(count, dim=1).indices]
    if class_weights.ndim == 3 and tuple(class_weights.shape) == (len(features), count, channels):
        return class_weights
    raise InputError(
        f"class_weights has the shape {tuple(class_weights.shape)}: features of {channels} channels and "
        f"{logits.shape[1]} classes need ({logits.shape[1]}, {channels}), or ({len(features)}, {count}, {channels}) "
        "where each image has its own."
    )


def _normalize(maps: Tensor, how: MapNormalization) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    # what rounding leaves of a constant map is no activation
    noise = 10 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    if how == "max":
        low, noise = torch.zeros_like(low), torch.zeros_like(low)
    spread = high - low
    flat = spread <= noise
    return torch.where(flat, 0, (maps - low) / torch.where(flat, 1, spread)).clamp(min=0, max=1)


def _resize(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or tuple(maps.shape[-2:]) == tuple(size):
        return maps
    planes = maps[:, None] if maps.ndim == 3 else maps
    return F.interpolate(planes, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)
