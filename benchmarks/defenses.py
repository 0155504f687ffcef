"""Speed of the defenses on the CPU, as ratios against a peer in the same run: `python benchmarks/defenses.py`.

All contestants of a group run once per round; a ratio is taken per round, and the median counts. The groups on one
thread are timed in CPU time, which the load of the machine hardly changes; the group with a net, on `--threads`
threads, by the clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Contestant, Row, interleave, machine, repeated, table, verdict
from skimage.restoration import denoise_wavelet
from torch import Tensor, nn

from lightning_robust.functional import pixel_deflection, wavelet_denoise
from lightning_robust.nn import RobustActivationMap

GROUPS = ("deflection", "wavelet", "pipeline")
WINDOW = 10
_TARGETS = {100: 2.5, 1000: 10, 10000: 14}
_NOTES = [
    "",
    "- Loop: Algorithm 1 for one image after another in Python and NumPy, with a map as in section 8 where one is "
    "given; images of shape (H, W, C) are copied, deflected and stacked. *Python's random*: draws by `randint` and "
    "`uniform` of the standard library and rejects neighbors outside, as the released code does. *NumPy's generator*: "
    "draws by a `numpy.random.Generator` for each image, the way to give each image a stream of its own.",
    "- Ours draws one stream per image from its seed, so its result does not depend on the batch; the loops' does.",
    "- Wavelets: db1, BayesShrink, soft, YCbCr, sigma 0.04, today's meaning of sigma on both sides.",
    "- Pipeline: pixel deflection with a map, then wavelet denoising, against a forward pass of a net of the size of "
    "EfficientNet-Lite0 (random weights).",
    "- Unsettled: at least one quartile of the rounds lies on the other side of the target.",
]

Array = np.ndarray[Any, Any]


class Group:
    """Contestants that take turns, the rows that compare them, and their number of threads."""

    def __init__(self, threads: int, timed: Callable[[Callable[[], Any]], Contestant]) -> None:
        self.threads, self.timed = threads, timed
        self.runs: dict[str, Callable[[], Any]] = {}
        self.rows: list[Row] = []

    def times(self, repeats: int) -> dict[str, list[float]]:
        """Seconds of every round."""
        torch.set_num_threads(self.threads)
        with torch.no_grad():
            return interleave({name: self.timed(run) for name, run in self.runs.items()}, repeats)


def main() -> None:
    arguments = _arguments()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    batch, size, counts = (2, 64, (100,)) if arguments.quick else (32, 224, tuple(_TARGETS))
    groups = []
    if "deflection" in arguments.only:
        groups += [_deflection(batch, size, count, mapped) for count in counts for mapped in (False, True)]
    if "wavelet" in arguments.only:
        groups.append(_wavelet(batch, size))
    if "pipeline" in arguments.only:
        if arguments.zoo is None:
            print("the pipeline's net needs --zoo FOLDER: left out", file=sys.stderr)
        else:
            groups.append(_pipeline(batch, size, arguments.zoo, arguments.threads))
    times: dict[str, list[float]] = {}
    for number, group in enumerate(groups):
        print(f"group {number + 1} of {len(groups)}: {', '.join(group.runs)}", file=sys.stderr, flush=True)
        times |= group.times(arguments.repeats)
    rows = [row for group in groups for row in group.rows]
    missed = sum("misses" in verdict(row, times) for row in rows)
    lines = table(rows, times, {})
    lines += ["", f"{missed} of {sum(row.target is not None for row in rows)} rows with a target miss it."]
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*_preface(arguments), *lines, *_NOTES]) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--threads", type=int, default=2, help="of the pipeline row; the others run on one")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--zoo", type=Path, help="folder with imagenet_zoo.py, which defines EfficientNetLite")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds, K 100: shows that it runs")
    parser.add_argument("--out", type=Path, help="markdown page to write")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = 2
    return arguments


def cpu_timed(run: Callable[[], Any]) -> Contestant:
    """Time one call by the CPU time of the process; the first call warms up."""
    run()

    def contestant() -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    return contestant


def loop_by_random(images: Array, count: int, window: int, maps: Array | None) -> Array:
    """Algorithm 1 with the standard library's draws."""
    height, width, _ = images[0].shape
    deflected = []
    for number, image in enumerate(images):
        result = image.copy()
        for _ in range(count):
            y, x = random.randint(0, height - 1), random.randint(0, width - 1)
            if maps is not None and random.uniform(0, 1) < maps[number, y, x]:
                continue
            while True:
                m, n = y + random.randint(-window, window), x + random.randint(-window, window)
                if 0 <= m < height and 0 <= n < width:
                    break
            result[y, x] = image[m, n]
        deflected.append(result)
    return np.stack(deflected)


