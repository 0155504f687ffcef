"""The classes that a swapped layer changes to, and the hooks for layers with a forward of their own."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.errors import UnsupportedError
from lightning_robust.nn._downsampling import (
    Downsampling,
    Pair,
    attach_pool,
    conv_input,
    conv_output,
    detach_pool,
    layer_reach,
    lowpass,
    pair,
    pool_output,
    pool_to,
    specification,
)


class PooledConv2d(nn.Conv2d):
    """A strided ``Conv2d`` whose stride an alias-free pool has taken over. Made by ``swap_downsampling`` in place."""

    downsampling: Downsampling

    def forward(self, input: Tensor) -> Tensor:
        """Pool and convolve in the order of the specification; the size is that of the strided convolution."""
        if self.downsampling.order == "lowpass":
            return super().forward(lowpass(self, input))
        out = conv_output(self, map_size(input), self.downsampling)
        if self.downsampling.order == "conv_first":
            return pool_to(self, super().forward(input), out)
        return super().forward(pool_to(self, input, conv_input(self, out, self.downsampling)))

    def extra_repr(self) -> str:
        """Show the convolution and the pool."""
        return f"{super().extra_repr()}, {self.downsampling}"  # type: ignore[no-untyped-call]


class PooledMaxPool2d(nn.MaxPool2d):
    """A ``MaxPool2d`` that pools without aliases, after a maximum with stride 1 where that was asked for."""

    downsampling: Downsampling

    def forward(self, input: Tensor) -> Tensor:
        """Pool to the size that the max pool would give."""
        out = pool_output(self, map_size(input))
        if self.downsampling.max_pool == "max_then_pool":
            input = self._dense_maximum(input)
        return pool_to(self, input, out)

    def _dense_maximum(self, x: Tensor) -> Tensor:
        padding, reach = pair(self.padding), layer_reach(self)
        missing = [max(reach[axis] - 2 * padding[axis], 0) for axis in (0, 1)]
        if max(missing) > 0:
            # one maximum per pixel: without it the map would shrink and its samples drift
            x = F.pad(x, (0, missing[1], 0, missing[0]), value=float("-inf"))
        return F.max_pool2d(x, self.kernel_size, 1, padding, self.dilation)

    def extra_repr(self) -> str:
        """Show the max pool and the pool."""
        return f"{super().extra_repr()}, max_pool={self.downsampling.max_pool}, {self.downsampling}"


class PooledAvgPool2d(nn.AvgPool2d):
    """An ``AvgPool2d`` that pools without aliases."""

    downsampling: Downsampling

    def forward(self, input: Tensor) -> Tensor:
        """Pool to the size that the average pool would give."""
        return pool_to(self, input, pool_output(self, map_size(input)))

    def extra_repr(self) -> str:
        """Show the average pool and the pool."""
        return f"{super().extra_repr()}, {self.downsampling}"


SWAPPED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: PooledConv2d,
    nn.MaxPool2d: PooledMaxPool2d,
    nn.AvgPool2d: PooledAvgPool2d,
}
_ORIGINAL_CLASSES = {swapped: original for original, swapped in SWAPPED_CLASSES.items()}


class PoolInput:
    """Forward pre-hook: pool or low-pass the input of a convolution with a forward of its own."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with the first one pooled."""
        spec: Any = module.downsampling
        if spec.order == "lowpass":
            return lowpass(module, args[0]), *args[1:]
        out = conv_output(module, map_size(args[0]), spec)
        return pool_to(module, args[0], conv_input(module, out, spec)), *args[1:]


class PoolOutput:
    """Forward hook: pool the output of a convolution that now runs with stride 1."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the output at the size of the strided convolution."""
        spec: Any = module.downsampling
        return pool_to(module, output, conv_output(module, map_size(args[0]), spec))


class ShownText:
    """Stands in for ``extra_repr`` of a hooked layer, whose class stays as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self) -> str:
        """Return the text."""
        return self.text


def swap_class(module: nn.Module, spec: Downsampling) -> None:
    """Change the class of an exact torch layer; its parameters, hooks and names stay as they are."""
    attach_pool(module, spec)
    if isinstance(module, nn.Conv2d) and spec.order != "lowpass":
        module.stride = (1, 1)
    module.__class__ = SWAPPED_CLASSES[type(module)]


def swap_by_hook(module: nn.Conv2d, spec: Downsampling) -> None:
    """Pool around a convolution whose class has to stay, because it has a forward of its own."""
    attach_pool(module, spec)
    if spec.order != "lowpass":
        module.stride = (1, 1)
    if spec.order == "conv_first":
        # first: the user's own hooks see what they saw before
        module.register_forward_hook(PoolOutput(), prepend=True)
    else:
        module.register_forward_pre_hook(PoolInput())
    module.__dict__["extra_repr"] = ShownText(f"{module.extra_repr()}, {spec}")  # type: ignore[no-untyped-call]


def undo(module: nn.Module) -> None:
    """Give a swapped layer its class, its stride and its hooks back."""
    spec = specification(module)
    if spec is None:
        return
    if isinstance(module, tuple(_ORIGINAL_CLASSES)) and type(module) not in _ORIGINAL_CLASSES:
        raise UnsupportedError(
            f"{type(module).__name__} was swapped and then parametrized (weight_norm, spectral_norm): remove the "
            "parametrization with torch.nn.utils.parametrize.remove_parametrizations before the swap is undone."
        )
    detach_pool(module)
    if isinstance(module, nn.Conv2d):
        module.stride = spec.stride
    if type(module) in _ORIGINAL_CLASSES:
        module.__class__ = _ORIGINAL_CLASSES[type(module)]
        return
    remove_hooks(module, (PoolInput, PoolOutput))
    del module.__dict__["extra_repr"]


def remove_hooks(module: nn.Module, kinds: tuple[type, ...]) -> None:
    """Take away the hooks of the given classes, in a copied module too, where their handles are lost."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, kinds)]:
            del hooks[key]


def map_size(x: Tensor) -> Pair:
    """Return height and width as plain numbers, which makes a compiler specialize on them."""
    return operator.index(x.shape[-2]), operator.index(x.shape[-1])
