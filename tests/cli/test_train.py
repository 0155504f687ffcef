"""fit, validate, test and predict from the command line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import yaml

from lightning_robust.cli.main import main

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

MODEL = ["--model=ImageClassifier", "--model.net=SmallCNN"]
NOT_SHOWN = "usage:"


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-robust"])


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert NOT_SHOWN not in error
    assert len(error.splitlines()) <= 6
    return error


def _config(folder: Path, **changes: object) -> list[str]:
    base = {"model": {"class_path": "ImageClassifier", "init_args": {"net": "lightning_robust.models.SmallCNN"}}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(base | changes))
    return ["fit", "--config", str(path)]


@pytest.mark.parametrize(
    ("changes", "found", "meant"),
    [
        ({"trainer": {"max_epoch": 3}}, "trainer.max_epoch", "trainer.max_epochs"),
        ({"trainr": {"max_epochs": 3}}, "trainr.max_epochs", "trainer.max_epochs"),
        ({"trainer": {"callbacks": [{"class_path": "FrequencyPoolin"}]}}, "FrequencyPoolin", "FrequencyPooling"),
        (
            {"trainer": {"callbacks": [{"class_path": "FrequencyPooling", "init_args": {"ordr": "lowpass"}}]}},
            "ordr",
            "order",
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "FrequencyPooling", "init_args": {"order": "low_pass"}}]}},
            "low_pass",
            "lowpass",
        ),
        ({"data": {"class_path": "ShardDataModule", "init_args": {"batchsize": 3}}}, "batchsize", "batch_size"),
    ],
    ids=["trainer", "group", "callback", "callback argument", "callback value", "data argument"],
)
def test_a_wrong_key_in_a_config_is_named_with_the_right_one(
    tmp_path: Path, changes: dict[str, object], found: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = _error(_config(tmp_path, **changes), capsys)
    assert found in error
    assert f"Did you mean '{meant}'?" in error


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([*MODEL, "--trainer.max_epohcs=3"], "Did you mean 'trainer.max_epochs'?"),
        ([*MODEL, "--model.lr=fast"], "lr should be float, not 'fast'"),
        ([*MODEL, "--trainer.max_epochs=many"], "trainer.max_epochs should be int or None, not 'many'"),
        ([*MODEL, "--model.momentm=0.1"], "Did you mean 'momentum'? It belongs to ImageClassifier."),
        ([*MODEL, "--model.alpha=0.1"], "'alpha' belongs to PreemptiveSharpening, which is not the class"),
        (["--model=ImageClasifier"], "Did you mean 'ImageClassifier'?"),
        (["--config", "missing.yaml"], "missing.yaml"),
        ([], "There is no model."),
    ],
)
def test_a_wrong_flag_is_one_sentence(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in _error(["fit", *flags], capsys)


def test_help_of_a_command_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["test", "--help"])
    assert stop.value.code == 0
    assert "--ckpt_path" in capsys.readouterr().out
