"""``lightning-robust shards``: pack, index and look at shard sets.

numpy, OpenCV and webdataset are imported by the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from lightning_robust.cli.suggest import did_you_mean
from lightning_robust.errors import InputError, RobustError

if TYPE_CHECKING:
    from lightning_robust.shards.index import ShardIndex
    from lightning_robust.shards.remote import RemoteOptions

_SHARDS_HELP = "path or URL, glob, 'brace{000..003}.tar' pattern, or folder of .tar files (a URL ends in a slash then)"
_MAX_CLASSES_SHOWN = 20


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
    from lightning_robust.cli import (
        shards_head,
        shards_merge,
        shards_pack,
        shards_robustify,
        shards_split,
        shards_verify,
    )

    parser = argparse.ArgumentParser(
        prog="lightning-robust shards", description="Pack images to WebDataset shards, index shards, look at them."
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{pack,index,info,head,verify,split,merge,robustify}"
    )
    shards_pack.add(commands)
    _add_index(commands)
    _add_info(commands)
    shards_head.add(commands)
    shards_verify.add(commands)
    shards_split.add(commands)
    shards_merge.add(commands)
    shards_robustify.add(commands)
    return parser, commands.choices


def at_least(least: int) -> Callable[[str], int]:
    """Type of an option that takes whole numbers from ``least`` on."""

    def number(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return number


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str, example: str
) -> argparse.ArgumentParser:
    """Add the parser of a command, whose help ends with an example."""
    return commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"example:\n  lightning-robust shards {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_index(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = "'shards/train-*.tar'"
    parser = add_command(commands, "index", "Check the structure of shards and write index.json beside them.", example)
    add_set_options(parser)
    parser.add_argument("--rebuild", action="store_true", help="scan again, whatever the index says")
    parser.add_argument("--dry-run", action="store_true", help="scan and check, and write nothing")
    parser.set_defaults(run=_index)


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(commands, "info", "Print what a shard set holds; writes nothing.", "shards/train --checksums")
    add_set_options(parser)
    parser.add_argument("--checksums", action="store_true", help="compare each shard with the SHA-256 in the index")
    parser.set_defaults(run=_info)


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """Add the shards to read, and how they are read, to the options of a command."""
    parser.add_argument("shards", nargs="+", help=_SHARDS_HELP)
    keys = "jpg,jpeg,png,webp"
    parser.add_argument("--image-keys", default=keys, help=f"extensions of the image (default: {keys})")
    parser.add_argument("--label-key", default="cls", help="extension of the label (default: cls)")
    parser.add_argument("--no-labels", action="store_true", help="the set has no labels")
    parser.add_argument("--cache-dir", metavar="DIR", help="where shards at URLs are kept (default: the user's cache)")
    tries = "tries in a row without a new byte after which a URL is given up (default: 8, about two minutes)"
    parser.add_argument("--attempts", type=at_least(1), default=8, metavar="N", help=tries)


def remote_options(options: argparse.Namespace) -> RemoteOptions:
    """How shards at URLs are fetched, by the options of :func:`add_set_options`."""
    from lightning_robust.shards.remote import RemoteOptions

    return RemoteOptions(cache_dir=options.cache_dir, attempts=options.attempts)


def add_writing_options(parser: argparse.ArgumentParser) -> None:
    """Add how shards are written to the options of a command."""
    parser.add_argument("--samples-per-shard", type=at_least(1), default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--max-bytes", type=at_least(1), metavar="N", help="most bytes in a shard (default: no limit)")
    parser.add_argument("--overwrite", action="store_true", help="replace shards of the same names")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")


def counted(number: int, thing: str, plural: str = "s") -> str:
    """A number and what it counts: ``"1 shard"``, ``"2 shards"``."""
    return f"{number} {thing}{'' if number == 1 else plural}"


def shards_needed(samples: int, options: argparse.Namespace) -> str:
    """How many shards samples will fill."""
    shards = counted(-(-samples // options.samples_per_shard), "shard")
    return shards + ("" if options.max_bytes is None else " or more (--max-bytes)")


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


def open_set(options: argparse.Namespace, *, write: bool, rebuild: bool) -> ShardIndex:
    """Open the index of the shards that the options of :func:`add_set_options` name."""
    from lightning_robust.shards.opening import open_index

    return open_index(
        options.shards,
        image_keys=options.image_keys.split(","),
        label_key=None if options.no_labels else options.label_key,
        progress=True,
        write=write,
        rebuild=rebuild,
        remote=remote_options(options),
    )


def print_totals(index: ShardIndex) -> None:
    """Print the size of a set."""
    classes = "" if index.classes is None else f", {counted(len(index.classes), 'class', 'es')}"
    samples, shards = counted(len(index), "sample"), counted(len(index.paths), "shard")
    print(f"{samples} in {shards}, {int(index.sizes.sum())} bytes{classes}")
    print(f"fingerprint {index.fingerprint[:16]}")


def print_histogram(targets: Iterable[int] | Mapping[int, int], classes: tuple[str, ...] | None) -> None:
    """Print how many samples each class has, given the class of each or the count of each class."""
    from collections import Counter

    counts = Counter(targets)
    numbers = sorted(counts) if classes is None else range(len(classes))
    for number in list(numbers)[:_MAX_CLASSES_SHOWN]:
        name = "" if classes is None else f" {classes[number]}"
        print(f"  class {number:>4}{name}: {counts[number]}")
    if len(numbers) > _MAX_CLASSES_SHOWN:
        smallest, largest = min(counts.values()), max(counts.values())
        print(f"  ... {len(numbers)} classes, {smallest} to {largest} samples in those that have any")
