"""ImageClassifier under a Trainer, and what it does to images."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust.errors import InputError
from lightning_robust.models import ImageClassifier, SmallCNN

# most runs here train only
pytestmark = pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*")
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


def _data(count: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(count) % 2
    image = torch.rand(count, 1, 8, 8, generator=generator) * 0.2 + target[:, None, None, None] * 0.6
    return image, target


def _loader(*tensors: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*tensors), batch_size=8)


def _trainer(folder: Path, **options: object) -> pl.Trainer:
    settings: dict[str, object] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": folder, "max_epochs": 3, "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(**(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "triangular"])
def test_it_learns_an_easy_task(tmp_path: Path, optimizer: str, schedule: str) -> None:
    pl.seed_everything(0, verbose=False)
    module = ImageClassifier(
        SmallCNN(1, 2, 4),
        num_classes=2,
        optimizer=optimizer,
        schedule=schedule,
        lr=0.05,  # type: ignore[arg-type]
    )
    trainer = _trainer(tmp_path, max_epochs=8)
    trainer.fit(module, _loader(*_data()), _loader(*_data()))
    assert trainer.callback_metrics["train_accuracy"] > 0.9
    assert {"train_loss", "val_loss", "val_accuracy"} <= set(trainer.callback_metrics)


def test_logged_numbers_are_those_of_the_whole_set(tmp_path: Path) -> None:
    image, target = _data(20)
    module = ImageClassifier(SmallCNN(1, 2, 4), num_classes=2).eval()
    (metrics,) = _trainer(tmp_path).test(module, _loader(image, target), verbose=False)
    with torch.no_grad():
        logits = module(image)
    assert metrics["test_accuracy"] == pytest.approx((logits.argmax(1) == target).float().mean().item())
    assert metrics["test_loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)


def test_predictions_are_probabilities_for_any_batch_form(tmp_path: Path) -> None:
    image, target = _data(8)
    module = ImageClassifier(SmallCNN(1, 2, 4), num_classes=2)
    trainer = _trainer(tmp_path)
    from_tuple = torch.cat(trainer.predict(module, _loader(image, target)))  # type: ignore[arg-type]
    rows = [{"image": one, "label": label} for one, label in zip(image, target, strict=True)]
    from_dict = torch.cat(trainer.predict(module, DataLoader(rows, batch_size=4)))  # type: ignore[arg-type]
    torch.testing.assert_close(from_tuple.sum(1), torch.ones(8))
    torch.testing.assert_close(from_tuple, from_dict)


def test_images_are_normalized_inside() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    module = ImageClassifier(nn.Sequential(nn.Flatten()), num_classes=2, mean=mean, std=std)
    image = torch.rand(2, 3, 4, 4)
    expected = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(module(image).view_as(image), expected)
    assert not [key for key in module.state_dict() if key in ("mean", "std")]


def test_soft_targets_and_label_smoothing_follow_cross_entropy(tmp_path: Path) -> None:
    image, target = _data(8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    module = ImageClassifier(net, num_classes=2, label_smoothing=0.1, lr=1e-9)
    soft = F.one_hot(target, 2) * 0.8 + 0.1
    trainer = _trainer(tmp_path, max_epochs=1)
    trainer.fit(module, _loader(image, soft))
    expected = F.cross_entropy(module(image), soft, label_smoothing=0.1)
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_learning_rate_follows_the_schedule_every_step(tmp_path: Path) -> None:
    rates: list[float] = []

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = ImageClassifier(SmallCNN(1, 2, 4), num_classes=2, lr=0.3, schedule="triangular")
    _trainer(tmp_path, max_epochs=5, callbacks=[Record()]).fit(module, _loader(*_data(16)))
    assert rates == pytest.approx([0.0, 0.075, 0.15, 0.225, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05])


def test_a_checkpoint_restores_module_and_settings(tmp_path: Path) -> None:
    module = ImageClassifier(SmallCNN(1, 2, 4), num_classes=2, lr=0.05, mean=[0.5], std=[0.5])
    trainer = _trainer(tmp_path, max_epochs=1)
    trainer.fit(module, _loader(*_data()))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "last.ckpt", net=SmallCNN(1, 2, 4))
    image, _ = _data(4)
    torch.testing.assert_close(loaded.eval()(image), module.eval()(image))
    assert loaded.hparams == module.hparams


def test_a_label_beyond_the_net_is_named(tmp_path: Path) -> None:
    image, target = _data()
    target[20] = 2
    module = ImageClassifier(SmallCNN(1, 2, 4), num_classes=2, schedule="constant")
    with pytest.raises(InputError, match=r"Batch 2 of train holds the label 2, .* from 0 to 1"):
        _trainer(tmp_path, max_epochs=1).fit(module, _loader(image, target))


def test_a_net_with_another_number_of_logits_is_named(tmp_path: Path) -> None:
    module = ImageClassifier(SmallCNN(1, 3, 4), num_classes=2, schedule="constant")
    with pytest.raises(InputError, match=r"returned \(8, 3\) for 8 images.* told of 2 classes: give num_classes=3"):
        _trainer(tmp_path, max_epochs=1).fit(module, _loader(*_data()))


def test_a_schedule_without_an_end_is_refused(tmp_path: Path) -> None:
    module = ImageClassifier(SmallCNN(1, 2, 4), num_classes=2)
    with pytest.raises(InputError, match="set max_epochs or max_steps"):
        _trainer(tmp_path, max_epochs=-1).fit(module, _loader(*_data()))


@pytest.mark.parametrize(
    "options", [{"num_classes": 1}, {"lr": 0.0}, {"label_smoothing": 1.0}, {"mean": [0.5]}, {"std": [0.5]}]
)
def test_bad_arguments_are_named(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ImageClassifier(SmallCNN(), **options)  # type: ignore[arg-type]
