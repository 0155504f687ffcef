"""What the command answers without torch, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lightning_robust import __version__
from lightning_robust.cli import builtin
from lightning_robust.cli.main import main

HEAVY = ("torch", "pytorch_lightning", "lightning", "kornia", "webdataset", "cv2", "matplotlib", "mlxtend")


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["--version"], ["configs"], ["configs", "demo"], ["shards", "--help"], ["demo", "-h"]]
)
def test_quick_answers_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import json, sys\n"
        "from lightning_robust.cli.main import main\n"
        "try: status = main(json.loads(sys.argv[1]))\n"
        "except SystemExit as stop: status = stop.code\n"
        f"print('LOADED', sorted(set(sys.modules) & set({HEAVY!r})), status, file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, json.dumps(arguments)], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] in ("LOADED [] 0", "LOADED [] None"), run.stderr
    assert run.stdout.strip()


def test_version_and_help_name_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lightning-robust {__version__}"
    assert main(["--help"]) == 0
    assert {"fit", "demo", "shards", "configs"} <= set(capsys.readouterr().out.split())


def test_an_unknown_command_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard"]) == 2
    assert "Did you mean 'shards'?" in capsys.readouterr().err


def test_configs_lists_every_file_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in builtin.config_folder().glob("*.yaml"))
    assert all(len(line.split()) > 3 for line in lines)


def test_configs_prints_one_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "demo"]) == 0
    assert capsys.readouterr().out == (builtin.config_folder() / "demo.yaml").read_text()


@pytest.mark.parametrize("arguments", [["configs", "dmo"], ["fit", "--config", "dmo"], ["fit", "--config=dmo"]])
def test_a_wrong_config_name_lists_the_right_ones(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'demo'?" in error
    assert all(name in error for name in builtin.config_names())


def test_names_become_paths_and_paths_stay() -> None:
    demo = str(builtin.config_folder() / "demo.yaml")
    assert builtin.resolve_names(["-c", "demo", "--trainer.max_epochs", "1"]) == [
        "-c", demo, "--trainer.max_epochs", "1"
    ]  # fmt: skip
    assert builtin.resolve_names(["--config=demo", "--config", "mine/a.yaml"]) == [
        f"--config={demo}", "--config", "mine/a.yaml"
    ]  # fmt: skip
    assert builtin.resolve_names(["--model", "demo"]) == ["--model", "demo"]
