"""``lightning-robust shards verify``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.cli.shards_common import (
    add_command,
    add_set_options,
    at_least,
    counted,
    print_histogram,
    remote_options,
)
from lightning_robust.errors import InputError, ShardError

if TYPE_CHECKING:
    from lightning_robust.shards.verify import VerifyReport


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    example = "shards/train --json report.json"
    parser = add_command(commands, "verify", "Decode every sample, and compare shards and index.", example)
    add_set_options(parser)
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="processes that decode (default: cores)")
    parser.add_argument("--max-faults", type=at_least(0), default=20, metavar="N", help="listed (default: 20)")
    parser.add_argument("--fail-on-duplicates", action="store_true", help="images that occur twice are a fault")
    parser.add_argument("--json", metavar="FILE", help="write the whole report, with all faults")
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> None:
    from lightning_robust.shards.verify import verify_shards

    if options.json is not None and (Path(options.json).is_dir() or not Path(options.json).absolute().parent.is_dir()):
        raise InputError(f"--json {options.json!r} is no name for a file: give one in a folder that exists.")
    report = verify_shards(
        options.shards,
        image_keys=options.image_keys.split(","),
        label_key=None if options.no_labels else options.label_key,
        workers=options.workers or _cores(),
        progress=True,
        remote=remote_options(options),
    )
    if options.json is not None:
        _write(report, Path(options.json))
    _print(report, options.max_faults)
    if not report.ok:
        damaged = len({fault.shard for fault in report.faults})
        raise ShardError(f"found {counted(len(report.faults), 'fault')} in {counted(damaged, 'place')}, see the list.")
    if options.fail_on_duplicates and report.duplicates:
        raise ShardError(f"found {counted(report.duplicates, 'duplicate image')} (--fail-on-duplicates).")


def _print(report: VerifyReport, most: int) -> None:
    classes = "" if report.classes is None else f", {counted(len(report.classes), 'class', 'es')}"
    print(f"{counted(report.samples, 'sample')} in {counted(report.shards, 'shard')}{classes}")
    if report.histogram:
        print_histogram(report.histogram, report.classes)
    print(f"SHA-256 or MD5 compared: {report.checksums} of {counted(report.shards, 'shard')}")
    for note in report.notes:
        print(f"note: {note}")
    if report.duplicates:
        print(f"warning: {counted(report.duplicates, 'image')} with the bytes of an earlier one:")
        for pair in report.examples:
            print(f"  {pair.key!r} in {pair.shard} is {pair.first_key!r} in {pair.first_shard}")
    print(f"faults: {len(report.faults)}")
    for fault in report.faults[:most]:
        sample = "" if fault.key is None else f"{fault.key!r}: "
        print(f"  {fault.shard}: {sample}{fault.what}")
    if len(report.faults) > most:
        print(f"  ... and {len(report.faults) - most} more (--max-faults, --json)")


def _write(report: VerifyReport, path: Path) -> None:
    import dataclasses
    import json

    from lightning_robust.shards.indexfile import replace_file

    document = {"ok": report.ok, **dataclasses.asdict(report)}
    replace_file(path, (json.dumps(document, indent=1) + "\n").encode())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
