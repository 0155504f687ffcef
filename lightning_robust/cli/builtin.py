"""The configurations that travel with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning_robust
from lightning_robust.cli.suggest import did_you_mean
from lightning_robust.errors import InputError

_FLAGS = ("--config", "-c")


def config_folder() -> Path:
    """Folder of the YAML files: inside an installed package, beside the package in a checkout."""
    package = Path(lightning_robust.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Names of the built-in configurations."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def config_path(name: str) -> Path:
    """Find a configuration by name.

    Raises:
        InputError: if there is none, with the names there are.
    """
    if name not in config_names():
        raise InputError(
            f"There is no file and no built-in configuration named {name!r}."
            f"{did_you_mean(name, config_names())} Built-in configurations: {', '.join(config_names())}."
        )
    return config_folder() / f"{name}.yaml"


def summary(name: str) -> str:
    """First comment line of a configuration, which says what it trains."""
    return config_path(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def resolve_names(arguments: Sequence[str]) -> list[str]:
    """Replace ``--config NAME`` by ``--config PATH`` where NAME is a built-in configuration and no file.

    Raises:
        InputError: if a bare name is neither.
    """
    resolved = list(arguments)
    for place, argument in enumerate(arguments):
        flag, separator, value = argument.partition("=")
        if separator and flag in _FLAGS:
            resolved[place] = f"{flag}={_resolve(value)}"
        elif argument in _FLAGS and place + 1 < len(arguments):
            resolved[place + 1] = _resolve(arguments[place + 1])
    return resolved


def _resolve(value: str) -> str:
    is_path = "/" in value or Path(value).suffix in (".yaml", ".yml", ".json") or Path(value).is_file()
    return value if is_path else str(config_path(value))
