"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with short names and short errors."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from jsonargparse._deprecated import JsonargparseDeprecationWarning
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

# classes are known by their short names once they are imported
import lightning_robust.callbacks
import lightning_robust.cli.demo_module
import lightning_robust.datamodules
import lightning_robust.models  # noqa: F401
from lightning_robust.cli.messages import explain


class ShortErrorParser(LightningArgumentParser):
    """Parser whose errors are a sentence and a suggestion instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print what is wrong and leave with status 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        print(f"error: {explain(message, parser)}", file=sys.stderr)
        raise SystemExit(2)


class RobustCLI(LightningCLI):
    """LightningCLI that builds the parser of the one command that runs (all of them take five times as long)."""

    def __init__(self, command: str) -> None:
        self.command = command
        super().__init__(
            parser_class=ShortErrorParser, save_config_kwargs={"overwrite": True}, seed_everything_default=0
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that was asked for."""
        return {self.command: LightningCLI.subcommands()[self.command]}


def main(command: str, arguments: list[str]) -> int:
    """Run a Trainer command.

    Args:
        command: fit, validate, test or predict.
        arguments: what follows it, with names of built-in configurations already resolved.
    """
    # LightningCLI, and the processes that DDP starts, read the arguments from here; the program's path stays
    sys.argv[1:] = [command, *arguments]
    with warnings.catch_warnings():
        # pytorch_lightning 2.6 calls names that jsonargparse 4.53 deprecates; nothing a user can do about it
        warnings.filterwarnings("ignore", category=JsonargparseDeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
        RobustCLI(command)
    return 0
