"""What an installed package holds."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import lightning_robust

ROOT = Path(__file__).parent.parent


def test_version_is_stated_once_and_alike() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == lightning_robust.__version__


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import lightning_robust, sys; print(sorted({'torch', 'numpy', 'pytorch_lightning'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel")
    (path,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {
        "lightning_robust", f"lightning_robust-{lightning_robust.__version__}.dist-info"
    }  # fmt: skip
    assert "lightning_robust/py.typed" in names
    shipped = {Path(name).name for name in names if name.startswith("lightning_robust/configs/")}
    assert shipped == {path.name for path in (ROOT / "configs").iterdir()}
    assert any(name.endswith("licenses/LICENSE") for name in names)
