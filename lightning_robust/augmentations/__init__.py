"""Augmentations: Kornia modules for batches on the device, Albumentations transforms for single images.

Both libraries are slow to import and Albumentations is an extra, so each name is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_robust.augmentations.batch.sharpening import RandomLaplacianSharpening
    from lightning_robust.augmentations.sample.sharpening import LaplacianSharpening

__all__ = ["LaplacianSharpening", "RandomLaplacianSharpening"]


def __getattr__(name: str) -> Any:
    if name == "RandomLaplacianSharpening":
        from lightning_robust.augmentations.batch.sharpening import RandomLaplacianSharpening

        return RandomLaplacianSharpening
    if name == "LaplacianSharpening":
        from lightning_robust.augmentations.sample.sharpening import LaplacianSharpening

        return LaplacianSharpening
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
