"""Rate of ShardLoader beside a bare decode loop, webdataset and litdata: `python benchmarks/stream.py`.

256x256 JPEG and 32x32 PNG, to batches of uint8, with one worker process. The reference is a loop that decodes bytes in
memory, in one process, and makes no batches. The same encoded bytes lie in tar shards and in litdata's chunks. Besides
the decoder of its own (PIL), webdataset is given the one that all others use (OpenCV). litdata stores the bytes as they
are and decodes them in `__getitem__` of its dataset, in the worker. Both hand over torch tensors through shared memory.
The rows of litdata are left out where it is not installed.

Every loader starts its workers and is warmed up by one pass; then the passes of all are interleaved, and the median of
the ratios of each round counts. `--million` streams a million 8x8 PNG in training order instead, and prints the memory
of both processes (proportional set size) after a tenth, at half and at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
import webdataset as wds

from lightning_robust.datamodules import LoaderOptions, ShardLoader
from lightning_robust.shards import Sample, SampleReader, ShardIndex, open_index, pack

Contestant = Callable[[], int]

_MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jpegs", type=Path, help="folder of 256x256 JPEG files to use instead of synthetic images")
    parser.add_argument("--large", type=int, default=2048, help="number of 256x256 images (files are repeated)")
    parser.add_argument("--small", type=int, default=32768, help="number of 32x32 images")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--million", action="store_true", help="memory over a million small samples, and nothing else")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as home:
        if arguments.million:
            _stream_a_million(home)
            return
        large = pack(_jpegs(arguments.large, arguments.jpegs), f"{home}/large", samples_per_shard=128)
        small = pack(_pngs(arguments.small), f"{home}/small", samples_per_shard=1024)
        sets = {
            "256x256 JPEG": _contestants(large, "jpg", 64, f"{home}/litdata-large"),
            "32x32 PNG": _contestants(small, "png", 256, f"{home}/litdata-small"),
        }
        _print_load()
        print("| images | loader | images/s | ratio |")
        print("|---|---|---|---|")
        for images, contestants in sets.items():
            _print_rates(images, contestants, arguments.repeats)
        _print_load()


def _contestants(index: ShardIndex, extension: str, batch_size: int, chunks: str) -> dict[str, Contestant]:
    payloads = SampleReader(index).read(range(len(index)))

    def bare() -> int:
        for payload in payloads:
            _decode(payload)
        return len(payloads)

    contestants = {
        "bare decode loop": bare,
        "ShardLoader": _own(index, batch_size),
        "ShardLoader, fresh buffers": _own(index, batch_size, recycle=False),
        "webdataset": _webdataset(index, extension, batch_size, "rgb8"),
        "webdataset, decoding with OpenCV": _webdataset(index, extension, batch_size, _decode_member),
    }
    if importlib.util.find_spec("litdata") is not None:
        contestants["litdata, decoding with OpenCV"] = _litdata(payloads, batch_size, chunks)
    return contestants


def _own(index: ShardIndex, batch_size: int, *, recycle: bool = True) -> Contestant:
    options = LoaderOptions(recycle=recycle)
    loader = ShardLoader(index, batch_size=batch_size, purpose="evaluate", num_workers=1, options=options)
    return lambda: sum(len(batch.ids) for batch in loader)


def _webdataset(index: ShardIndex, extension: str, batch_size: int, decoder: object) -> Contestant:
    dataset = wds.WebDataset(list(index.paths), shardshuffle=False).decode(decoder).to_tuple(extension, "cls")
    batches = dataset.batched(batch_size).map_tuple(torch.from_numpy, torch.as_tensor)
    return _count(wds.WebLoader(batches, batch_size=None, num_workers=1, persistent_workers=True))


def _litdata(payloads: list[bytes], batch_size: int, chunks: str) -> Contestant:
    for name in ("CACHE_FOLDER", "DATA_CACHE_FOLDER"):
        os.environ[f"DATA_OPTIMIZER_{name}"] = f"{chunks}-{name}"
    import litdata

    class Decoded(litdata.StreamingDataset):
        def __getitem__(self, sample: object) -> tuple[np.ndarray, int]:
            data, target = super().__getitem__(sample)
            return _decode(data), target

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        inputs = [(payload, number % 10) for number, payload in enumerate(payloads)]
        # by fork: its default would become that of all processes, and of the other loaders' workers
        litdata.optimize(_as_it_is, inputs, chunks, num_workers=1, chunk_bytes="64MB", start_method="fork")
    dataset = Decoded(chunks, shuffle=False)
    return _count(litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=1, persistent_workers=True))


def _count(loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Contestant:
    return lambda: sum(len(target) for _, target in loader)


def _decode(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _decode_member(name: str, data: bytes) -> np.ndarray | None:
    return _decode(data) if name.endswith(("jpg", "png")) else None


def _as_it_is(sample: tuple[bytes, int]) -> tuple[bytes, int]:
    return sample


def _print_rates(images: str, contestants: dict[str, Contestant], repeats: int) -> None:
    for run in contestants.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            rates[name].append(run() / (time.perf_counter() - start))
    reference = rates[next(iter(contestants))]
    for name, measured in rates.items():
        ratio = statistics.median(rate / base for rate, base in zip(measured, reference, strict=True))
        print(f"| {images} | {name} | {statistics.median(measured):.0f} | {ratio:.2f} |", flush=True)


def _print_load() -> None:
    print("load average:", *(f"{load:.1f}" for load in os.getloadavg()), flush=True)


def _stream_a_million(home: str) -> None:
    packing = multiprocessing.get_context("fork").Process(target=_pack_a_million, args=(home,))
    packing.start()
    packing.join()
    loader = ShardLoader(open_index(home), batch_size=256, num_workers=1)
    _print_load()
    print("| samples | memory, all processes, MiB | without mapped files |")
    print("|---|---|---|")
    seen, start, marks = 0, time.perf_counter(), iter((_MILLION // 10, _MILLION // 2, len(loader) * 256))
    mark = next(marks)
    for batch in loader:
        seen += len(batch.ids)
        if seen >= mark:
            total, files = _tree_memory()
            print(f"| {seen} | {total:.1f} | {total - files:.1f} |", flush=True)
            mark = next(marks, _MILLION)
    print(f"{seen / (time.perf_counter() - start):.0f} images/s")


def _tree_memory() -> tuple[float, float]:
    """Proportional set size of this process and its children in MiB, and how much of it is mapped files."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    children = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    sizes = [_proportional_set(pid) for pid in [os.getpid(), *children]]
    return sum(total for total, _ in sizes) / 1024, sum(files for _, files in sizes) / 1024


