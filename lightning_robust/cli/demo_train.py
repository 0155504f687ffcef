"""The two trainings and the evaluation of the demo."""

from __future__ import annotations

import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.callbacks import TQDMProgressBar
from tqdm import tqdm

from lightning_robust.attacks import fgsm, pgd
from lightning_robust.callbacks import FrequencyPooling, JacobianFrequencyRegularization, PreemptiveSharpening
from lightning_robust.cli.demo_data import DemoShards
from lightning_robust.corruptions import gaussian_blur, gaussian_noise
from lightning_robust.datamodules import ShardDataModule
from lightning_robust.evaluation import Attack, Clean, Column, Corruption, Record, evaluate
from lightning_robust.functional import laplacian_sharpen
from lightning_robust.models import ImageClassifier, SmallCNN

PLAIN, ROBUST = "plain", "with callbacks"


@dataclass(frozen=True)
class DemoSettings:
    """What the demo trains with; docs/demo.md tells how the defaults were chosen.

    Attributes:
        epochs: of each training.
        lr: peak learning rate of AdamW.
        weight: of the Jacobian regularization.
        alpha: of the sharpening.
        eps: the two budgets of the attacks, in 8-bit levels.
        noise: standard deviation of the Gaussian noise.
        blur: sigma of the Gaussian blur, in pixels.
        seed: of initial weights, order and attacks.
    """

    epochs: int = 4
    lr: float = 0.03
    weight: float = 0.0001
    alpha: float = 0.15
    eps: tuple[int, int] = (8, 16)
    noise: float = 0.3
    blur: float = 1.5
    seed: int = 0


@dataclass(frozen=True)
class DemoResult:
    """One net of the demo: a record per column, and what an epoch of training cost."""

    records: Sequence[Record]
    seconds_per_epoch: float


class EpochClock(pl.Callback):
    """Measures the training epochs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self._start)


def run_demo(shards: DemoShards, settings: DemoSettings, folder: Path) -> dict[str, DemoResult]:
    """Train and judge both nets.

    Args:
        shards: what to train and test on.
        settings: of training and attacks.
        folder: for pictures that the callbacks draw.
    """
    callbacks = [
        FrequencyPooling(),
        PreemptiveSharpening(settings.alpha),
        JacobianFrequencyRegularization(settings.weight),
    ]
    publish = functools.partial(laplacian_sharpen, alpha=settings.alpha)
    return {
        PLAIN: _train_and_judge(PLAIN, [], None, shards, settings, folder),
        ROBUST: _train_and_judge(ROBUST, callbacks, publish, shards, settings, folder),
    }


def columns_of(settings: DemoSettings) -> list[Column]:
    """The columns of the demo's evaluation."""
    attacks: list[Column] = []
    for name, members in (
        ("FGSM", (functools.partial(fgsm, random_start=False),)),
        ("PGD-20", (functools.partial(pgd, steps=20, early_stop=True),)),
    ):
        attacks += [Attack(f"{name}, eps {eps}/255", members, eps=eps / 255) for eps in settings.eps]
    return [
        Clean(),
        *attacks,
        Corruption(f"Gaussian noise, std {settings.noise:g}", functools.partial(gaussian_noise, std=settings.noise)),
        Corruption(f"Gaussian blur, sigma {settings.blur:g}", functools.partial(gaussian_blur, sigma=settings.blur)),
    ]


def _train_and_judge(
    name: str,
    callbacks: list[pl.Callback],
    publish: Callable[[torch.Tensor], torch.Tensor] | None,
    shards: DemoShards,
    settings: DemoSettings,
    folder: Path,
) -> DemoResult:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = EpochClock()
    print(f"\nTraining: {name}")
    with warnings.catch_warnings():
        # Lightning's advice on workers and validation does not apply here; the other is its own use of torch
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
        pl.seed_everything(settings.seed, verbose=False)
        data = _data(shards, settings)
        module = ImageClassifier(
            SmallCNN(3, shards.num_classes),
            num_classes=shards.num_classes,
            optimizer="adamw",
            lr=settings.lr,
            weight_decay=0.01,
        )
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=settings.epochs,
            callbacks=[*callbacks, clock, TQDMProgressBar()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)
    data.setup("test")
    batches = [(batch.image, batch.target, batch.ids) for batch in data.test_dataloader()]
    columns = columns_of(settings)
    count = sum(len(image) for image, _, _ in batches)
    with tqdm(total=count * len(columns), desc=f"Attacking: {name}", unit=" images") as bar:
        records = evaluate(
            module.to(device),
            batches,
            columns,
            publish=publish,
            device=device,
            progress=lambda _, finished: bar.update(finished) and None,
            seed=settings.seed,
        )
    return DemoResult(records, statistics.median(clock.seconds))


def _data(shards: DemoShards, settings: DemoSettings) -> ShardDataModule:
    data = ShardDataModule(
        train=shards.train,
        test=shards.test,
        eval_batch_size=250,
        num_workers=0,
        image_size=shards.image_size,
        seed=settings.seed,
        num_classes=shards.num_classes,
    )
    # for few images what leaves eight steps to an epoch
    data.batch_size = max(2, min(64, len(data.index("train")) // 8))
    return data
