"""``lightning-robust shards robustify``."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_robust.cli.shards_common import add_command, add_set_options, at_least, counted, remote_options
from lightning_robust.errors import InputError

if TYPE_CHECKING:
    from lightning_robust.shards.robustify_options import Sharpening

_PREVIEWED = 16
# rank and number of processes, as torchrun and SLURM tell them
_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    purpose = "Sharpen the images of a shard set, or of an image folder, before it is published."
    parser = add_command(commands, "robustify", purpose, "shards/val shards/val-sharp --alpha 0.15 --workers 8")
    add_set_options(parser)
    parser.add_argument("destination", help="a new folder for the result")
    strength = parser.add_mutually_exclusive_group()
    strength.add_argument("--alpha", type=float, default=0.15, help="strength (default: 0.15)")
    strength.add_argument("--psnr", type=float, metavar="DB", help="change every image by this much instead")
    parser.add_argument("--neighbors", type=int, choices=(4, 8), default=4, help="of the Laplacian (default: 4)")
    parser.add_argument(
        "--encode", choices=("same", "jpeg", "png", "webp"), default="same", help="format (default: of each image)"
    )
    parser.add_argument("--quality", type=int, default=95, metavar="1..100", help="of JPEG and WebP (default: 95)")
    parser.add_argument(
        "--subsampling", choices=("444", "422", "420"), default="444", help="color of JPEG (default: 444)"
    )
    parser.add_argument("--lossless", action="store_true", help="write WebP without loss")
    parser.add_argument(
        "--metadata", choices=("keep", "strip"), default="keep", help="EXIF, color profile, XMP (default: keep)"
    )
    parser.add_argument("--ssim", action="store_true", help="measure SSIM too (slow)")
    parser.add_argument(
        "--measure-every", type=at_least(1), default=16, metavar="N", help="lossy results measured (default: each 16th)"
    )
    parser.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--share", metavar="K/N", help="every N-th shard from the K-th (default: of torchrun and SLURM, else 1/1)"
    )
    parser.add_argument(
        "--devices", type=at_least(1), metavar="N", help="processes of one Lightning job under DDP, on each machine"
    )
    parser.add_argument("--num-nodes", type=at_least(1), metavar="M", help="machines of that job (default: 1)")
    parser.add_argument("--finish", action="store_true", help="end a job of several shares: write index and manifest")
    parser.add_argument("--dry-run", action="store_true", help="sharpen the first images in memory, and write nothing")
    parser.set_defaults(run=_robustify)


def share_of(text: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Read which share of a set is this process's, from 1.

    Args:
        text: what the user wrote, K/N.
        environment: variables, where the user wrote nothing.

    Raises:
        InputError: it is no share.
    """
    if text is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--share {text!r}: expected K/N with K from 1 to N, such as 3/8.")
        return int(match[1]), int(match[2])
    for rank, size in _LAUNCHERS:
        if rank in environment and size in environment:
            return int(environment[rank]) + 1, int(environment[size])
    return 1, 1


def _robustify(options: argparse.Namespace) -> None:
    from lightning_robust.shards.robustify_options import Sharpening
    from lightning_robust.shards.robustify_set import finish_robustify, robustify

    sharpening = Sharpening(
        alpha=options.alpha,
        psnr=options.psnr,
        neighbors=options.neighbors,
        encode=options.encode,
        quality=options.quality,
        subsampling=options.subsampling,
        lossless=options.lossless,
        metadata=options.metadata,
        ssim=options.ssim,
        measure_every=options.measure_every,
    )
    under_lightning = options.devices is not None or options.num_nodes is not None
    if under_lightning and (options.share or options.finish or options.workers > 1):
        raise InputError("--devices and --num-nodes share the set out: leave out --workers, --share and --finish.")
    share = (1, 1) if under_lightning else share_of(options.share, os.environ)
    if options.dry_run:
        _preview(options, sharpening)
        return
    if options.finish:
        manifest: dict[str, Any] | None = finish_robustify(options.destination)
    elif under_lightning:
        manifest = _predict(options, sharpening)
    else:
        manifest = robustify(
            **_set_of(options), sharpening=sharpening, workers=options.workers, share=share, progress=True
        )
    if manifest is not None:
        images = counted(manifest["source"]["samples"], "sharpened image")
        print(f"{images} in {options.destination} (robustify.json).")
        _print_statistics(manifest["statistics"])
    elif not under_lightning:
        print(f"Share {share[0]} of {share[1]} is done. When all are, run the same command once with --finish.")


def _predict(options: argparse.Namespace, sharpening: Sharpening) -> dict[str, Any] | None:
    from lightning_robust.shards.robustify_job import check_destination

    # before what takes long: Lightning is imported, and the other processes are started
    if os.environ.get("LOCAL_RANK", "0") == "0":
        check_destination(Path(options.destination).absolute())

    from lightning_robust.cli.robustify_trainer import predict
    from lightning_robust.datamodules import Robustification

    module = Robustification(**_set_of(options), sharpening=sharpening, progress=True)
    return predict(module, devices=options.devices or 1, num_nodes=options.num_nodes or 1)


def _set_of(options: argparse.Namespace) -> dict[str, Any]:
    """Where the set is, where the result goes, and how the set is read."""
    return {
        "source": options.shards if len(options.shards) > 1 else options.shards[0],
        "destination": options.destination,
        "image_keys": options.image_keys.split(","),
        "label_key": None if options.no_labels else options.label_key,
        "remote": remote_options(options),
    }


def _preview(options: argparse.Namespace, sharpening: Sharpening) -> None:
    from lightning_robust.shards.robustify_set import plan_robustify, preview

    plan = plan_robustify(**_set_of(options), progress=True)
    parts = counted(len(plan.units), "shard" if plan.kind == "shards" else "folder")
    print(f"Would sharpen {counted(plan.samples, 'image')} in {parts}: {Path(options.destination)}")
    statistics = preview(plan, sharpening, most=_PREVIEWED)
    print(f"The first {min(_PREVIEWED, plan.samples)}:")
    _print_statistics(statistics)
    print("Nothing was written (--dry-run).")


def _print_statistics(statistics: dict[str, Any]) -> None:
    for name, entry in statistics.items():
        if name == "meaning" or "mean" not in entry:
            continue
        worst = f", worst {entry['worst']['value']:g} ({entry['worst']['key']})" if "worst" in entry else ""
        print(
            f"  {name:<12} mean {entry['mean']:g}, quartiles {entry['q1']:g} {entry['median']:g} {entry['q3']:g}"
            f"{worst}; {entry['count']} images"
        )
