"""What a user's module and Trainer say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_robust.errors import InputError
from lightning_robust.images import ImageSpec

if TYPE_CHECKING:
    import pytorch_lightning as pl


def is_defined_by_user(module: object, name: str) -> bool:
    """Whether a hook is the user's own and not Lightning's default."""
    if name in vars(module):
        return True
    for cls in type(module).__mro__:
        if name in vars(cls):
            return not cls.__module__.startswith(("pytorch_lightning.", "lightning.pytorch."))
    return False


def declared_spec(module: pl.LightningModule, trainer: pl.Trainer) -> ImageSpec:
    """Return the spec that a callback, the module or the data module declares; by default batches are [0, 1] images.

    Raises:
        InputError: if two of them differ.
    """
    declared: dict[str, ImageSpec] = {}
    for callback in callbacks_of(trainer):
        spec = getattr(callback, "spec", None)
        if isinstance(spec, ImageSpec):
            declared[type(callback).__name__] = spec
    for owner in (module, getattr(trainer, "datamodule", None)):
        spec = getattr(owner, "image_spec", None)
        if isinstance(spec, ImageSpec):
            declared[f"{type(owner).__name__}.image_spec"] = spec
    specs = list(declared.values())
    if any(spec != specs[0] for spec in specs):
        told = "; ".join(f"{name}: {spec}" for name, spec in declared.items())
        raise InputError(f"The batches are described in different ways ({told}). Declare one ImageSpec, once.")
    return specs[0] if specs else ImageSpec()


def callbacks_of(trainer: pl.Trainer) -> list[Any]:
    """Return the callbacks of a Trainer, in their order."""
    return list(getattr(trainer, "callbacks", []))
