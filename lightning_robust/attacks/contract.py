"""What every attack promises about the model and its surroundings, in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_robust.errors import InputError

Model: TypeAlias = Callable[[Tensor], Tensor]
Mode: TypeAlias = Literal["eval", "train"]


@contextlib.contextmanager
def attack_context(model: Model, device: torch.device, *, mode: Mode, keep_statistics: bool) -> Iterator[None]:
    """Make gradients with respect to images possible anywhere and leave no trace on the model or the random state.

    Gradients are on, even inside inference mode; autocast is off. On leaving, the modes of all modules, the
    ``requires_grad`` of all parameters and the global random state are as before.

    Args:
        model: the attacked callable. A plain function has no mode to set; a bound method stands for its module.
        device: where the images are.
        mode: see :func:`frozen_model`.
        keep_statistics: see :func:`frozen_model`.

    Yields:
        Nothing.
    """
    devices = [device] if device.type == "cuda" else []
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=devices),
        frozen_model(model, mode=mode, keep_statistics=keep_statistics),
    ):
        yield


@contextlib.contextmanager
def frozen_model(model: Model, *, mode: Mode = "eval", keep_statistics: bool = True) -> Iterator[None]:
    """Hold a model still: modes set and restored module by module, no parameter asks for a gradient.

    Use it around an attack on a function that calls a module, where the attack cannot see the module itself.

    Args:
        model: a module, a bound method of one, or any other callable (then nothing is done).
        mode: ``eval`` sets every module to evaluation. ``train`` attacks the model as training sees it: a model in
            training keeps the mode of each module (one that the user froze stays frozen), another is set to training.
        keep_statistics: in ``train`` mode, normalize with batch statistics but leave the running ones, and all other
            buffers, as they are.

    Yields:
        Nothing.

    Raises:
        InputError: if the mode is unknown.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
        >>> with frozen_model(net):
        ...     net[0].training
        False
        >>> net[0].training
        True
    """
    if mode not in ("eval", "train"):
        raise InputError(f"mode={mode!r} is unknown: choose 'eval' or 'train'.")
    module = module_of(model)
    if module is None:
        yield
        return
    modes = {part: part.training for part in module.modules()}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with contextlib.ExitStack() as undo:
        undo.callback(_restore, modes, trainable)
        if mode == "eval" or not module.training:
            module.train(mode == "train")
        if keep_statistics:
            undo.enter_context(_kept_statistics(module))
        for parameter in trainable:
            parameter.requires_grad = False
        yield


def module_of(model: Model) -> nn.Module | None:
    """Return the module that a model is or is a bound method of, or None."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _restore(modes: dict[nn.Module, bool], trainable: list[nn.Parameter]) -> None:
    for part, training in modes.items():
        part.training = training
    for parameter in trainable:
        parameter.requires_grad = True


@contextlib.contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    norms = [part for part in training if isinstance(part, _BatchNorm) and part.track_running_stats]
    others = [buffer for part in training if part not in norms for buffer in part.buffers(recurse=False)]
    before = [buffer.clone() for buffer in others]
    try:
        # BatchNorm is told not to track, since a buffer that an open graph has saved must not be written to
        for part in norms:
            part.track_running_stats = False
        yield
    finally:
        for part in norms:
            part.track_running_stats = True
        for buffer, old in zip(others, before, strict=True):
            if not torch.equal(buffer, old):
                buffer.copy_(old)
