"""Load a checkpoint of a swapped model without a Trainer."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_robust.errors import InputError
from lightning_robust.nn._downsampling import specification
from lightning_robust.nn.surgery import apply_record, revert_downsampling

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def restore(module: ModuleT, checkpoint: str | Path | Mapping[str, Any]) -> ModuleT:
    """Swap a module's layers as a checkpoint records it, then load the checkpoint's weights.

    The keys of a swapped and an unswapped model are equal, so ``load_from_checkpoint`` alone gives the wrong network
    without a word; this gives the one that was trained.

    Args:
        module: the module as its class builds it, swapped in the same way or not at all; it is changed.
        checkpoint: the path of a checkpoint that a Trainer saved with ``FrequencyPooling`` on board, or its contents.
            Files are read with ``weights_only=True``.

    Returns:
        The module.

    Raises:
        InputError: if there is no such file or record, or record or weights do not fit the module.
    """
    contents = checkpoint if isinstance(checkpoint, Mapping) else _read(Path(checkpoint))
    record = (contents.get("lightning_robust") or {}).get("downsampling")
    if record is None or "state_dict" not in contents:
        raise InputError(
            'The checkpoint has no state_dict with a record of swapped layers (["lightning_robust"]["downsampling"]). '
            "If the net was never swapped, load_state_dict is what you need. If it was, and the file was written after "
            "the run with weights_only=True, swap the layers as in that run (swap_downsampling), then load_state_dict."
        )
    was_swapped = any(specification(part) is not None for part in module.modules())
    apply_record(module, record)
    try:
        module.load_state_dict(contents["state_dict"])
    except RuntimeError as error:
        if not was_swapped:
            revert_downsampling(module)
        raise InputError(f"The checkpoint's weights do not fit {type(module).__name__}: {error}") from error
    return module


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}.")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read with weights_only=True ({error}). If you trust its origin, load it by "
            "torch.load(path, weights_only=False) and pass the result."
        ) from error
    if not isinstance(contents, Mapping):
        raise InputError(f"{path} holds a {type(contents).__name__}, expected the dict of a Trainer's checkpoint.")
    return contents
