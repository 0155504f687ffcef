"""Find, in one run of a user's net, the map of features behind its logits and the linear layer that weighs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_robust.errors import InputError

_NAME_IT = "Name them: layer='...' for the map, head='...' for the linear layer (names of model.named_modules())"
_OTHER_WAY = "or use weights='gradcam', which needs no linear head."
# how many of a head's first outputs may be no class of the net
_DROPPED = 8


@dataclass(frozen=True)
class Observation:
    """What one run of a net showed.

    Attributes:
        logits: shape (B, number of classes).
        features: the last map before the head, shape (B, K, h, w); or None where there is none.
        head: the last linear layer or 1x1 convolution that ran, its input and its output; or None.
        is_left: whether the net went on from the map with something else than maps: a linear layer got a sequence, as
            in a transformer, or the channels moved to the end.
    """

    logits: Tensor
    features: Tensor | None
    head: tuple[nn.Linear | nn.Conv2d, Tensor, Tensor] | None
    is_left: bool


def observe(model: nn.Module, image: Tensor, *, layer: str | None, head: str | None) -> Observation:
    """Run a net once and see what its logits come from.

    Modes and the random state are as before afterwards, and every hook is taken away. Autocast is the caller's affair.

    Args:
        model: takes the image to logits.
        image: shape (B, C, H, W).
        layer: name of the module whose output is the map; None takes the last map before the head.
        head: name of the linear layer or 1x1 convolution; None takes the last that runs.

    Returns:
        What was seen. With gradients enabled, the features are part of the graph of the logits.

    Raises:
        InputError: if a name leads nowhere, or the net does not return logits of shape (B, number of classes).
    """
    watcher = _Watcher()
    heads = [part for part in model.modules() if _is_head(part)] if head is None else [_named_head(model, head)]
    with contextlib.ExitStack() as undo:
        undo.enter_context(_held_still(model, image.device))
        for part in heads:
            undo.callback(part.register_forward_pre_hook(watcher.before_head).remove)
            undo.callback(part.register_forward_hook(watcher.after_head).remove)
        if layer is not None:
            undo.callback(_named(model, "layer", layer).register_forward_hook(watcher.after_layer).remove)
        undo.enter_context(watcher)
        logits = model(image)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(image):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{type(model).__name__} returned {found}: an activation map needs a classifier that returns logits of "
            "shape (B, number of classes). Wrap the net in a module that does."
        )
    features = watcher.named if layer is not None else watcher.features if watcher.head else watcher.latest
    return Observation(logits, features, watcher.head, watcher.is_left)


def class_weights(seen: Observation, *, is_named: bool) -> Tensor:
    """Weights of the head as class activation maps use them, after a check that the head is one.

    Args:
        seen: of :func:`observe`.
        is_named: whether the user named head or layer; then only shapes are checked.

    Returns:
        Shape (number of classes, K).

    Raises:
        InputError: if there is no map of features, or the head does not take its average to the logits.
    """
    if seen.head is None or seen.features is None:
        missing = "no linear layer or 1x1 convolution ran" if seen.head is None else "no map of features precedes it"
        raise InputError(
            f"The net's head was not found: {missing}. {_NAME_IT}; a net without a spatial map of features has no "
            "class activation map."
        )
    module, taken, given = seen.head
    weight = module.weight.detach().flatten(1)
    if seen.features.shape[1] != weight.shape[1] or not (is_named or _feeds(seen.features, taken)):
        raise InputError(
            f"The last linear layer takes {tuple(taken.shape[1:])} and is not fed by the average of the last map of "
            f"features, which has the shape {tuple(seen.features.shape[1:])}. {_NAME_IT}, {_OTHER_WAY}"
        )
    start = _place(given, seen.logits)
    if start is None and (len(weight) != seen.logits.shape[1] or (_is_map(given) and not is_named)):
        raise InputError(
            f"The last linear layer gives {len(weight)} values, which do not become the net's {seen.logits.shape[1]} "
            f"logits by an average. {_NAME_IT}, {_OTHER_WAY}"
        )
    return weight[start or 0 :][: seen.logits.shape[1]]


def spatial_features(seen: Observation, *, is_named: bool) -> Tensor:
    """The map of features for Grad-CAM.

    Raises:
        InputError: if the net has none.
    """
    if seen.features is None or (seen.is_left and not is_named):
        raise InputError(
            "The net has no spatial map of features before its logits (it flattens the image, turns it into tokens or "
            "moves the channels to the end), so there is no activation map. Name a layer of shape (B, K, h, w) by "
            "layer='...', or take the map from another net: RobustActivationMap(model=...)."
        )
    return seen.features


class _Watcher(TorchFunctionMode):
    """Keeps the latest map that any operation returned, since nets make and pool maps outside of modules too.

    A convolution makes a map. What other operations return is one if its channels or its sides are those of the latest
    map: pooling keeps the channels, gates and concatenation keep the sides. (B, h, w, K) has neither, unless h is K.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: Tensor | None = None
        self.named: Tensor | None = None
        self.features: Tensor | None = None
        self.head: tuple[nn.Linear | nn.Conv2d, Tensor, Tensor] | None = None
        self._has_tokens = False
        self._is_moved = False
        self._was_moved = False

    @property
    def is_left(self) -> bool:
        """Whether the map that is kept is not what the net went on with."""
        return self._has_tokens or (self._was_moved if self.head else self._is_moved)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it makes."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "conv2d":
            self._has_tokens = False
        elif name == "linear" and args and args[0].ndim == 3:
            self._has_tokens = True
        if name != "__get__" and isinstance(result, Tensor) and _is_map(result):
            if name == "conv2d" or _succeeds(result, self.latest):
                self.latest, self._is_moved = result, False
            elif min(result.shape[2:]) > 1:
                self._is_moved = True
        return result

    def before_head(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note the map that a possible head stands behind."""
        del module, inputs
        self.features, self._was_moved = self.latest, self._is_moved

    def after_head(self, module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Note what it gave; the last one to do so is the head."""
        self.head = (module, inputs[0], output)

    def after_layer(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note the output of the layer that the user named.

        Raises:
            InputError: if that is no map.
        """
        del inputs
        if not isinstance(output, Tensor) or output.ndim != 4:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"layer names a {type(module).__name__} that returns {found}: name one that returns a map of shape "
                "(B, K, h, w)."
            )
        self.named = output


def _is_map(value: Tensor) -> bool:
    return value.ndim == 4 and value.is_floating_point() and value.shape[2] * value.shape[3] > 1


def _succeeds(value: Tensor, latest: Tensor | None) -> bool:
    return latest is not None and (value.shape[1] == latest.shape[1] or value.shape[2:] == latest.shape[2:])


def _is_head(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _feeds(features: Tensor, taken: Tensor) -> bool:
    """Whether a head takes the map itself, its average, or its maximum (which the paper names)."""
    if taken.ndim == 4 and _is_map(taken):
        return _close(taken, features)
    vector = taken.flatten(1)
    return _close(vector, features.mean((2, 3))) or _close(vector, features.amax((2, 3)))


def _place(given: Tensor, logits: Tensor) -> int | None:
    """Where in the head's output the logits start: some nets drop a background class."""
    planes = given.flatten(2) if given.ndim == 4 else given.unsqueeze(-1)
    classes = logits.shape[1]
    for values in (planes.mean(-1), planes.clamp(min=0).mean(-1), planes.amax(-1)):
        for start in range(max(0, min(_DROPPED, values.shape[1] - classes) + 1)):
            if _close(values[:, start : start + classes], logits):
                return start
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = 2e-2 if a.dtype in (torch.float16, torch.bfloat16) else 1e-3
    a, b = a.detach().float(), b.detach().float()
    return bool(((a - b).abs().amax() <= tolerance * b.abs().amax()).item())


def _named(model: nn.Module, argument: str, name: str) -> nn.Module:
    parts: dict[str, nn.Module] = dict(model.named_modules())
    if name not in parts:
        some = ", ".join(repr(part) for part in list(parts)[1:][-5:])
        raise InputError(
            f"{argument}={name!r} names no module of {type(model).__name__}: take a name of model.named_modules(), "
            f"whose last are {some}."
        )
    return parts[name]


def _named_head(model: nn.Module, name: str) -> nn.Module:
    module = _named(model, "head", name)
    if not _is_head(module):
        raise InputError(
            f"head={name!r} is a {type(module).__name__}: name the linear layer or 1x1 convolution that gives the "
            f"logits, {_OTHER_WAY}"
        )
    return module


@contextlib.contextmanager
def _held_still(model: nn.Module, device: torch.device) -> Iterator[None]:
    modes = {part: part.training for part in model.modules()}
    try:
        model.eval()
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            # hooks and the watcher are blind to compiled code
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        for part, training in modes.items():
            part.training = training
