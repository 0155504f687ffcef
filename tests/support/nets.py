"""A net for tests of the data path: what it learns does not matter."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor


class MeanColors(pl.LightningModule):
    """Tells five classes by the mean color of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, target = batch
        return torch.nn.functional.cross_entropy(self.layer(image.mean((2, 3))), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
