"""What a swapped layer is: its specification, the pool it applies, and the geometry of the layer it stands for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lightning_robust.errors import InputError
from lightning_robust.functional.pooling import blur_lowpass2d, blur_pool2d, frequency_lowpass2d, frequency_pool2d

Pair: TypeAlias = tuple[int, int]
Order: TypeAlias = Literal["pool_first", "lowpass", "conv_first"]
MaxPolicy: TypeAlias = Literal["replace", "max_then_pool"]
Pool: TypeAlias = str | Callable[..., Any]

ORDERS = ("pool_first", "lowpass", "conv_first")
MAX_POLICIES = ("replace", "max_then_pool")
NAMED_POOLS = ("asap", "flc", "blur")


@dataclasses.dataclass(frozen=True)
class Downsampling:
    """How one layer was swapped; kept on the layer as its attribute ``downsampling``.

    Args:
        pool: ``"asap"``, ``"flc"``, ``"blur"``, a function ``(x, output_size) -> y`` or a module class.
        order: what is done to a convolution; a pool layer bears the order of its swap without using it.
        max_pool: what is done to a max pool.
        stride: (height, width) of the layer that was there.
        sizes: the rule of the output size: ``"explicit"`` by kernel and padding, ``"same"`` for ceil(N / stride).
    """

    pool: Pool
    order: Order
    max_pool: MaxPolicy
    stride: Pair
    sizes: Literal["explicit", "same"] = "explicit"

    def __str__(self) -> str:
        return f"pool={pool_name(self.pool)}, order={self.order}, replaces stride={self.stride}"


def pool_name(pool: Pool) -> str:
    """Return a readable name of a pool."""
    return pool if isinstance(pool, str) else getattr(pool, "__qualname__", repr(pool))


def specification(module: nn.Module) -> Downsampling | None:
    """Return how a layer was swapped, ``None`` for a layer that was not."""
    found = module.__dict__.get("downsampling")
    return found if isinstance(found, Downsampling) else None


def attach_pool(module: nn.Module, spec: Downsampling) -> None:
    """Put the specification on a layer, and the pool's own module where the pool is a class."""
    if isinstance(spec.pool, type):
        module.add_module("pool", new_pool_module(spec.pool, spec.stride))
    module.downsampling = spec  # type: ignore[assignment]


def detach_pool(module: nn.Module) -> None:
    """Take away what ``attach_pool`` put on a layer."""
    spec = specification(module)
    if spec is not None and isinstance(spec.pool, type):
        del module.pool
    del module.__dict__["downsampling"]


def new_pool_module(pool: type, stride: Pair) -> nn.Module:
    """Build the module of a pool given as a class, and refuse one that would change the state dict."""
    if not issubclass(pool, nn.Module):
        raise InputError(f"pool={pool.__qualname__} is a class, but no torch.nn.Module.")
    module: nn.Module = pool(stride)
    if module.state_dict():
        raise InputError(
            f"pool={pool.__qualname__} holds parameters or persistent buffers ({', '.join(module.state_dict())}), "
            "which would change the model's state dict: use a pool without them, or buffers with persistent=False."
        )
    return module


def pool_to(module: nn.Module, x: Tensor, size: Pair) -> Tensor:
    """Pool ``x`` to ``size`` by the pool of a swapped layer."""
    spec: Any = module.downsampling
    if spec.pool == "asap":
        return frequency_pool2d(x, size, window="asap")
    if spec.pool == "flc":
        return frequency_pool2d(x, size, window="rect")
    if spec.pool == "blur":
        return blur_pool2d(x, size)
    pool: Any = module.pool if isinstance(spec.pool, type) else spec.pool
    y: Tensor = pool(x, size)
    if tuple(y.shape[-2:]) != size:
        raise InputError(
            f"pool={pool_name(spec.pool)} returned maps of {tuple(y.shape[-2:])} where {size} was asked for."
        )
    return y


def lowpass(module: nn.Module, x: Tensor) -> Tensor:
    """Low-pass ``x`` for the stride of a layer that keeps it."""
    spec: Any = module.downsampling
    if spec.pool == "blur":
        return blur_lowpass2d(x, spec.stride)
    return frequency_lowpass2d(x, spec.stride, window="asap" if spec.pool == "asap" else "rect")


def conv_output(module: nn.Module, size: Pair, spec: Downsampling) -> Pair:
    """Return the output size that a convolution had before it was swapped."""
    if spec.sizes == "same":
        return -(-size[0] // spec.stride[0]), -(-size[1] // spec.stride[1])
    reach, padding = layer_reach(module), conv_padding(module)
    out = tuple((size[i] + 2 * padding[i] - reach[i] - 1) // spec.stride[i] + 1 for i in (0, 1))
    if min(out) < 1:
        raise InputError(f"A map of {size[0]} x {size[1]} pixels is too small for {type(module).__name__} with {spec}.")
    return out[0], out[1]


def conv_input(module: nn.Module, out: Pair, spec: Downsampling) -> Pair:
    """Return the map size that gives ``out`` when the convolution runs with stride 1."""
    if spec.sizes == "same":
        return out
    reach, padding = layer_reach(module), conv_padding(module)
    return out[0] + reach[0] - 2 * padding[0], out[1] + reach[1] - 2 * padding[1]


def layer_reach(module: Any) -> Pair:
    """Return dilation * (kernel - 1) per axis, of a convolution or a pool."""
    kernel, dilation = pair(module.kernel_size), pair(getattr(module, "dilation", 1))
    return dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)


def conv_padding(module: Any) -> Pair:
    """Return the padding per axis as numbers."""
    if module.padding == "same":
        reach = layer_reach(module)
        return reach[0] // 2, reach[1] // 2
    return (0, 0) if module.padding == "valid" else (module.padding[0], module.padding[1])


def pool_output(module: Any, size: Pair) -> Pair:
    """Return the output size of a max or average pool, by the rule of torch."""
    reach, stride, padding = layer_reach(module), pair(module.stride), pair(module.padding)
    out = []
    for axis in (0, 1):
        span = size[axis] + 2 * padding[axis] - reach[axis] - 1
        steps = -(-span // stride[axis]) if module.ceil_mode else span // stride[axis]
        if module.ceil_mode and steps * stride[axis] >= size[axis] + padding[axis]:
            steps -= 1  # the last window has to start inside the map or its left padding
        out.append(steps + 1)
    if min(out) < 1:
        raise InputError(f"A map of {size[0]} x {size[1]} pixels is too small for {type(module).__name__}.")
    return out[0], out[1]


def pair(value: int | tuple[int, ...]) -> Pair:
    """Return (height, width) of an option that may be one number."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def strided(stride: Pair) -> bool:
    """Tell whether a stride reduces any axis."""
    return math.prod(stride) > 1
