"""``lightning-robust shards pack``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.cli.shards import add_command, add_writing_options, print_histogram, print_totals, shards_needed
from lightning_robust.errors import InputError

if TYPE_CHECKING:
    from lightning_robust.shards.sources import SampleSource

_SPLITS = {"train", "val", "valid", "validation", "test"}
_LISTS = ("csv", "jsonl", "parquet")
_FORMATS = ("folder", *_LISTS, "cifar", "svhn", "tinyimagenet")
_BY_SUFFIX = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".mat": "svhn"}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    example = "photos/train shards/train --shuffle-seed 0"
    parser = add_command(commands, "pack", "Write images to shards and index them.", example)
    parser.add_argument("source", help="image folder with a subfolder per class, list of images, or a data set")
    parser.add_argument("folder", help="where the shards go")
    parser.add_argument("--format", choices=("auto", *_FORMATS), default="auto", help="of the source (default: auto)")
    parser.add_argument("--name", default="shard", help="begins the file names (default: shard)")
    parser.add_argument("--shuffle-seed", type=int, metavar="SEED", help="shuffle the samples, reproducibly")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, in the order of their numbers")
    parser.add_argument("--image-column", default="path", help="of a list (default: path)")
    parser.add_argument("--label-column", default="label", help="of a list (default: label)")
    split = "of CIFAR, SVHN or TinyImageNet (whose labeled test images are its val; default: train)"
    parser.add_argument("--split", choices=("train", "test"), default="train", help=split)
    parser.add_argument("--labels", choices=("fine", "coarse"), default="fine", help="of CIFAR-100 (default: fine)")
    add_writing_options(parser)
    parser.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> None:
    from lightning_robust.shards.packing import pack
    from lightning_robust.shards.placing import NewShards, check_destination, check_limits

    folder = Path(options.folder)
    check_limits(samples_per_shard=options.samples_per_shard, max_bytes=options.max_bytes)
    source = _source(options)
    if options.dry_run:
        check_destination(folder, NewShards((options.name,), source.classes, overwrite=options.overwrite))
        first, shards = source[0], shards_needed(len(source), options)
        print(f"Would write {len(source)} samples to {shards}: {folder / options.name}-000000.tar, ...")
        print(f"First sample: key {first.key}, target {first.target}.")
        print_histogram(source.targets.tolist(), source.classes)
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
    print_totals(index)


def _source(options: argparse.Namespace) -> SampleSource:
    from lightning_robust.shards import sources

    source = Path(options.source)
    kind = options.format if options.format != "auto" else _guess(source)
    if options.classes and kind not in ("folder", *_LISTS):
        raise InputError(f"--classes belongs to folders and lists; a source of format {kind} has its own classes.")
    classes = Path(options.classes).read_text(encoding="utf-8").splitlines() if options.classes else None
    if kind in _LISTS:
        read = {"csv": sources.csv_list, "jsonl": sources.jsonl_list, "parquet": sources.parquet_list}[kind]
        return read(source, image_column=options.image_column, label_column=options.label_column, classes=classes)
    if kind == "cifar":
        return sources.cifar_binary(source, options.split, labels=options.labels)
    if kind == "svhn":
        return sources.svhn_mat(source, options.split)
    if kind == "tinyimagenet":
        return sources.tiny_image_net(source, options.split)
    found = sources.image_folder(source, classes=classes)
    if found.classes is not None and len(found.classes) > 1 and _SPLITS.issuperset(found.classes):
        print(
            f"warning: the subfolders {', '.join(found.classes)} of {source} are taken for classes. If they are "
            f"splits, pack each by itself: lightning-robust shards pack {source / found.classes[0]} ...",
            file=sys.stderr,
        )
    return found


def _guess(source: Path) -> str:
    kind = _BY_SUFFIX.get(source.suffix.lower())
    if kind is not None and not source.is_dir():
        return kind
    if any(source.glob("*_32x32.mat")):
        return "svhn"
    if (source / "wnids.txt").is_file():
        return "tinyimagenet"
    if source.name.endswith((".tar.gz", ".tgz", ".tar")) or any(source.glob("**/*_batch*.bin")):
        return "cifar"
    return "cifar" if any((source / sub / "train.bin").is_file() for sub in ("", "cifar-100-binary")) else "folder"
