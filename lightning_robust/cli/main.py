"""Entry of the ``lightning-robust`` command: what needs no torch is answered here, the rest is imported on demand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_robust import __version__
from lightning_robust.cli.suggest import did_you_mean
from lightning_robust.errors import RobustError

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
COMMANDS = (*TRAINER_COMMANDS, "demo", "shards", "configs")

HELP = """\
usage: lightning-robust COMMAND ...

Robust image models for PyTorch Lightning.

  fit, validate, test, predict   run a Trainer from a configuration and options
  demo                           train a small net twice and print what the callbacks changed
  shards                         pack, index and check WebDataset shards
  configs                        list the built-in configurations, or print one

  lightning-robust fit --config demo
  lightning-robust fit --config cifar10_resnet20 --data.train 'DIR/train/*.tar' --data.val 'DIR/test/*.tar'
  lightning-robust fit --config my.yaml --trainer.callbacks+=FrequencyPooling

Add --help after a command for its options; --version prints the version.
"""

CONFIGS_HELP = """\
usage: lightning-robust configs [NAME]

Without NAME: list the built-in configurations. With NAME: print that one, to be saved and edited.
Any of them runs by name: lightning-robust fit --config NAME
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for an error of the run, 2 for a wrong command line.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"lightning-robust {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"error: There is no command {command!r}.{did_you_mean(command, COMMANDS)}", file=sys.stderr)
        print(f"Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        return _run(command, rest)
    except RobustError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(command: str, arguments: list[str]) -> int:
    if command == "configs":
        return _configs(arguments)
    if command == "shards":
        from lightning_robust.cli import shards

        return shards.main(arguments)
    if command == "demo":
        from lightning_robust.cli import demo

        return demo.main(arguments)
    from lightning_robust.cli import builtin

    try:
        arguments = builtin.resolve_names(arguments)
    except RobustError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from lightning_robust.cli import train

    return train.main(command, arguments)


def _configs(arguments: list[str]) -> int:
    from lightning_robust.cli import builtin

    if arguments and arguments[0] in ("-h", "--help"):
        print(CONFIGS_HELP, end="")
        return 0
    if arguments:
        try:
            print(builtin.config_path(arguments[0]).read_text(encoding="utf-8"), end="")
        except RobustError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    names = builtin.config_names()
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {builtin.summary(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
