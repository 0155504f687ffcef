"""Find the reductions of the map that happen outside of layers: functional pools and strided slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_robust.errors import InputError
from lightning_robust.nn._swap_rules import CONSIDERED
from lightning_robust.nn.report import UnreachedOperation

_POOLS = {
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool2d": "max_pool2d",
    "avg_pool2d": "avg_pool2d",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "adaptive_max_pool2d": "adaptive_max_pool2d",
    "mkldnn_max_pool2d": "max_pool2d",
}
_CONVOLUTIONS = ("convolution", "mkldnn_convolution", "_convolution")


def find_unreached(model: nn.Module, example_input: Any) -> tuple[UnreachedOperation, ...]:
    """Run a model once and name every reduction of the map that no swappable layer owns.

    Found are functional max, average and adaptive pools, downward interpolation, convolutions that are called as
    functions, and slices with a step along height or width; a pool of the whole map to one value is no downsampling.
    The run is in evaluation mode without gradients; modes, statistics and the random state are as before afterwards.

    Args:
        model: any module.
        example_input: a batch, or a tuple or dict of the arguments of ``model``, on the model's device.

    Returns:
        One entry per module and kind of operation, in the order of the run.

    Raises:
        InputError: if the model does not run on ``example_input``.

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return x[..., ::2, ::2]
        >>> for found in find_unreached(nn.Sequential(Halve()), torch.zeros(1, 3, 8, 8)):
        ...     print(found.name, found.operation)
        0 slice with step 2 along height
        0 slice with step 2 along width
    """
    args, kwargs = _arguments(example_input)
    stack: list[nn.Module] = []
    watcher = _Watcher(stack, {module: name for name, module in model.named_modules()})
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with (
            _evaluation_mode(model),
            _call_stack(model, stack),
            torch.random.fork_rng(devices=sorted(index for index in devices if index is not None)),
            torch.compiler.set_stance("force_eager"),
            torch.no_grad(),
            watcher,
        ):
            model(*args, **kwargs)
    except Exception as error:  # whatever the model's forward raises
        raise InputError(
            f"{type(model).__name__} does not run on example_input ({type(error).__name__}: {error}): give what its "
            "forward takes, as a batch, a tuple or a dict of arguments, on the model's device."
        ) from error
    return tuple(watcher.found)


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes reductions below Python, so that functional calls, tensor methods and slices all show."""

    def __init__(self, stack: list[nn.Module], names: Mapping[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack = stack
        self.names = names
        self.found: dict[UnreachedOperation, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and note it if it reduces a map that no layer owns."""
        result = func(*args, **(kwargs or {}))
        owner = self.stack[-1] if self.stack else None
        operation = _reduction(func.overloadpacket.__name__, args, result)
        if operation and owner is not None and not isinstance(owner, CONSIDERED):
            self.found[UnreachedOperation(self.names.get(owner, ""), type(owner).__name__, operation)] = None
        return result


def _reduction(operation: str, args: tuple[Any, ...], result: Any) -> str | None:
    x = args[0] if args and isinstance(args[0], Tensor) else None
    y = result[0] if isinstance(result, tuple | list) and result else result
    if x is None or not isinstance(y, Tensor) or x.ndim != 4 or y.ndim != 4:
        return None
    size = f"{x.shape[2]} x {x.shape[3]}"
    if operation == "slice":
        dim, step = (args[1] if len(args) > 1 else 0) % 4, args[4] if len(args) > 4 else 1
        axis = ("height", "width")[dim - 2]
        return f"slice with step {step} along {axis}" if step > 1 and dim >= 2 and x.shape[dim] > 1 else None
    shrinks = (y.shape[-2] < x.shape[-2] or y.shape[-1] < x.shape[-1]) and tuple(y.shape[-2:]) != (1, 1)
    if operation in _POOLS:
        return f"{_POOLS[operation]} at {size}" if shrinks else None
    if operation.startswith(("upsample_", "_upsample_")):
        return f"interpolate at {size}" if shrinks else None
    if operation in _CONVOLUTIONS and max(args[3]) > 1 and not args[6]:
        return f"conv2d with stride {tuple(args[3])} at {size}"
    return None


def _arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_input, dict):
        return (), example_input
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _call_stack(model: nn.Module, stack: list[nn.Module]) -> Iterator[None]:
    def enter(module: nn.Module, _: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        stack.pop()

    handles: list[Callable[[], None]] = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, prepend=True).remove)
            handles.append(module.register_forward_hook(leave, always_call=True).remove)
        yield
    finally:
        for remove in handles:
            remove()
