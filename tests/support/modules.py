"""Modules, data and callbacks that the contract tests share; importable by name, so that they pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as K
import pytorch_lightning as pl
import torch
from support.defenses import Grain
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_robust import callbacks as robust

SIZE, CLASSES, SAMPLES = 8, 4, 16


def build_net(*, norm: bool = False) -> nn.Module:
    """A smooth net with two strided layers."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.Softplus(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


class Images(Dataset[dict[str, Tensor]]):
    """Fixed random images; item i is the same on every process."""

    def __init__(self, samples: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(0)
        self.image = torch.rand(samples, 3, SIZE, SIZE, generator=generator)
        self.target = torch.randint(0, CLASSES, (samples,), generator=generator)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"image": self.image[i], "label": self.target[i], "index": torch.tensor(i)}


def loader(batch_size: int = 4, samples: int = SAMPLES, *, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """Batches in order; process ``rank`` of ``world`` gets every ``world``-th sample, so global batches are equal."""
    data = Images(samples)
    sampler = DistributedSampler(data, world, rank, shuffle=False)
    return DataLoader(data, batch_size=batch_size // world, sampler=sampler)


class UserSteps:
    """The steps a user would write; nothing in them knows of the callbacks."""

    def prepare(self, *, norm: bool = False, manual: bool = False) -> None:
        torch.manual_seed(1)
        self.net = build_net(norm=norm)
        self.automatic_optimization = not manual
        self.calls: dict[str, int] = {}
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)  # type: ignore[no-any-return]

    def _loss(self, batch: Any, name: str) -> Tensor:
        self.calls[name] = self.calls.get(name, 0) + 1
        self.seen.append(batch["image"].detach().clone())
        return F.cross_entropy(self(batch["image"]), batch["label"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loss(batch, "train")
        self.log("train_loss", loss, batch_size=len(batch["label"]))  # type: ignore[attr-defined]
        if not self.automatic_optimization:
            optimizer = self.optimizers()  # type: ignore[attr-defined]
            optimizer.zero_grad()
            self.manual_backward(loss)  # type: ignore[attr-defined]
            optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch, "validate"), batch_size=len(batch["label"]))  # type: ignore[attr-defined]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._loss(batch, "predict")
        return self(batch["image"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)  # type: ignore[attr-defined]

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class UserModule(UserSteps, pl.LightningModule):
    """As a user of pytorch_lightning writes it."""

    def __init__(self, *, norm: bool = False, manual: bool = False) -> None:
        super().__init__()
        self.prepare(norm=norm, manual=manual)


@dataclass(frozen=True)
class Case:
    """One callback in the promise matrix.

    Attributes:
        make: builds it.
        effect_in: stages in which the image that the net sees is another one.
        manual: whether it works with manual optimization.
        sharded: whether it works with sharded parameters.
        changes_training: whether trained weights differ from those of a plain run.
    """

    name: str
    make: Callable[[], pl.Callback]
    effect_in: tuple[str, ...] = ()
    manual: bool = True
    sharded: bool = True
    changes_training: bool = True


CASES = [
    Case(
        "sharpening",
        lambda: robust.PreemptiveSharpening(0.15),
        effect_in=("validate", "test", "predict"),
        changes_training=False,
    ),
    Case(
        "purification",
        lambda: robust.InputPurification(Grain()),
        effect_in=("validate", "test", "predict"),
        changes_training=False,
    ),
    # the batch of the step stays; the net inside it votes
    Case("purification-votes", lambda: robust.InputPurification(Grain(), 3), changes_training=False),
    Case("pooling", robust.FrequencyPooling),
    Case(
        "augmentation",
        lambda: robust.BatchAugmentation(K.RandomHorizontalFlip(p=1.0)),
        effect_in=("train",),
    ),
    Case("jafr", lambda: robust.JacobianFrequencyRegularization(0.05), manual=False, sharded=False),
    Case(
        "jafr-clean",
        lambda: robust.JacobianFrequencyRegularization(0.05, forward="clean"),
        manual=False,
        sharded=False,
    ),
    Case(
        "adversarial",
        # L2: the sign of an Linf step jumps where a gradient is nearly zero, and runs are compared bit by bit
        lambda: robust.AdversarialTraining(0.5, norm="l2", guard=robust.OverfittingGuard(every_n_steps=2, images=8)),
        effect_in=("train",),
        sharded=False,
    ),
]


def trainer_options(folder: Any, **options: Any) -> dict[str, Any]:
    """Quiet settings of a short run on the CPU."""
    return {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
        **options,
    }


def trainer(folder: Any, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(callbacks=list(callbacks), **trainer_options(folder, **options))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def patched_names(module: nn.Module) -> Iterator[str]:
    """Hooks and steps that sit on the instance."""
    hooks = ("training_step", "validation_step", "test_step", "predict_step", "configure_model")
    return (name for name in vars(module) if name in hooks or name.startswith("on_"))
