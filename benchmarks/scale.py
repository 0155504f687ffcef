"""What the plan of an epoch costs at 100,000 shards and 64 ranks, and how well it mixes: docs/scale.md.

    python benchmarks/scale.py

The plan is simulated on numbers of samples alone; the start-up row opens real shards in a temporary folder. One thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from lightning_robust.datamodules.plan import EpochOrder
from lightning_robust.datamodules.streams import StreamsOrder
from lightning_robust.shards import Sample, open_index, pack
from lightning_robust.shards.indexfile import SAMPLE_DTYPE

SHARDS, PER_SHARD, RANKS, BATCH, WINDOW = 100_000, 10_000, 64, 256, 16
GLOBAL = RANKS * BATCH
MACHINES = 8


def plan_rows(shards: int) -> list[str]:
    """Time and memory of the plan as the number of samples grows."""
    lines = ["| samples | build an epoch, ms | next window, ms | a batch, ms | peak MiB |", "|---|---|---|---|---|"]
    for per_shard in (100, 1_000, 10_000):
        counts = np.full(shards, per_shard, dtype=np.int64)
        tracemalloc.start()
        start = time.perf_counter()
        order = EpochOrder(counts, seed=0, epoch=1, window=WINDOW)
        built = time.perf_counter()
        size = min(GLOBAL, WINDOW * per_shard // 4)
        middle = len(order) // 2 // (WINDOW * per_shard) * WINDOW * per_shard
        order.ids(middle, middle + size)
        first = time.perf_counter()
        order.ids(middle + size, middle + 2 * size)
        second = time.perf_counter()
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        times = " | ".join(f"{1e3 * t:.3g}" for t in (built - start, first - built, second - first))
        lines.append(f"| {shards * per_shard:,} | {times} | {peak:.0f} |")
    return lines


def mixing_rows(shards: int, per_shard: int, samples_per_batch: int) -> list[str]:
    """How far an order is from a full permutation, for windows of several sizes."""
    lines = [
        "| window, shards | distinct shards in a global batch | two samples of a shard in one batch, "
        "times as often as by chance | correlation of positions in two epochs |",
        "|---|---|---|---|",
    ]
    total = shards * per_shard
    batches = total // samples_per_batch
    for window in (*(size for size in (1, 4, 16, 64, 256) if size < shards), shards):
        orders = [EpochOrder(np.full(shards, per_shard), seed=0, epoch=epoch, window=window) for epoch in (0, 1)]
        first, second = (order.ids(0, total) for order in orders)
        home = first[: batches * samples_per_batch].reshape(batches, samples_per_batch) // per_shard
        held = np.zeros((batches, shards), dtype=np.int64)
        np.add.at(held, (np.arange(batches)[:, None], home), 1)
        together = (held * (held - 1)).sum() / (shards * per_shard * (per_shard - 1))
        positions = [np.argsort(ids) for ids in (first, second)]
        correlation = np.corrcoef(positions)[0, 1]
        by_chance = batches * samples_per_batch * (samples_per_batch - 1) / total / (total - 1)
        distinct = (held > 0).sum(1).mean()
        lines.append(f"| {window:,} | {distinct:.0f} | {together / by_chance:.2f} | {correlation:+.3f} |")
    return lines


def machine_rows(shards: int, per_shard: int, samples_per_batch: int) -> list[str]:
    """Shards that each of eight machines needs in an epoch, by the number of streams."""
    lines = [
        "| streams | shards that a machine needs, most of 8 | fetched by all, times the set | "
        "distinct shards in a global batch |",
        "|---|---|---|---|",
    ]
    counts = np.full(shards, per_shard, dtype=np.int64)
    for streams in (1, 2, 4, 8, 16):
        order = EpochOrder(counts, seed=0, epoch=0, window=WINDOW)
        side_by_side = StreamsOrder(order, streams=streams, batch=samples_per_batch, own=(0, samples_per_batch))
        ends = range(samples_per_batch, shards * per_shard + 1, samples_per_batch)
        home = np.stack([side_by_side.draws(end - samples_per_batch, end).ids for end in ends]) // per_shard
        of_machines = [len(np.unique(part)) for part in np.split(home, MACHINES, axis=1)]
        distinct = np.mean([len(np.unique(batch)) for batch in home])
        share, times = max(of_machines) / shards, sum(of_machines) / shards
        lines.append(f"| {streams} | {share:.1%} | {times:.2f} | {distinct:.0f} |")
    return lines


def startup(shards: int) -> tuple[float, float, int]:
    """Seconds to open real shards by their index, to evaluate nothing more, and bytes of index.json per shard."""
    pixel = np.zeros((1, 1, 3), np.uint8)
    with tempfile.TemporaryDirectory() as home:
        pack((Sample(f"{i:06d}", pixel, 0) for i in range(shards)), home, samples_per_shard=1)
        start = time.perf_counter()
        index = open_index(f"{home}/*.tar")
        opened = time.perf_counter() - start
        start = time.perf_counter()
        EpochOrder(index.counts, seed=0, epoch=0, window=WINDOW).ids(0, min(BATCH, shards))
        planned = time.perf_counter() - start
        size = (Path(home) / "index.json").stat().st_size
        json.loads((Path(home) / "index.json").read_text())
    return opened, planned, size // shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the shards: shows that it runs")
    part = 100 if parser.parse_args().quick else 1
    print(f"Plan, {SHARDS // part:,} shards, window {WINDOW}:\n")
    print("\n".join(plan_rows(SHARDS // part)))
    few, each, batch = 1024 // min(part, 8), 1000 // min(part, 10), 1024 // min(part, 8)
    print(f"\nMixing, simulated with {few:,} shards of {each:,} samples and global batches of {batch:,}:\n")
    print("\n".join(mixing_rows(few, each, batch)))
    print(f"\n{MACHINES} machines, the same simulation, window {WINDOW}:\n")
    print("\n".join(machine_rows(few, each, batch)))
    opened, planned, size = startup(10_000 // part)
    print(f"\nStart-up, {10_000 // part:,} real local shards: opened in {opened:.2f} s, ", end="")
    print(f"first batch planned in {planned:.3f} s.")
    print(f"index.json: {size} bytes a shard; samples file: {SAMPLE_DTYPE.itemsize} bytes a sample, mapped.")


if __name__ == "__main__":
    main()
