"""Every built-in configuration runs as it stands."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_robust.cli.builtin import config_names
from lightning_robust.cli.main import main
from lightning_robust.shards import pack
from lightning_robust.shards.sources import ArraySamples

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
SAMPLES = 20
# side and classes of the data that a configuration is for, where they are not those of CIFAR-10
DATA = {"jafr_cifar100": (32, 100), "jafr_tinyimagenet": (64, 200)}


def _pack(folder: Path, side: int, classes: int) -> str:
    """The classes run from the first to the last, so that a configuration for fewer is refused."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SAMPLES, side, side, 3), dtype=np.uint8)
    pack(ArraySamples(images, np.arange(SAMPLES) % 10 * (classes - 1) // 9), folder)
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _pack(tmp_path_factory.mktemp("shards"), 32, 10)


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-robust"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _sets(name: str, shards: str) -> list[str]:
    if name == "demo":
        return []
    size = 2 if name.startswith("jafr_") else 4  # a large net
    small = [f"--data.batch_size={size}", f"--data.eval_batch_size={size}", "--data.num_workers=0"]
    return [f"--data.train={shards}", f"--data.val={shards}", f"--data.test={shards}", *small]


@pytest.mark.parametrize("name", config_names())
def test_a_config_runs_as_it_stands(name: str, shards: str, tmp_path: Path) -> None:
    if name in DATA:
        shards = _pack(tmp_path / "own", *DATA[name])
    run = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config", name, *_sets(name, shards), *run]) == 0


def test_fit_then_test_through_the_command(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was trained with swapped layers is tested with them, from the checkpoint that fit left."""
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    short = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={tmp_path}"]
    sets = _sets("cifar10_robust", shards)
    assert main(["fit", "--config", "cifar10_robust", *sets, *quiet, *short]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    assert content["global_step"] == SAMPLES // 4
    capsys.readouterr()
    assert main(["test", "--config", "cifar10_robust", *sets, *quiet, f"--ckpt_path={checkpoint}"]) == 0
    assert "test_accuracy" in capsys.readouterr().out


def test_callbacks_are_added_by_short_name(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The merged configuration shows what runs; options after a callback are its own."""
    arguments = ["fit", "--config", "cifar10_resnet20", *_sets("cifar10_resnet20", shards)]
    added = ["--trainer.callbacks+=FrequencyPooling", "--trainer.callbacks.pool=flc", "--print_config"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *added])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "lightning_robust.callbacks.FrequencyPooling" in printed
    assert "pool: flc" in printed
    assert printed.count("BatchAugmentation") == 2, "those of the configuration stay"


def test_a_missing_shard_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--config", "cifar10_resnet20", f"--data.train={tmp_path / 'none-{0..3}.tar'}"]
    assert main([*arguments, "--trainer.accelerator=cpu", "--trainer.logger=false"]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert "none-0.tar" in error
    assert "Traceback" not in error
