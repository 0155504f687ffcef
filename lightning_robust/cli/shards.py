"""``lightning-robust shards``: pack, index and look at shard sets.

numpy, OpenCV and webdataset are imported by the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.errors import RobustError

if TYPE_CHECKING:
    from lightning_robust.shards.index import ShardIndex
    from lightning_robust.shards.sources import SampleSource

_SHARDS_HELP = "path or URL, glob, 'brace{000..003}.tar' pattern, or folder of .tar files (a URL ends in a slash then)"
_MAX_CLASSES_SHOWN = 20


def main(argv: list[str]) -> int:
    """Run a shards command.

    Args:
        argv: the arguments after ``shards``.

    Returns:
        The exit status: 0, or 1 with one sentence on stderr. A wrong option exits with 2, as argparse does.
    """
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (RobustError, OSError) as error:
        print(f"lightning-robust shards {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-robust shards", description="Pack images to WebDataset shards, index shards, look at them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{pack,index,info}")
    _add_pack(commands)
    _add_index(commands)
    _add_info(commands)
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str, example: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"example:\n  lightning-robust shards {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_pack(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = "photos/train shards/train --shuffle-seed 0"
    parser = _add(commands, "pack", "Write images to shards and index them.", example)
    parser.add_argument("source", help="image folder with a subfolder per class, CSV list, or CIFAR binary archive")
    parser.add_argument("folder", help="where the shards go")
    parser.add_argument("--format", choices=("auto", "folder", "csv", "cifar"), default="auto", help="of the source")
    parser.add_argument("--name", default="shard", help="begins the file names (default: shard)")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="most bytes in a shard (default: no limit)")
    parser.add_argument("--shuffle-seed", type=int, metavar="SEED", help="shuffle the samples, reproducibly")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, in the order of their numbers")
    parser.add_argument("--image-column", default="path", help="of a CSV list (default: path)")
    parser.add_argument("--label-column", default="label", help="of a CSV list (default: label)")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="of CIFAR (default: train)")
    parser.add_argument("--labels", choices=("fine", "coarse"), default="fine", help="of CIFAR-100 (default: fine)")
    parser.add_argument("--overwrite", action="store_true", help="replace shards of this name")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    parser.set_defaults(run=_pack)


def _add_index(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = "'shards/train-*.tar'"
    parser = _add(commands, "index", "Check the structure of shards and write index.json beside them.", example)
    _add_set_options(parser)
    parser.add_argument("--rebuild", action="store_true", help="scan again, whatever the index says")
    parser.add_argument("--dry-run", action="store_true", help="scan and check, and write nothing")
    parser.set_defaults(run=_index)


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "info", "Print what a shard set holds; writes nothing.", "shards/train --checksums")
    _add_set_options(parser)
    parser.add_argument("--checksums", action="store_true", help="compare each shard with the SHA-256 in the index")
    parser.set_defaults(run=_info)


def _add_set_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", help=_SHARDS_HELP)
    parser.add_argument("--image-keys", default="jpg,jpeg,png,webp", help="extensions of the image, comma-separated")
    parser.add_argument("--label-key", default="cls", help="extension of the label (default: cls)")
    parser.add_argument("--no-labels", action="store_true", help="the set has no labels")
    parser.add_argument("--cache-dir", metavar="DIR", help="where shards at URLs are kept (default: the user's cache)")


def _pack(options: argparse.Namespace) -> None:
    from lightning_robust.shards.packing import check_destination, check_limits, pack

    folder = Path(options.folder)
    check_limits(name=options.name, samples_per_shard=options.samples_per_shard, max_bytes=options.max_bytes)
    source = _source(options)
    if options.dry_run:
        check_destination(folder, name=options.name, classes=source.classes, overwrite=options.overwrite)
        shards = -(-len(source) // options.samples_per_shard)
        more = "" if options.max_bytes is None else " or more (--max-bytes)"
        first = source[0]
        print(f"Would write {len(source)} samples to {shards} shards{more}: {folder / options.name}-000000.tar, ...")
        print(f"First sample: key {first.key}, target {first.target}.")
        _print_histogram(source.targets.tolist(), source.classes)
        return
    index = pack(
        source,
        folder,
        samples_per_shard=options.samples_per_shard,
        max_bytes=options.max_bytes,
        name=options.name,
        classes=source.classes,
        shuffle_seed=options.shuffle_seed,
        progress=True,
        overwrite=options.overwrite,
    )
    _print_totals(index)


def _index(options: argparse.Namespace) -> None:
    index = _open(options, write=not options.dry_run, rebuild=options.rebuild)
    _print_totals(index)
    if options.dry_run:
        print("Nothing was written (--dry-run).")


def _info(options: argparse.Namespace) -> None:
    from lightning_robust.shards.checksums import check_checksums
    from lightning_robust.shards.urls import base_name

    index = _open(options, write=False, rebuild=False)
    _print_totals(index)
    names = [base_name(path) for path in index.paths]
    width = max(map(len, names))
    for name, count, size in zip(names, index.counts.tolist(), index.sizes.tolist(), strict=True):
        print(f"  {name:<{width}}  {count:>9} samples  {size:>14} bytes")
    images = index.table["size"]
    print(f"image bytes: smallest {images.min()}, mean {images.mean():.0f}, largest {images.max()}")
    if index.labels is not None:
        _print_histogram(index.labels.tolist(), index.classes)
    if options.checksums:
        checked = check_checksums(index, progress=True)
        print(f"SHA-256 of {checked} of {len(index.paths)} shards is that of the index; the others have none there.")


def _open(options: argparse.Namespace, *, write: bool, rebuild: bool) -> ShardIndex:
    from lightning_robust.shards.opening import open_index
    from lightning_robust.shards.remote import RemoteOptions

    return open_index(
        options.shards,
        image_keys=options.image_keys.split(","),
        label_key=None if options.no_labels else options.label_key,
        progress=True,
        write=write,
        rebuild=rebuild,
        remote=RemoteOptions(cache_dir=options.cache_dir),
    )


def _source(options: argparse.Namespace) -> SampleSource:
    from lightning_robust.shards.sources import cifar_binary, csv_list, image_folder

    source = Path(options.source)
    classes = Path(options.classes).read_text(encoding="utf-8").splitlines() if options.classes else None
    kind = options.format if options.format != "auto" else _guess(source)
    if kind == "csv":
        return csv_list(source, image_column=options.image_column, label_column=options.label_column, classes=classes)
    if kind == "cifar":
        return cifar_binary(source, options.split, labels=options.labels)
    return image_folder(source, classes=classes)


def _guess(source: Path) -> str:
    if source.suffix.lower() == ".csv":
        return "csv"
    if source.name.endswith((".tar.gz", ".tgz", ".tar")) or any(source.glob("**/*_batch*.bin")):
        return "cifar"
    return "cifar" if any((source / sub / "train.bin").is_file() for sub in ("", "cifar-100-binary")) else "folder"


def _print_totals(index: ShardIndex) -> None:
    classes = "" if index.classes is None else f", {len(index.classes)} classes"
    print(f"{len(index)} samples in {len(index.paths)} shards, {int(index.sizes.sum())} bytes{classes}")
    print(f"fingerprint {index.fingerprint[:16]}")


def _print_histogram(targets: list[int], classes: tuple[str, ...] | None) -> None:
    from collections import Counter

    counts = Counter(targets)
    numbers = sorted(counts) if classes is None else range(len(classes))
    for number in list(numbers)[:_MAX_CLASSES_SHOWN]:
        name = "" if classes is None else f" {classes[number]}"
        print(f"  class {number:>4}{name}: {counts[number]}")
    if len(numbers) > _MAX_CLASSES_SHOWN:
        smallest, largest = min(counts.values()), max(counts.values())
        print(f"  ... {len(numbers)} classes, {smallest} to {largest} samples in those that have any")
