"""``lightning-robust shards split``."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_robust.cli.shards_common import (
    add_command,
    add_set_options,
    add_writing_options,
    counted,
    print_histogram,
    print_totals,
    remote_options,
    shards_needed,
)
from lightning_robust.errors import InputError

if TYPE_CHECKING:
    from lightning_robust.shards.split import SplitPlan


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    example = "shards/all shards/parts --fractions train=0.9 val=0.1 --stratify"
    parser = add_command(commands, "split", "Copy each sample of a set to one of several parts.", example)
    add_set_options(parser)
    parser.add_argument("destination", help="folder of the parts: NAME-000000.tar, ...")
    parser.add_argument(
        "--fractions", nargs="+", required=True, type=_fraction, metavar="NAME=SHARE", help="such as 0.9 or 2/3; sum: 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--stratify", action="store_true", help="divide each class by the fractions")
    add_writing_options(parser)
    parser.set_defaults(run=_split)


def reading_options(options: argparse.Namespace) -> dict[str, Any]:
    """How sets are read, as the library's functions take it."""
    return {
        "image_keys": options.image_keys.split(","),
        "label_key": None if options.no_labels else options.label_key,
        "overwrite": options.overwrite,
        "progress": True,
        "remote": remote_options(options),
    }


def _split(options: argparse.Namespace) -> None:
    from lightning_robust.shards.split import plan_split, split_shards

    fractions = dict(options.fractions)
    if len(fractions) < len(options.fractions):
        raise InputError("A part is named twice. Give each name once.")
    drawn = {"seed": options.seed, "stratify": options.stratify} | reading_options(options)
    if options.dry_run:
        _print_plan(plan_split(options.shards, options.destination, fractions, **drawn), options)
        return
    sizes = {"samples_per_shard": options.samples_per_shard, "max_bytes": options.max_bytes}
    for name, index in split_shards(options.shards, options.destination, fractions, **sizes, **drawn).items():
        print(f"{name}:")
        print_totals(index)


def _print_plan(plan: SplitPlan, options: argparse.Namespace) -> None:
    from collections import Counter

    home = Path(options.destination)
    for number, name in enumerate(plan.new.names):
        ours = plan.parts == number
        count = int(ours.sum())
        samples, shards = counted(count, "sample"), shards_needed(count, options)
        print(f"Would write {samples} to {shards}: {home / name}-000000.tar, ...")
        if plan.index.labels is not None:
            print_histogram(Counter(plan.index.labels[ours].tolist()), plan.index.classes)


def _fraction(text: str) -> tuple[str, Fraction]:
    name, _, share = text.partition("=")
    try:
        return name, Fraction(share)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=SHARE, such as train=0.9") from None
