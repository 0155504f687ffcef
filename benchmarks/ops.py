"""Speed of the methods on the CPU, as ratios against a peer in the same run: `python benchmarks/ops.py`.

The rates of `ShardLoader` and `ShardDataModule` against a bare decode loop and against webdataset have a command of
their own, `python benchmarks/stream.py`; the same methods on a GPU are in `python benchmarks/gpu.py`.

All contestants of a group run once per round; a ratio is taken per round, and the median counts. The JaFR and epoch
rows are real Trainer runs with the callback: of a run of two steps the second is timed, and of an epoch everything
between its start and its end.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import kornia
import numpy as np
import pytorch_lightning as pl
import torch
from measure import Contestant, Row, geometric_mean, interleave, machine, peak_memory, repeated, table, verdict
from peers import asap_pool_by_fft, loss_with_second_forward
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_robust.callbacks import JacobianFrequencyRegularization, PreemptiveSharpening
from lightning_robust.datamodules import ShardDataModule
from lightning_robust.functional import laplacian_sharpen
from lightning_robust.models import resnet20
from lightning_robust.nn import ASAPPool2d
from lightning_robust.shards import Sample, pack

JAFR_WEIGHT = 0.001
GROUPS = ("sharpening", "pooling", "jafr", "epoch")
_NOTES = [
    "",
    "- FFT version: fft2, shift over height and width, window, crop, shift back, ifft2 (`benchmarks/peers.py`).",
    '- JaFR: the callback in a Trainer, `forward="shared"`; the second of two steps, from zeroed gradients to '
    "updated weights, so that the spectrum's picture of each epoch is left out. The released structure forms the "
    "term by a second forward pass in the module's own step, under the same Trainer.",
    "- Epoch: Trainer, `ShardDataModule` (PNG, decoded in the training process), "
    '`PreemptiveSharpening(stages=["train"])` with its metrics and its picture of the epoch.',
    "- Unsettled: at least one quartile of the rounds lies on the other side of the target.",
    "- Peak memory: growth of the resident set (VmHWM, reset) above its level before the call, during a second "
    "call, after all timing; results are included, inputs and weights made before are not. In the JaFR and epoch "
    "rows it is that of a whole short Trainer run, its net included.",
]

# What a profile on one thread showed, by CPU time, which the load of the machine does not change.
_CAUSES = {
    "sharpening, continuous": "On one thread: copy_ 3.3 ms of CPU, ours 9.9 (OpenCV's filter 5.4, clamping 2.2, the "
    "check of the range 1.4, the planes' edges and fresh memory the rest), kornia 219. That is 22 times as long; why "
    "two threads on a loaded machine show less was not traced further.",
    "JaFR training step": "On one thread: the step takes 3.37 times the CPU of a plain one. Forward 0.40, input "
    "gradient 0.39, bias value 0.01, the last backward pass 2.57; of that, 42% is BatchNorm's second derivative, "
    "which torch composes of elementwise products and sums, and 41% convolutions. The released structure takes 4.61.",
}


@dataclass
class Group:
    """Contestants that take turns, what is compared among them, and how to run one for its peak memory."""

    contestants: dict[str, Contestant] = field(default_factory=dict)
    runs: dict[str, Callable[[], Any]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def add(self, name: str, run: Callable[[], Any], contestant: Contestant | None = None) -> None:
        self.runs[name] = run
        self.contestants[name] = contestant or repeated(run)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as home:
        groups: list[Group] = []
        if "sharpening" in arguments.only:
            groups.append(_sharpening(*((2, 32) if arguments.quick else (32, 224))))
        if "pooling" in arguments.only:
            shape, sizes = ((2, 3), (8, 16)) if arguments.quick else ((16, 64), (32, 56, 112))
            groups += [_pooling(*shape, size) for size in sizes]
        if "jafr" in arguments.only:
            groups.append(_jafr(8 if arguments.quick else 64, home))
        if "epoch" in arguments.only:
            groups.append(_epoch(16 if arguments.quick else arguments.epoch_images, home))
        lines = _measure(groups, arguments.repeats)
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*_preface(arguments), *lines, *_NOTES]) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--epoch-images", type=int, default=512, help="images of an epoch")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds: shows that it runs, no more")
    parser.add_argument("--out", type=Path, help="markdown page to write, e.g. docs/results/speed.md")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = 2
    return arguments


def _measure(groups: list[Group], repeats: int) -> list[str]:
    times: dict[str, list[float]] = {}
    for number, group in enumerate(groups):
        print(f"group {number + 1} of {len(groups)}: {', '.join(group.contestants)}", file=sys.stderr, flush=True)
        times |= interleave(group.contestants, repeats)
    peaks = {name: peak_memory(run) for group in groups for name, run in group.runs.items()}
    rows = [row for group in groups for row in group.rows]
    lines = table(rows, times, peaks)
    centered = [row for row in rows if row.name.startswith("ASAPPool2d, ") and row.kind == "faster"]
    if centered:
        lines.append(geometric_mean(centered, times, 7, "ASAPPool2d, geometric mean of the sizes"))
    missed = [row.name for row in rows if "misses" in verdict(row, times)]
    lines += ["", f"{len(missed)} of {sum(row.target is not None for row in rows)} rows with a target miss it."]
    causes = [f"- {what}: {why}" for what, why in _CAUSES.items() if any(name.startswith(what) for name in missed)]
    return [*lines, "", "Where the time of these goes:", "", *causes] if causes else lines


def _sharpening(batch: int, size: int) -> Group:
    image, target = torch.rand(batch, 3, size, size), torch.empty(batch, 3, size, size)
    group = Group()
    no_grad = torch.no_grad()
    group.add("copy_", no_grad(partial(target.copy_, image)))
    group.add("clone", no_grad(image.clone))
    group.add("kornia.enhance.sharpness", no_grad(partial(kornia.enhance.sharpness, image, 1.15)))
    for name, levels, target_ratio in (("continuous", None, 12), ("8 bits", 256, 6)):
        ours = f"sharpening, {name}"
        group.add(ours, no_grad(partial(laplacian_sharpen, image, 0.15, levels=levels)))
        title = f"{ours}, {batch}x3x{size}x{size}"
        group.rows.append(Row(title, ours, "kornia.enhance.sharpness", "faster", target_ratio))
        group.rows.append(Row(title, ours, "copy_", "share", goal=2))
        group.rows.append(Row(title, ours, "clone", "share"))
    return group


def _pooling(batch: int, channels: int, size: int) -> Group:
    shape = f"{batch}x{channels}x{size}x{size}"
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    upstream = torch.randn(batch, channels, size // 2, size // 2)

    def both_ways(pool: Callable[[Tensor], Tensor]) -> None:
        torch.autograd.grad(pool(x), x, upstream)

    group = Group()
    pools = {
        "centered": ASAPPool2d(2),
        "released": ASAPPool2d(2, variant="released"),
        "FFT version": asap_pool_by_fft,
        "MaxPool2d(3, 2, 1)": nn.MaxPool2d(3, 2, 1),
    }
    for name, pool in pools.items():
        group.add(f"{shape}: {name}", partial(both_ways, pool))
    ours, released, peer, largest = (f"{shape}: {name}" for name in pools)
    group.rows = [
        Row(f"ASAPPool2d, {shape}, forward and backward", ours, peer, "faster", 5),
        Row(f"ASAPPool2d, {shape}, forward and backward", ours, largest, "share", 0.9),
        Row(f"ASAPPool2d released, {shape}, forward and backward", released, peer, "faster", 3),
    ]
    return group


def _jafr(batch: int, home: str) -> Group:
    batches = [(torch.rand(batch, 3, 32, 32), torch.randint(0, 10, (batch,))) for _ in range(2)]
    data = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    jafr = JacobianFrequencyRegularization(JAFR_WEIGHT, forward="shared")
    group = Group()
    contestants: dict[str, Callable[[], float]] = {
        "plain step": lambda: _second_step(_Classifier(), data, home),
        "JaFR": lambda: _second_step(_Classifier(), data, home, jafr),
        "released structure (a second forward)": lambda: _second_step(_SecondForward(), data, home),
    }
    for name, run in contestants.items():
        run()
        group.add(name, run, run)
    title = f"JaFR training step, ResNet-20, {batch}x3x32x32"
    group.rows = [
        Row(title, "JaFR", "plain step", "share", 3.4, goal=2.5),
        Row(title, "JaFR", "released structure (a second forward)", "share", 0.85),
    ]
    return group


def _epoch(images: int, home: str) -> Group:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    pack((Sample(f"{i:06d}", image, i % 10) for i, image in enumerate(pixels)), f"{home}/shards")
    batch_size = min(64, images)

    def epoch(*callbacks: pl.Callback) -> float:
        data = ShardDataModule(train=f"{home}/shards", batch_size=batch_size, num_workers=0)
        clock = _Clock()
        _trainer(home, clock, *callbacks, max_epochs=1).fit(_Classifier(), datamodule=data)
        return clock.epoch

    group = Group()
    for name, callbacks in (("without", ()), ("with", (PreemptiveSharpening(0.15, stages=["train"]),))):
        run = partial(epoch, *callbacks)
        run()
        group.add(f"epoch: {name}", run, run)
    title = f"epoch of ResNet-20 over shards with sharpening, {images} images of 32x32"
    group.rows = [Row(title, "epoch: with", "epoch: without", "share", 1.03)]
    return group


class _Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = resnet20()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, target = batch
        return F.cross_entropy(self.net(image), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


class _SecondForward(_Classifier):
    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_with_second_forward(self.net, *batch, JAFR_WEIGHT)


class _Clock(pl.Callback):
    """Seconds of the last step, from zeroed gradients to updated weights, and of the epoch."""

    def on_train_start(self, *_: Any) -> None:
        self._begin = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.epoch = time.perf_counter() - self._begin

    def on_train_batch_start(self, *_: Any) -> None:
        self._step_begin = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.step = time.perf_counter() - self._step_begin


def _second_step(module: pl.LightningModule, data: DataLoader[Any], home: str, *callbacks: pl.Callback) -> float:
    clock = _Clock()
    _trainer(home, *callbacks, clock, max_steps=2).fit(module, data)
    return clock.step


def _trainer(home: str, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=home,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _preface(arguments: argparse.Namespace) -> list[str]:
    load = f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores at the end"
    return [
        "# Speed",
        "",
        f"Made by `python {' '.join(['benchmarks/ops.py', *sys.argv[1:]])}` with {machine()} Median of "
        f"{arguments.repeats} interleaved rounds, float32, contiguous NCHW. The machine is shared ({load}): times move "
        "with what else it does, so a ratio is taken within each round. Streaming rates come from "
        "`python benchmarks/stream.py`, GPU times from `python benchmarks/gpu.py`.",
        "",
        "\"x faster\" is the peer's time over ours; a bare number is our time over the peer's.",
        "",
    ]


if __name__ == "__main__":
    main()
