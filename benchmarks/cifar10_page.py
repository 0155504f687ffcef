"""Write docs/results/cifar10.md from the records that benchmarks/cifar10.py left."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from cifar10 import ROWS, Preset, gaps, run_folder

from lightning_robust.evaluation import accuracy_table, difference_table, load_records, mean_interval

HEAD = """# CIFAR-10, as measured

What this is not: training is short ({epochs} epochs on {train_images:,} images), the images come from JPEG mosaics
(a loss of quality on top of the originals), the attack is PGD-20 with cross-entropy and with the margin loss, not
AutoAttack, and all rows but two are one training run each: seeds move a row by more than its interval says. With the
preset `check` every net is far from trained, and its table says that the pieces run, not what they are worth. Intervals
are 95% Wilson intervals over {test_images:,} test images of one trained net. Nothing was tuned on the test images.

{net}. Made by

    python benchmarks/cifar10.py --data CIFAR_MOSAICS --zoo ZOO --preset {preset}{device} --report PAGE

where a row is one `lightning-robust fit --config cifar10_resnet20` with the row's callbacks appended; a row that was
interrupted was resumed from its last epoch. [One row three ways](cifar10_runs.md): whole, killed and resumed, and as a
pair of processes. Python {python}, torch {torch}, two shared CPU cores; training seeds 0 to 2
for "plain" and "all three", 0 elsewhere; evaluation seed 0.
`PGD-20 e/255` is per image the worst of both losses, Linf. Noise has std 0.05 (also within one third of the
frequencies, at equal RMSE), blur sigma 1, contrast 0.3. "all three" is ASAP pooling, JaFR (weight 0.001) and
sharpening, which does nothing in training; its effect is a matter of inputs, in the last table.
"""


def write_page(path: Path, out: Path, preset: Preset, runs: list[tuple[str, int]], name: str, device: str) -> None:
    """Write the page; rows that are not there yet are left out and named."""
    wanted, runs = runs, [run for run in runs if (run_folder(out, *run) / "records.json").exists()]
    records = {run: load_records(run_folder(out, *run) / "records.json") for run in runs}
    first = {row: records[row, 0]["as trained"] for row in ROWS if (row, 0) in records}
    parts = [
        HEAD.format(
            **vars(preset),
            preset=name,
            device="" if device == "cpu" else f" --device {device}",
            python=platform.python_version(),
            torch=torch.__version__.split("+")[0],
        )
    ]
    missing = [f"{row} (seed {seed})" for row, seed in wanted if (row, seed) not in records]
    if missing:
        parts.append(f"Not there yet: {', '.join(missing)}. The command goes on with them.\n")
    parts += ["## Accuracy in percent (seed 0)\n", accuracy_table(first)]
    if "plain" in first:
        parts += ["## Paired differences from plain, in points\n", difference_table(first, "plain")]
    parts += ["## Over training seeds\n", seeds_table(records)]
    adversarial = {row: gaps(out, row) for row in first if row.startswith("FGSM")}
    if adversarial:
        parts += ["## FGSM minus PGD-10 accuracy on 256 training images, by epoch\n", gap_table(adversarial)]
    inputs = records.get(("plain", 0), {})
    published = {label: found for label, found in inputs.items() if label.startswith(("inputs", "control"))}
    if published:
        parts += [
            "## Sharpening: a row of inputs\n\nThe unchanged plain net; the owner publishes at 8 bits, the attacker "
            "moves within a ball around the published image, white-box, or with a ResNet-56 trained by others "
            "(transfer).\n",
            accuracy_table(published),
            difference_table(published, "inputs as they are"),
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))


def seeds_table(records: dict) -> str:
    lines = ["| row | seeds | column | mean [95% of the mean] |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        found = [models["as trained"] for (name, _), models in sorted(records.items()) if name == row]
        if len(found) < 2:
            continue
        for column in zip(*found, strict=True):
            mean = mean_interval([record.accuracy().estimate for record in column])
            text = f"{100 * mean.estimate:.1f} [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"
            lines.append(f"| {row} | {len(found)} | {column[0].column} | {text} |")
    return "\n".join(lines) + "\n"


def gap_table(adversarial: dict[str, list[tuple[float, float]]]) -> str:
    epochs = max(len(found) for found in adversarial.values())
    lines = ["| row | " + " | ".join(str(e) for e in range(epochs)) + " |", "| --- |" + " --- |" * epochs]
    for row, found in adversarial.items():
        cells = [f"{100 * (single - iterated):+.0f}" for single, iterated in found]
        lines.append(f"| {row} | " + " | ".join(cells + [""] * (epochs - len(cells))) + " |")
    return "\n".join(lines) + "\n"
