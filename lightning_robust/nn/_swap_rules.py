"""Which layers can be swapped, how, and why the others are left alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from lightning_robust.errors import InputError
from lightning_robust.nn._downsampling import (
    MAX_POLICIES,
    NAMED_POOLS,
    ORDERS,
    Downsampling,
    MaxPolicy,
    Order,
    Pair,
    Pool,
    conv_output,
    conv_padding,
    layer_reach,
    new_pool_module,
    pair,
    pool_name,
    strided,
)
from lightning_robust.nn._pooled_layers import SWAPPED_CLASSES, swap_by_hook, swap_class

_LARGE_AVERAGE = 5
_OTHER_POOLS = (nn.LPPool2d, nn.FractionalMaxPool2d)
_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
CONSIDERED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, *_ADAPTIVE_POOLS, *_OTHER_POOLS)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The choices of one swap, checked.

    Raises:
        InputError: if a choice is unknown or two of them exclude each other.
    """

    pool: Pool
    order: Order
    max_pool: MaxPolicy

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError(f"order={self.order!r} is unknown: choose one of {', '.join(ORDERS)}.")
        if self.max_pool not in MAX_POLICIES:
            raise InputError(f"max_pool={self.max_pool!r} is unknown: choose one of {', '.join(MAX_POLICIES)}.")
        if isinstance(self.pool, nn.Module):
            raise InputError("pool= got a module; every layer needs its own: give the class, or a function.")
        if self.pool in NAMED_POOLS:
            return
        if isinstance(self.pool, type):
            # found here, a pool that cannot serve leaves the model untouched
            new_pool_module(self.pool, (2, 2))
        if not callable(self.pool):
            raise InputError(
                f"pool={self.pool!r} is unknown: choose one of {', '.join(NAMED_POOLS)}, a function "
                "(x, output_size) -> y or a module class."
            )
        if self.order == "lowpass":
            raise InputError(
                f'pool={pool_name(self.pool)} has no low-pass form: order="lowpass" needs one of '
                f"{', '.join(NAMED_POOLS)}."
            )


@dataclasses.dataclass(frozen=True)
class Swap:
    """A swap that is possible: what the layer becomes and by which route."""

    spec: Downsampling
    route: Literal["class", "hook"]

    def apply(self, module: Any) -> None:
        """Swap the layer in place."""
        (swap_class if self.route == "class" else swap_by_hook)(module, self.spec)


def plan(module: nn.Module, settings: Settings) -> Swap | str | None:
    """Return the swap of a layer, the reason why there is none, or ``None`` for what does not downsample."""
    if isinstance(module, nn.Conv2d):
        return _plan_conv(module, settings)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return _plan_pool(module, settings)
    if isinstance(module, _ADAPTIVE_POOLS):
        return "adaptive pool: its output size is fixed"
    if isinstance(module, _OTHER_POOLS):
        return "no rule for this kind of pool"
    return None


def effective_order(module: nn.Module, settings: Settings) -> Order:
    """Return the order that a layer gets: 1 x 1 convolutions commute with a pool and always pool first."""
    one_by_one = isinstance(module, nn.Conv2d) and math.prod(module.kernel_size) == 1
    return "pool_first" if one_by_one else settings.order


def _plan_conv(module: nn.Conv2d, settings: Settings) -> Swap | str | None:
    stride, kernel = pair(module.stride), pair(module.kernel_size)
    if not strided(stride):
        return None
    if isinstance(module, LazyModuleMixin):
        return "lazy: run the model once before the swap"
    axes = [axis for axis in (0, 1) if stride[axis] > 1]
    if kernel != (1, 1) and all(kernel[axis] == stride[axis] for axis in axes):
        return "patches do not overlap (kernel equals stride): pooling first would destroy them"
    order = effective_order(module, settings)
    spec = Downsampling(settings.pool, order, settings.max_pool, stride)
    if order == "pool_first" and any(2 * conv_padding(module)[axis] > layer_reach(module)[axis] for axis in axes):
        return 'padding beyond the reach of the kernel: use order="lowpass"'
    if type(module) in SWAPPED_CLASSES:
        return Swap(spec, "class")
    if order == "lowpass" or type(module).forward is nn.Conv2d.forward:
        return Swap(spec, "hook")
    return _check_by_shape(module, spec)


def _plan_pool(module: nn.MaxPool2d | nn.AvgPool2d, settings: Settings) -> Swap | str:
    stride, kernel = pair(module.stride), pair(module.kernel_size)
    if not strided(stride):
        return "stride 1: it does not downsample"
    if type(module) not in SWAPPED_CLASSES:
        return f"unknown subclass of {'MaxPool2d' if isinstance(module, nn.MaxPool2d) else 'AvgPool2d'}"
    if any(stride[axis] == 1 and 2 * pair(module.padding)[axis] > layer_reach(module)[axis] for axis in (0, 1)):
        return "padding enlarges the map along an axis without stride"
    if isinstance(module, nn.MaxPool2d):
        if module.return_indices:
            return "return_indices=True: another layer needs the positions"
    elif module.divisor_override is not None:
        return "divisor_override: its result is not an average"
    elif kernel == stride and min(kernel) >= _LARGE_AVERAGE:
        return "averages large patches: a head rather than a downsampling step"
    return Swap(Downsampling(settings.pool, settings.order, settings.max_pool, stride), "class")


def _check_by_shape(module: nn.Conv2d, spec: Downsampling) -> Swap | str:
    """Find the size rule of a convolution with a forward of its own, by running a copy before and after the swap."""
    smallest = max(max(layer_reach(module)) + 1 + max(spec.stride), 4 * max(spec.stride))
    sizes = [(smallest, smallest + 3), (smallest + 1, smallest + 2)]
    try:
        twin = copy.deepcopy(module).eval()
        for hooks in (twin._forward_pre_hooks, twin._forward_hooks):
            hooks.clear()
        before = [_output_size(twin, size) for size in sizes]
        for rule in ("explicit", "same"):
            candidate = dataclasses.replace(spec, sizes=rule)
            if [conv_output(twin, size, candidate) for size in sizes] == before:
                swap_by_hook(twin, candidate)
                after = [_output_size(twin, size) for size in sizes]
                return Swap(candidate, "hook") if after == before else "its size with stride 1 does not follow its own"
    except Exception as error:  # any forward at all may stand here, and the swap goes on without this layer
        return f"own forward, which could not be checked: {type(error).__name__}: {error}"
    return 'own forward, with an unknown rule of its output size: use order="lowpass"'


@torch.no_grad()
def _output_size(module: nn.Conv2d, size: Pair) -> Pair:
    x = torch.zeros(1, module.in_channels, *size, dtype=module.weight.dtype, device=module.weight.device)
    y = module(x)
    return y.shape[-2], y.shape[-1]
