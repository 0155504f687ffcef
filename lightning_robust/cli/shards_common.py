"""What the shards commands share: options, how a set is opened, and how it is told of."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_robust.shards.index import ShardIndex
    from lightning_robust.shards.remote import RemoteOptions

_SHARDS_HELP = "path or URL, glob, 'brace{000..003}.tar' pattern, or folder of .tar files (a URL ends in a slash then)"
_MAX_CLASSES_SHOWN = 20


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
