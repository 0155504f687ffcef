"""``lightning-robust shards pack``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.cli.shards_common import (
    add_command,
    add_writing_options,
    counted,
    print_histogram,
    print_totals,
    shards_needed,
)
from lightning_robust.cli.suggest import did_you_mean
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
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--label-column", default="label", help="of a list (default: label)")
    labels.add_argument("--no-labels", action="store_true", help="a list or a folder is packed without class numbers")
    member = "column of a list: path of a file, or JSON (EXTENSION ends in json); for example seg.png=mask; repeatable"
    parser.add_argument("--member", type=_member, action="append", metavar="EXTENSION=COLUMN", help=member)
    parser.add_argument(
        "--masks", metavar="DIR", help="masks of an image folder: same paths, as .png; packed as seg.png"
    )
    split = "of CIFAR, SVHN or TinyImageNet (whose labeled test images are its val; default: train)"
    parser.add_argument("--split", choices=("train", "test"), default="train", help=split)
    parser.add_argument("--labels", choices=("fine", "coarse"), default="fine", help="of CIFAR-100 (default: fine)")
    parser.add_argument("--check", action="store_true", help="decode every image, and refuse one that is damaged")
    add_writing_options(parser)
    parser.set_defaults(run=_pack)


def _member(text: str) -> tuple[str, str]:
    extension, equals, column = text.partition("=")
    if not (extension and equals and column):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form EXTENSION=COLUMN")
    return extension, column


def _pack(options: argparse.Namespace) -> None:
    from lightning_robust.shards.packing import pack
    from lightning_robust.shards.placing import NewShards, check_destination, check_limits
    from lightning_robust.shards.scan import Fields
    from lightning_robust.shards.sources import CheckedSamples
    from lightning_robust.shards.writing import EXTENSIONS

    folder = Path(options.folder)
    check_limits(samples_per_shard=options.samples_per_shard, max_bytes=options.max_bytes)
    source = CheckedSamples(_source(options)) if options.check else _source(options)
    if options.dry_run:
        fields = Fields(EXTENSIONS, "cls" if source.labeled else None)
        check_destination(folder, NewShards((options.name,), source.classes, fields, overwrite=options.overwrite))
        _print_plan(source, folder, options)
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
    if not options.check:
        labels = "" if source.labeled else " --no-labels"
        print(f"Images were not decoded; this does: lightning-robust shards verify {shlex.quote(str(folder))}{labels}")


def _print_plan(source: SampleSource, folder: Path, options: argparse.Namespace) -> None:
    members = _read_all(source) if options.check or options.member or options.masks else {}
    first, shards = source[0], shards_needed(len(source), options)
    print(f"Would write {counted(len(source), 'sample')} to {shards}: {folder / options.name}-000000.tar, ...")
    print(f"First sample: key {first.key}, {'no target' if first.target is None else f'target {first.target}'}.")
    for extension, count in members.items():
        print(f"  member {extension}: {count}")
    if source.targets is not None:
        print_histogram(source.targets.tolist(), source.classes)


def _read_all(source: SampleSource) -> Counter[str]:
    """Read every sample and count its further members; an error says how many cannot be read."""
    from tqdm import tqdm

    members: Counter[str] = Counter()
    first, faults = "", 0
    for position in tqdm(range(len(source)), desc="Reading", unit=" samples"):
        try:
            members.update(source[position].extra.keys())
        except InputError as error:
            first, faults = first or str(error), faults + 1
    if faults:
        raise InputError(f"{first} Such faults are in {faults} of {len(source)} samples.")
    return members


def _source(options: argparse.Namespace) -> SampleSource:
    from lightning_robust.shards import sources

    source = Path(options.source)
    _check_source(source, options.format)
    kind = options.format if options.format != "auto" else _guess(source)
    _check_options(options, kind)
    classes = _class_names(Path(options.classes)) if options.classes else None
    if kind in _LISTS:
        read = {"csv": sources.csv_list, "jsonl": sources.jsonl_list, "parquet": sources.parquet_list}[kind]
        return read(
            source,
            image_column=options.image_column,
            label_column=None if options.no_labels else options.label_column,
            members=dict(options.member or ()),
            classes=classes,
        )
    if kind == "cifar":
        return sources.cifar_binary(source, options.split, labels=options.labels)
    if kind == "svhn":
        return sources.svhn_mat(source, options.split)
    if kind == "tinyimagenet":
        return sources.tiny_image_net(source, options.split)
    found = sources.image_folder(source, classes=classes, labeled=not options.no_labels, masks=options.masks)
    if found.classes is not None and len(found.classes) > 1 and _SPLITS.issuperset(found.classes):
        print(
            f"warning: the subfolders {', '.join(found.classes)} of {source} are taken for classes. If they are "
            f"splits, pack each by itself: lightning-robust shards pack {source / found.classes[0]} ...",
            file=sys.stderr,
        )
    return found


def _check_source(source: Path, kind: str) -> None:
    if not source.exists():
        beside = [entry.name for entry in source.parent.iterdir()] if source.parent.is_dir() else []
        raise InputError(f"There is no {str(source)!r}.{did_you_mean(source.name, beside)} Check the path.")
    if kind == "auto" and source.is_file() and _guess(source) == "folder":
        raise InputError(
            f"{str(source)!r} is a file whose name does not say what it is. For a list give --format csv (its first "
            "line names the columns, such as path,label) or --format jsonl (one JSON object a line)."
        )


def _class_names(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(
            f"--classes {str(file)!r} cannot be read ({said}). Give a text file with one class name a line, in the "
            "order of the class numbers."
        ) from error


def _check_options(options: argparse.Namespace, kind: str) -> None:
    if options.classes and kind not in ("folder", *_LISTS):
        raise InputError(f"--classes belongs to folders and lists; a source of format {kind} has its own classes.")
    if options.no_labels and kind not in ("folder", *_LISTS):
        raise InputError(f"--no-labels belongs to folders and lists; a source of format {kind} has labels.")
    if options.member and kind not in _LISTS:
        raise InputError(f"--member names a column of a list, and a source of format {kind} has none.")
    if options.masks and kind != "folder":
        raise InputError(f"--masks belongs to image folders; the source is of format {kind}. Lists take --member.")
    twice = [extension for extension, count in Counter(name for name, _ in options.member or ()).items() if count > 1]
    if twice:
        raise InputError(f"--member {twice[0]}=... is given twice; a sample has one member of an extension.")


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
