"""``lightning-robust shards head``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.cli.shards_common import add_command, add_set_options, at_least, open_set
from lightning_robust.errors import InputError

if TYPE_CHECKING:
    from lightning_robust.shards.contact_sheet import Image
    from lightning_robust.shards.index import ShardIndex


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    example = "shards/train -n 25 --random 0 --out sheet.png"
    parser = add_command(commands, "head", "Draw some samples to a PNG, and print what they are.", example)
    add_set_options(parser)
    parser.add_argument("-n", type=at_least(1), default=16, metavar="N", help="how many samples (default: 16)")
    parser.add_argument("--random", type=at_least(0), metavar="SEED", help="any samples instead of the first ones")
    parser.add_argument("--out", metavar="FILE", help="the PNG file; --dry-run needs none")
    parser.add_argument("--cell", type=at_least(1), default=128, metavar="N", help="pixels per image (default: 128)")
    parser.add_argument("--columns", type=at_least(1), metavar="N", help="images in a row (default: a square sheet)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.add_argument("--dry-run", action="store_true", help="print what the samples are, and write nothing")
    parser.set_defaults(run=lambda options: _head(options, parser))


def _head(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from lightning_robust.shards.contact_sheet import contact_sheet, sheet_size

    if options.out is None and not options.dry_run:
        parser.error("--out FILE is needed, or --dry-run")
    out = None if options.out is None else _checked(Path(options.out), overwrite=options.overwrite)
    index = open_set(options, write=False, rebuild=False)
    positions = _positions(len(index), options.n, options.random)
    height, width = sheet_size(len(positions), cell=options.cell, columns=options.columns)
    _print_table(index, positions)
    if options.dry_run or out is None:
        print(f"Would write {width} x {height} pixels" + ("." if out is None else f" to {out}."))
        return
    sheet = contact_sheet(index, positions, cell=options.cell, columns=options.columns, progress=True)
    _write_png(out, sheet)
    print(f"wrote {width} x {height} pixels to {out}")


def _checked(out: Path, *, overwrite: bool) -> Path:
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {str(out)!r}: a PNG is written, so the name must end in .png.")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {str(out)!r}: its folder does not exist. Make it first.")
    if out.exists() and not overwrite:
        raise InputError(f"--out {str(out)!r} exists. Choose another name, or replace it with --overwrite.")
    return out


def _positions(size: int, count: int, seed: int | None) -> list[int]:
    if seed is None:
        return list(range(min(count, size)))
    import numpy as np

    from lightning_robust.seeds import derive

    order = np.argsort(derive(np.arange(size, dtype=np.int64), "head", seed), kind="stable")
    return [int(sample) for sample in order[:count]]


def _print_table(index: ShardIndex, positions: list[int]) -> None:
    from lightning_robust.shards.contact_sheet import class_name, sample_key
    from lightning_robust.shards.imagesize import image_size
    from lightning_robust.shards.reader import SampleReader

    rows = [("sample", "key", "label", "width x height", "bytes")]
    with SampleReader(index) as reader:
        for sample in positions:
            (data,) = reader.read([sample])
            try:
                height, width = image_size(data)
                size = f"{width} x {height}"
            except ValueError:
                size = "unknown"
            rows.append((str(sample), sample_key(index, sample), class_name(index, sample), size, str(len(data))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _write_png(path: Path, image: Image) -> None:
    import cv2

    from lightning_robust.shards.indexfile import replace_file

    done, encoded = cv2.imencode(".png", image[:, :, ::-1])
    if not done:
        raise InputError(f"The sheet of {image.shape} cannot be written as PNG. Take fewer samples.")
    replace_file(path, bytes(encoded))
