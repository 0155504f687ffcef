"""Augment batches on the device, whatever data module feeds them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytorch_lightning as pl
from torch import nn

from lightning_robust.augmentations.batch.apply import augment_batch
from lightning_robust.callbacks.callback import StepCallback
from lightning_robust.callbacks.contribution import Step
from lightning_robust.errors import UnsupportedError
from lightning_robust.images import ImageSpec


class BatchAugmentation(StepCallback):
    """Run a Kornia augmentation, or any module from images to images, on the batch before the step.

    An ``AugmentationSequential`` with two ``data_keys`` gets image and target and carries the target along (masks,
    boxes, mixed labels); any other module gets the image.

    Args:
        augmentation: the module; it is moved to the device of the batch.
        stages: where it acts.
        spec: how batches look, if no other callback says so.

    Raises:
        UnsupportedError: in ``setup``, if the data module has a ``batch_transform`` too.
    """

    transforms = True

    def __init__(
        self, augmentation: nn.Module, *, stages: Collection[str] = ("train",), spec: ImageSpec | None = None
    ) -> None:
        super().__init__(stages=stages, spec=spec)
        self.augmentation = augmentation

    def settings(self) -> dict[str, Any]:
        """Return the arguments as plain data."""
        return super().settings() | {"augmentation": repr(self.augmentation)}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse to augment twice, then join the steps."""
        owner = getattr(trainer, "datamodule", None)
        if getattr(owner, "batch_transform", None) is not None:
            raise UnsupportedError(
                f"Both BatchAugmentation and {type(owner).__name__}(batch_transform=...) are set, and every image "
                "would be augmented twice. Keep one of them."
            )
        super().setup(trainer, pl_module, stage)

    def transform(self, step: Step) -> None:
        """Augment image and target."""
        image = step.float_image("BatchAugmentation")
        step.image, step.target = augment_batch(self.augmentation.to(step.device), image, step.target)
