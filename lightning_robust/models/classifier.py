"""A plain image classifier for users who have no LightningModule of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_robust.batches import BatchAdapter
from lightning_robust.errors import InputError, UnsupportedError
from lightning_robust.images import ImageSpec, Normalization
from lightning_robust.models.schedules import Schedule, learning_rate_factor
from lightning_robust.nn import is_swapped

Optimizer: TypeAlias = Literal["sgd", "adamw"]


class ImageClassifier(pl.LightningModule):
    """Cross-entropy training of any net that takes images to logits.

    Images are expected in [0, 1] and normalized inside, so that ``forward`` is what an attack differentiates. Batches
    may have any form that :class:`lightning_robust.batches.BatchAdapter` reads.

    Args:
        net: takes normalized images (B, C, H, W) to logits (B, num_classes).
        num_classes: number of classes.
        optimizer: ``sgd`` (Nesterov off) or ``adamw``.
        lr: peak learning rate.
        momentum: of ``sgd``.
        weight_decay: on all parameters.
        schedule: of the learning rate, updated every step: ``cosine``, ``triangular`` or ``constant``.
        mean: per-channel mean in [0, 1] units to subtract inside; None with ``std`` None leaves images as they are.
        std: per-channel std to divide by inside.
        label_smoothing: of the training loss, in [0, 1).

    Raises:
        InputError: if an argument is out of range, or only one of ``mean`` and ``std`` is given.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_classes: int = 10,
        optimizer: Optimizer = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: Schedule = "cosine",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 2 or lr <= 0 or not 0 <= label_smoothing < 1:
            raise InputError(
                f"num_classes={num_classes}, lr={lr}, label_smoothing={label_smoothing}: give at least 2 classes, "
                "a positive lr and a label_smoothing in [0, 1)."
            )
        if (mean is None) != (std is None):
            raise InputError(f"mean={mean} and std={std}: give both, or neither.")
        self.save_hyperparameters(ignore=["net"])
        self.net = net
        self.optimizer: Optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule: Schedule = schedule
        self.label_smoothing = label_smoothing
        self.adapter = BatchAdapter(ImageSpec())
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("std", None, persistent=False)
        if mean is not None and std is not None:
            constants = Normalization(tuple(mean), tuple(std))
            self.mean = torch.tensor(constants.mean).view(-1, 1, 1)
            self.std = torch.tensor(constants.std).view(-1, 1, 1)
        self.num_classes = num_classes
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, image: Tensor) -> Tensor:
        """Take images in [0, 1], (B, C, H, W), to logits (B, num_classes)."""
        if self.mean is not None and self.std is not None:
            image = (image - self.mean) / self.std
        logits: Tensor = self.net(image)
        return logits

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained with swapped layers, where this net has none.

        Raises:
            UnsupportedError: saying how to load them.
        """
        recorded = checkpoint.get("lightning_robust", {}).get("downsampling")
        if recorded and not is_swapped(self):
            raise UnsupportedError(
                f"The checkpoint was trained with {len(recorded['layers'])} swapped downsampling layers, and this net "
                "has none. Give the Trainer FrequencyPooling with the settings of that run, or load the file by "
                "lightning_robust.nn.restore(module, path)."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch; logs ``train_loss`` and ``train_accuracy``."""
        return self._step(batch, batch_idx, "train", self.train_accuracy, self.label_smoothing)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_accuracy``."""
        self._step(batch, batch_idx, "val", self.val_accuracy, 0.0)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_accuracy``."""
        self._step(batch, batch_idx, "test", self.test_accuracy, 0.0)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return class probabilities, (B, num_classes)."""
        image, _ = self.adapter.read(batch)
        logits: Tensor = self(image)
        return logits.softmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and a schedule over all steps of the run.

        Raises:
            InputError: if the schedule needs the number of steps and the Trainer has no limit.
        """
        optimizer = self._optimizer()
        if self.schedule == "constant":
            return optimizer
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise InputError(
                f"schedule={self.schedule!r} needs the number of steps, but the Trainer has no limit: set max_epochs "
                'or max_steps, or take schedule="constant".'
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, int(total), self.schedule)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _step(
        self, batch: Any, batch_idx: int, stage: str, accuracy: MulticlassAccuracy, label_smoothing: float
    ) -> Tensor:
        image, target = self.adapter.read(batch)
        logits = self(image)
        if batch_idx == 0 or target.device.type == "cpu":  # elsewhere every look waits for the device
            self._check_labels(target, stage, batch_idx)
        if logits.shape != (len(image), self.num_classes):
            raise InputError(
                f"The net returned {tuple(logits.shape)} for {len(image)} images, and the module was told of "
                f"{self.num_classes} classes: give num_classes={logits.shape[-1]}, or a net that returns "
                f"({len(image)}, {self.num_classes})."
            )
        loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
        accuracy(logits, target if target.ndim == 1 else target.argmax(dim=1))
        training = stage == "train"
        self.log(f"{stage}_loss", loss, on_step=training, on_epoch=True, batch_size=len(target), sync_dist=not training)
        self.log(f"{stage}_accuracy", accuracy, on_step=False, on_epoch=True, batch_size=len(target), prog_bar=True)
        return loss

    def _check_labels(self, target: Tensor, stage: str, batch_idx: int) -> None:
        if target.ndim != 1 or target.is_floating_point() or len(target) == 0:
            return
        low, high = (int(value) for value in target.aminmax())
        if low < 0 or high >= self.num_classes:
            raise InputError(
                f"Batch {batch_idx} of {stage} holds the label {low if low < 0 else high}, but the module was told "
                f"of {self.num_classes} classes, from 0 to {self.num_classes - 1}: correct the labels or num_classes."
            )
