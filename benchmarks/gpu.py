"""Speed of the methods on a CUDA device, against a peer in the same run: `python benchmarks/gpu.py`.

The fraction of memory bandwidth is the least traffic that an operator needs, over its time, over the rate of a large
copy on the device in the same run. TF32 is off in all rows but those that name it; convolutions are left at
cuDNN's default. Times are those between CUDA events, so a row of many small kernels shows what launching them costs.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_rows_defenses
import kornia
import torch
from peers import asap_pool_by_fft, loss_with_second_forward
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.functional import jacobian_frequency_bias, laplacian_sharpen
from lightning_robust.models import preact_resnet18, resnet20
from lightning_robust.nn import ASAPPool2d

JAFR_WEIGHT = 0.001
WARM_UP = 5
_SHORTEST = 0.002


@dataclass(frozen=True)
class Measurement:
    """One operator: the call, the least bytes it must move (None where that says nothing) and its settings."""

    name: str
    run: Callable[[], Any]
    floor: int | None = None
    tf32: bool = False


@dataclass(frozen=True)
class Comparison:
    """Measurements that take turns; each is divided by every peer."""

    ours: list[Measurement]
    peers: list[Measurement]


def main() -> int:
    arguments = _arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: benchmarks/gpu.py measures on one and has nothing to say without.")
        return 2
    device = torch.device(arguments.device)
    timer = Timer(device, arguments.repeats)
    bandwidth = _copy_rate(timer, device, 1 << (20 if arguments.quick else 30))
    comparisons = [*_sharpening(device, arguments.quick), *_pooling(device, arguments.quick)]
    comparisons += _jafr(device, arguments.quick)
    for name, run, floor, copy in gpu_rows_defenses.rows(device, quick=arguments.quick):
        comparisons.append(Comparison([Measurement(name, run, floor)], [Measurement("copy_", copy)]))
    lines = [
        "| what | ms | bytes moved at least, MiB | fraction of copy bandwidth | peer | peer ms | "
        "ours / peer (quartiles) | peak MiB | peer peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for comparison in comparisons:
        lines += _lines(comparison, timer, bandwidth)
    page = [*_preface(arguments, device, bandwidth), *lines]
    print("\n".join(page))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(page) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="rounds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds: shows that it runs, no more")
    parser.add_argument("--out", type=Path, help="markdown page to write")
    # so that every line can be run where there is no such device
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = 2
    return arguments


class Timer:
    """Interleaved times by events on the device's stream, and peak memory by its allocator."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def times(self, measurements: list[Measurement]) -> dict[str, list[float]]:
        """Seconds per call, one number per round; warmed up, each long enough to be told from the clock's step."""
        calls = {}
        for one in measurements:
            _set_tf32(on=one.tf32)
            for _ in range(WARM_UP):
                one.run()
            calls[one.name] = max(1, min(100, round(_SHORTEST / max(self._seconds(one.run, 1), 1e-6))))
        found: dict[str, list[float]] = {one.name: [] for one in measurements}
        for round_number in range(self.repeats):
            turn = round_number % len(measurements)
            for one in measurements[turn:] + measurements[:turn]:
                _set_tf32(on=one.tf32)
                found[one.name].append(self._seconds(one.run, calls[one.name]))
        _set_tf32(on=False)
        return found

    def peak(self, run: Callable[[], Any]) -> float | None:
        """MiB that the allocator holds at most above what it held before the call; None on the CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def _seconds(self, run: Callable[[], Any], calls: int) -> float:
        if self.device.type != "cuda":
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - begin) / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls


def _lines(comparison: Comparison, timer: Timer, bandwidth: float) -> list[str]:
    everybody = [*comparison.ours, *comparison.peers]
    times = timer.times(everybody)
    peaks = {one.name: timer.peak(one.run) for one in everybody}
    lines = []
    for ours in comparison.ours:
        seconds = statistics.median(times[ours.name])
        moved = "" if ours.floor is None else f"{ours.floor / 2**20:.0f}"
        fraction = "" if ours.floor is None else f"{ours.floor / seconds / bandwidth:.2f}"
        for peer in comparison.peers:
            ratio = _quartiles([a / b for a, b in zip(times[ours.name], times[peer.name], strict=True)])
            cells = [ours.name, f"{1000 * seconds:.3f}", moved, fraction, peer.name]
            cells += [f"{1000 * statistics.median(times[peer.name]):.3f}", ratio]
            lines.append("| " + " | ".join([*cells, *(_mebibytes(peaks[one.name]) for one in (ours, peer))]) + " |")
    return lines


def _copy_rate(timer: Timer, device: torch.device, size: int) -> float:
    """Bytes read and written per second by a copy within the device."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = Measurement("copy", partial(target.copy_, source))
    return 2 * size / statistics.median(timer.times([copy])["copy"])