def loop_by_generator(images: Array, count: int, window: int, maps: Array | None) -> Array:
    """Algorithm 1 with a NumPy generator for each image."""
    height, width, _ = images[0].shape
    deflected = []
    for number, image in enumerate(images):
        draw = np.random.default_rng(number)
        result = image.copy()
        for _ in range(count):
            y, x = draw.integers(height), draw.integers(width)
            if maps is not None and draw.random() < maps[number, y, x]:
                continue
            m = draw.integers(max(0, y - window), min(height, y + window + 1))
            n = draw.integers(max(0, x - window), min(width, x + window + 1))
            result[y, x] = image[m, n]
        deflected.append(result)
    return np.stack(deflected)


def _deflection(batch: int, size: int, count: int, mapped: bool) -> Group:
    image = torch.rand(batch, 3, size, size)
    maps = torch.rand(batch, size, size) if mapped else None
    arrays = np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy())
    map_arrays = None if maps is None else maps.numpy()
    title = f"pixel deflection, {batch}x3x{size}x{size}, K = {count:,}, {'with a' if mapped else 'no'} map, one thread"
    group = Group(1, cpu_timed)
    ours = f"{title}: ours"
    group.runs[ours] = partial(pixel_deflection, image, count, WINDOW, maps, seeds=torch.arange(batch))
    for name, loop in {"loop, NumPy's generator": loop_by_generator, "loop, Python's random": loop_by_random}.items():
        group.runs[f"{title}: {name}"] = partial(loop, arrays, count, WINDOW, map_arrays)
        group.rows.append(Row(title, ours, f"{title}: {name}", "faster", _TARGETS[count]))
    return group


def _wavelet(batch: int, size: int) -> Group:
    image = torch.rand(batch, 3, size, size)
    arrays = np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy())
    options = {"sigma": 0.04, "wavelet": "db1", "method": "BayesShrink", "mode": "soft", "convert2ycbcr": True}

    def one_by_one() -> Array:
        return np.stack([denoise_wavelet(one, channel_axis=-1, rescale_sigma=True, **options) for one in arrays])

    group = Group(1, cpu_timed)
    title = f"wavelet denoising, {batch}x3x{size}x{size}, one thread"
    ours, peer = "wavelet denoising: ours", "wavelet denoising: scikit-image, image by image"
    group.runs = {ours: partial(wavelet_denoise, image, 0.04, sigma_scale="rgb"), peer: one_by_one}
    group.rows.append(Row(title, ours, peer, "faster", 2, goal=4))
    return group


def _pipeline(batch: int, size: int, zoo: Path, threads: int) -> Group:
    image, maps = torch.rand(batch, 3, size, size), torch.rand(batch, size, size)
    net = _lite0(zoo)
    make_map, seeds = RobustActivationMap(net), torch.arange(batch)

    def purify(maps: Tensor) -> Tensor:
        return wavelet_denoise(pixel_deflection(image, 100, WINDOW, maps, seeds=seeds), 0.04)

    group = Group(threads, repeated)
    given, own, forward = "pipeline: given map", "pipeline: own map", "pipeline: EfficientNet-Lite0"
    group.runs = {given: lambda: purify(maps), own: lambda: purify(make_map(image)), forward: lambda: net(image)}
    title = f"pixel deflection and wavelet denoising, {batch}x3x{size}x{size}, {threads} threads"
    group.rows.append(Row(f"{title}, map given", given, forward, "share", 0.6))
    group.rows.append(Row(f"{title}, with the map's own forward pass", own, forward, "share"))
    return group


def _lite0(folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("imagenet_zoo", folder / "imagenet_zoo.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"no imagenet_zoo.py in {folder}")
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    net: nn.Module = zoo.EfficientNetLite(1.0, 1.0, 224).eval()
    return net


def _preface(arguments: argparse.Namespace) -> list[str]:
    load = f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores at the end"
    return [
        "# Speed of the defenses",
        "",
        f"Made by `python {' '.join(['benchmarks/defenses.py', *sys.argv[1:]])}` with {machine()} Median of "
        f"{arguments.repeats} interleaved rounds, float32, contiguous NCHW. The machine is shared ({load}): a ratio is "
        "taken within each round.",
        "",
        "\"x faster\" is the peer's time over ours; a bare number is our time over the peer's.",
        "",
    ]


if __name__ == "__main__":
    main()