def _proportional_set(pid: int) -> tuple[int, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return sizes["Pss"], sizes["Pss_File"]


def _pack_a_million(home: str) -> None:
    images = np.random.default_rng(2).integers(0, 256, (1000, 8, 8, 3), dtype=np.uint8)
    encoded = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    samples = (Sample(f"{number:07d}", data, number % 10) for number, data in enumerate(itertools.cycle(encoded)))
    pack(itertools.islice(samples, _MILLION), home, samples_per_shard=10_000)


def _jpegs(count: int, folder: Path | None) -> list[Sample]:
    encoded = _synthetic(min(count, 512)) if folder is None else _read(folder, count)
    return [Sample(f"{number:06d}", encoded[number % len(encoded)], 0, "jpg") for number in range(count)]


def _read(folder: Path, count: int) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("*.jpg"))[:count]]


def _synthetic(count: int) -> list[bytes]:
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None, :]) + 1 / 256
    encoded = []
    for _ in range(count):
        spectrum = np.fft.fft2(random.standard_normal((256, 256, 3)), axes=(0, 1)) / frequency[:, :, None]
        image = np.fft.ifft2(spectrum, axes=(0, 1)).real
        image = 128 + 50 * image / image.std() + random.normal(0, 4, image.shape)
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        encoded.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    return encoded


def _pngs(count: int) -> list[Sample]:
    images = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Sample(f"{number:06d}", image, number % 10) for number, image in enumerate(images)]


if __name__ == "__main__":
    main()
