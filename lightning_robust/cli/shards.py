"""``lightning-robust shards``: pack, index and look at shard sets.

numpy, OpenCV and webdataset are imported by the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import io
import sys

from lightning_robust.cli import (
    shards_head,
    shards_index,
    shards_merge,
    shards_pack,
    shards_robustify,
    shards_split,
    shards_verify,
)
from lightning_robust.cli.suggest import did_you_mean
from lightning_robust.errors import RobustError


def main(argv: list[str]) -> int:
    """Run a shards command.

    Args:
        argv: the arguments after ``shards``.

    Returns:
        The exit status: 0, or 1 with one sentence on stderr. A wrong option exits with 2, as argparse does.
    """
    options = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of classes may not be of the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options.run(options)
    except (RobustError, OSError) as error:
        print(f"lightning-robust shards {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the arguments after ``shards``; a wrong one ends the program with status 2 and a suggestion."""
    parser, commands = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        parser.error(f"there is no command {argv[0]!r}.{did_you_mean(argv[0], commands)}")
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        command = commands[options.command]
        known = [name for action in command._actions for name in action.option_strings]
        meant = did_you_mean(unknown[0].partition("=")[0], known) if unknown[0].startswith("-") else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}.{meant}")
    return options


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="lightning-robust shards", description="Pack images to WebDataset shards, index shards, look at them."
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{pack,index,info,head,verify,split,merge,robustify}"
    )
    shards_pack.add(commands)
    shards_index.add_index(commands)
    shards_index.add_info(commands)
    shards_head.add(commands)
    shards_verify.add(commands)
    shards_split.add(commands)
    shards_merge.add(commands)
    shards_robustify.add(commands)
    return parser, commands.choices
