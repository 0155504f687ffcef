"""``lightning-robust shards merge``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_robust.cli.shards_common import (
    add_command,
    add_set_options,
    add_writing_options,
    counted,
    print_totals,
    shards_needed,
)
from lightning_robust.cli.shards_split import reading_options


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    example = "shards/first 'shards/second/train-*.tar' --out shards/both --rename-keys"
    parser = add_command(commands, "merge", "Copy the samples of several sets to one; each argument is a set.", example)
    add_set_options(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the merged set goes")
    parser.add_argument("--name", default="shard", help="begins the file names (default: shard)")
    parser.add_argument("--rename-keys", action="store_true", help="put the name of its set before each key")
    add_writing_options(parser)
    parser.set_defaults(run=_merge)


def _merge(options: argparse.Namespace) -> None:
    from lightning_robust.shards.merge import merge_shards, plan_merge

    settings = {"name": options.name, "rename_keys": options.rename_keys} | reading_options(options)
    if not options.dry_run:
        sizes = {"samples_per_shard": options.samples_per_shard, "max_bytes": options.max_bytes}
        print_totals(merge_shards(options.shards, options.out, **sizes, **settings))
        return
    plan = plan_merge(options.shards, options.out, **settings)
    for index, name, prefix in zip(plan.indexes, plan.names, plan.prefixes, strict=True):
        print(f"{name}: {counted(len(index), 'sample')}" + (f", keys {prefix}..." if prefix else ""))
    count = sum(map(len, plan.indexes))
    first = f"{Path(options.out) / options.name}-000000.tar"
    print(f"Would write {counted(count, 'sample')} to {shards_needed(count, options)}: {first}, ...")
