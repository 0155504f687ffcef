"""``lightning-robust shards index`` and ``info``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lightning_robust.cli.shards_common import (
    add_command,
    add_set_options,
    counted,
    open_set,
    print_histogram,
    print_totals,
)
from lightning_robust.errors import InputError

if TYPE_CHECKING:
    from lightning_robust.shards.index import ShardIndex


def add_index(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``index``."""
    example = "'shards/train-*.tar'"
    parser = add_command(commands, "index", "Check the structure of shards and write index.json beside them.", example)
    add_set_options(parser)
    parser.add_argument("--rebuild", action="store_true", help="scan again, whatever the index says")
    parser.add_argument("--dry-run", action="store_true", help="scan and check, and write nothing")
    parser.set_defaults(run=_index)


def add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``info``."""
    parser = add_command(commands, "info", "Print what a shard set holds; writes nothing.", "shards/train --checksums")
    add_set_options(parser)
    parser.add_argument("--checksums", action="store_true", help="compare each shard with the SHA-256 in the index")
    parser.set_defaults(run=_info)


def _index(options: argparse.Namespace) -> None:
    index = open_set(options, write=not options.dry_run, rebuild=options.rebuild)
    print_totals(index)
    if options.dry_run:
        print("Nothing was written (--dry-run).")


def _info(options: argparse.Namespace) -> None:
    from lightning_robust.shards.checksums import check_checksums
    from lightning_robust.shards.urls import base_name

    index = open_set(options, write=False, rebuild=False)
    print_totals(index)
    names = [base_name(path) for path in index.paths]
    width = max(map(len, names))
    for name, count, size in zip(names, index.counts.tolist(), index.sizes.tolist(), strict=True):
        print(f"  {name:<{width}}  {count:>9} samples  {size:>14} bytes")
    images = index.table["size"]
    print(f"image bytes: smallest {images.min()}, mean {images.mean():.0f}, largest {images.max()}")
    if index.labels is not None:
        print_histogram(index.labels.tolist(), index.classes)
    _print_provenance(index)
    if options.checksums:
        checked = check_checksums(index, progress=True)
        shards = counted(len(index.paths), "shard")
        others = "" if checked == len(index.paths) else "; the others have none there"
        print(f"SHA-256 of {checked} of {shards} is that of the index{others}.")


def _print_provenance(index: ShardIndex) -> None:
    from lightning_robust.shards.provenance import members_known, sharpening_of

    if members := members_known(index):
        print(f"further members: {', '.join(f'.{extension}' for extension in members)}")
    try:
        sharpened = sharpening_of(index)
    except InputError as error:
        print(f"note: {error}")
        return
    if sharpened is not None:
        print(f"sharpened: {', '.join(f'{name} {value}' for name, value in sharpened.items() if value is not None)}")
