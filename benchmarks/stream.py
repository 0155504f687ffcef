"""Rate of ShardLoader, as ratios against a peer in the same run: `python benchmarks/stream.py`.

Rows: 256x256 JPEG to uint8 batches with one worker, against a decode loop over bytes in memory in one process; and
32x32 PNG with one worker, against webdataset's own loader with one worker. Every loader starts its workers and is
warmed up by one pass, then the passes of all contestants are interleaved; the median counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import webdataset as wds

from lightning_robust.datamodules import LoaderOptions, ShardLoader
from lightning_robust.shards import Sample, SampleReader, ShardIndex, pack

Contestant = Callable[[], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jpegs", type=Path, help="folder of 256x256 JPEG files to use instead of synthetic images")
    parser.add_argument("--large", type=int, default=1024, help="number of 256x256 images")
    parser.add_argument("--small", type=int, default=8192, help="number of 32x32 images")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as home:
        large = pack(_jpegs(arguments.large, arguments.jpegs), f"{home}/large", samples_per_shard=128)
        small = pack(_pngs(arguments.small), f"{home}/small", samples_per_shard=1024)
        print("| images | loader | images/s | ratio | peak memory, all processes, MiB |")
        print("|---|---|---|---|---|")
        _table("256x256 JPEG", _large_contestants(large), arguments.repeats)
        _table("32x32 PNG", _small_contestants(small), arguments.repeats)


def _large_contestants(index: ShardIndex) -> dict[str, Contestant]:
    payloads = SampleReader(index).read(range(len(index)))

    def bare() -> int:
        for payload in payloads:
            cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB)
        return len(payloads)

    return {
        "bare decode loop": bare,
        "ShardLoader, 1 worker": _own(index, 64),
        "ShardLoader, 1 worker, fresh buffers": _own(index, 64, recycle=False),
    }


def _small_contestants(index: ShardIndex) -> dict[str, Contestant]:
    dataset = wds.WebDataset(list(index.paths), shardshuffle=False).decode("rgb8").to_tuple("png", "cls").batched(256)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)

    def webdataset() -> int:
        return sum(len(target) for _, target in loader)

    return {"webdataset, 1 worker": webdataset, "ShardLoader, 1 worker": _own(index, 256)}


def _own(index: ShardIndex, batch_size: int, *, recycle: bool = True) -> Contestant:
    options = LoaderOptions(recycle=recycle)
    loader = ShardLoader(index, batch_size=batch_size, purpose="evaluate", num_workers=1, options=options)

    def run() -> int:
        return sum(len(batch.ids) for batch in loader)

    return run


def _table(images: str, contestants: dict[str, Contestant], repeats: int) -> None:
    peaks = {name: _peak_memory(run) for name, run in contestants.items()}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            rates[name].append(run() / (time.perf_counter() - start))
    reference = rates[next(iter(contestants))]
    for name, measured in rates.items():
        ratio = statistics.median(rate / base for rate, base in zip(measured, reference, strict=True))
        print(
            f"| {images} | {name} | {statistics.median(measured):.0f} | {ratio:.2f} | {peaks[name]:.0f} |", flush=True
        )


def _peak_memory(run: Contestant) -> float:
    """Largest proportional set size of this process and its children over a pass, which also warms up."""
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, sum(_proportional_set(pid) for pid in [os.getpid(), *_children()]))

    thread = threading.Thread(target=watch)
    run()
    thread.start()
    run()
    done.set()
    thread.join()
    return peak / 1024


def _children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def _proportional_set(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _jpegs(count: int, folder: Path | None) -> list[Sample]:
    if folder is not None:
        files = sorted(folder.glob("*.jpg"))[:count]
        return [Sample(f"{i:06d}", file.read_bytes(), 0, "jpg") for i, file in enumerate(files)]
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None, :]) + 1 / 256
    samples = []
    for number in range(count):
        spectrum = np.fft.fft2(random.standard_normal((256, 256, 3)), axes=(0, 1)) / frequency[:, :, None]
        image = np.fft.ifft2(spectrum, axes=(0, 1)).real
        image = 128 + 50 * image / image.std() + random.normal(0, 4, image.shape)
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        samples.append(Sample(f"{number:06d}", data, 0, "jpg"))
    return samples


def _pngs(count: int) -> list[Sample]:
    images = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Sample(f"{number:06d}", image, number % 10) for number, image in enumerate(images)]


if __name__ == "__main__":
    main()
