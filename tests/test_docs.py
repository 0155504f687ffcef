"""The code in README and docs runs, and the commands in them exist."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from lightning_robust.cli import shards
from lightning_robust.cli.builtin import config_names
from lightning_robust.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}(?:lightning-robust|make|python) .*\n(?: {8,}.*\n)*)+")
COMMANDS_OF_SHARDS = {"pack", "index", "info", "head", "verify", "split", "merge", "robustify"}
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


def _blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def _shell_blocks(page: Path) -> list[str]:
    indented = INDENTED.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return [*_blocks(page, "", "bash", "sh", "console"), *indented]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of images that pages speak of, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for label in ("cat", "dog"):
        folder = tmp_path / "photos" / "train" / label
        folder.mkdir(parents=True)
        for number in range(10):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((32, 32, 3), 20 * number, np.uint8))


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.filterwarnings(
    "ignore:.*no `val_dataloader`.*",
    "ignore:.*GPU available but not used.*",
    "ignore:.*Checkpoint directory.*",
)
@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")], ids=_name)
def test_python_blocks_run_one_after_another(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    namespace: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(_blocks(page, "python")):
        exec(compile(block, f"{_name(page)}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in _shell_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "lightning-robust" in words[:-1]:
                command = words[words.index("lightning-robust") + 1]
                assert command in COMMANDS, f"{line!r} names no command"
                if command == "shards":
                    shards.parse(words[words.index("shards") + 1 :])  # exits on a wrong option
            if "--config" in words[:-1] and not words[words.index("--config") + 1].endswith((".yaml", "NAME")):
                assert words[words.index("--config") + 1] in config_names(), f"{line!r} names no configuration"
            if words[:1] == ["make"]:
                assert words[1] in targets, f"{line!r} names no target"


def test_indented_commands_are_read() -> None:
    blocks = _shell_blocks(ROOT / "docs" / "shards.md")
    assert {line.split()[2] for block in blocks for line in block.splitlines()} == COMMANDS_OF_SHARDS


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        assert (page.parent / link).exists(), f"{_name(page)} links to {link}, which does not exist"


def test_faults_are_injected_by_the_tests_that_the_table_names() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file} has no {test}"