def _sharpening(device: torch.device, quick: bool) -> list[Comparison]:
    comparisons = []
    for batch, size in [(2, 32)] if quick else [(32, 224), (256, 224)]:
        shape = f"{batch}x3x{size}x{size}"
        image = torch.rand(batch, 3, size, size, device=device)
        pixels = (image * 255).to(torch.uint8)
        copies = {one.dtype: torch.empty_like(one) for one in (image, pixels)}
        no_grad = torch.no_grad()
        floats = [
            Measurement(
                f"sharpening, {name}, {shape}",
                no_grad(partial(laplacian_sharpen, image, 0.15, levels=levels)),
                2 * image.nbytes,
            )
            for name, levels in (("continuous", None), ("8 bits", 256))
        ]
        peers = [
            Measurement("copy_", no_grad(partial(copies[image.dtype].copy_, image))),
            Measurement("kornia.enhance.sharpness", no_grad(partial(kornia.enhance.sharpness, image, 1.15))),
        ]
        comparisons.append(Comparison(floats, peers))
        ours = no_grad(partial(laplacian_sharpen, pixels, 0.15))
        copy = no_grad(partial(copies[pixels.dtype].copy_, pixels))
        comparisons.append(
            Comparison(
                [Measurement(f"sharpening, uint8, {shape}", ours, 2 * pixels.nbytes)],
                [Measurement("copy_ of uint8", copy)],
            )
        )
    return comparisons


def _pooling(device: torch.device, quick: bool) -> list[Comparison]:
    comparisons = []
    batch, channels, sizes = (2, 3, (8,)) if quick else (64, 64, (32, 56, 112))
    for size in sizes:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, channels, size, size, device=device).contiguous(memory_format=memory_format)
            layout = "" if memory_format is torch.contiguous_format else ", channels_last"
            shape = f"{batch}x{channels}x{size}x{size}{layout}, forward and backward"
            comparisons.append(_pooling_comparison(x, shape, by_fft=not layout))
            comparisons.append(_pooling_comparison(x.bfloat16(), f"{shape}, bfloat16", by_fft=False))
    return comparisons


def _pooling_comparison(x: Tensor, shape: str, *, by_fft: bool) -> Comparison:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    upstream = torch.randn_like(x[..., ::2, ::2])

    def both_ways(pool: Callable[[Tensor], Tensor]) -> None:
        torch.autograd.grad(pool(leaf), leaf, upstream)

    # forward reads x and writes y, backward reads the gradient of y and writes that of x
    floor = 2 * (x.nbytes + x.nbytes // 4)
    centered, released = partial(both_ways, ASAPPool2d(2)), partial(both_ways, ASAPPool2d(2, variant="released"))
    ours = [
        Measurement(f"ASAPPool2d, {shape}", centered, floor),
        Measurement(f"ASAPPool2d released, {shape}", released, floor),
    ]
    if x.dtype == torch.float32:
        ours.insert(1, Measurement(f"ASAPPool2d, {shape}, TF32", centered, floor, tf32=True))
    peers = [Measurement("MaxPool2d(3, 2, 1)", partial(both_ways, nn.MaxPool2d(3, 2, 1)))]
    if by_fft:
        peers.append(Measurement("FFT version", partial(both_ways, asap_pool_by_fft)))
    return Comparison(ours, peers)


def _jafr(device: torch.device, quick: bool) -> list[Comparison]:
    if quick:
        return [_jafr_comparison(resnet20(), "ResNet-20", 2, device)]
    return [
        _jafr_comparison(resnet20(), "ResNet-20", 64, device),
        _jafr_comparison(resnet20(), "ResNet-20", 1024, device),
        _jafr_comparison(preact_resnet18(), "PreActResNet-18", 128, device),
    ]


def _jafr_comparison(net: nn.Module, name: str, batch: int, device: torch.device) -> Comparison:
    net = net.to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    image = torch.rand(batch, 3, 32, 32, device=device)
    target = torch.randint(0, 10, (batch,), device=device)

    def plain() -> Tensor:
        return F.cross_entropy(net(image), target)

    def shared() -> Tensor:
        leaf = image.detach().clone().requires_grad_()
        loss = F.cross_entropy(net(leaf), target)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return loss - JAFR_WEIGHT * jacobian_frequency_bias(gradient)

    def train(loss: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    second = partial(loss_with_second_forward, net, image, target, JAFR_WEIGHT)
    return Comparison(
        [Measurement(f"JaFR training step, {name}, {batch}x3x32x32", partial(train, shared))],
        [
            Measurement("plain step", partial(train, plain)),
            Measurement("released structure (a second forward)", partial(train, second)),
        ],
    )


def _set_tf32(*, on: bool) -> None:
    torch.set_float32_matmul_precision("high" if on else "highest")


def _preface(arguments: argparse.Namespace, device: torch.device, bandwidth: float) -> list[str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU (a dry run)"
    libraries = f"torch {torch.__version__}, kornia {kornia.__version__}, Python {platform.python_version()}"
    return [
        "# Speed on a GPU",
        "",
        f"Made by `python {' '.join(['benchmarks/gpu.py', *sys.argv[1:]])}` on {name} with {libraries}. Median of "
        f"{arguments.repeats} interleaved rounds after {WARM_UP} warm-up calls. A copy within the device reads and "
        f"writes {bandwidth / 1e9:.0f} GB/s together.",
        "",
        "Bytes moved at least: every input read once and every result written once. The fraction is these bytes over "
        "the time, over the copy's rate. Float32 without TF32 unless a row says otherwise (convolutions: cuDNN's "
        "default). There is no FFT in bfloat16, so those rows have no FFT peer. The JaFR step shares its forward pass "
        "as the callback does, without a Trainer. Peak memory: the allocator's growth during a call.",
        "",
    ]


def _quartiles(values: list[float]) -> str:
    low, high = (min(values), max(values)) if len(values) < 4 else statistics.quantiles(values, n=4)[::2]
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"


def _mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
