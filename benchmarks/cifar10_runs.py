"""One CIFAR-10 row three ways: as it is, killed half-way and resumed, and as two processes of half the batch.

    python benchmarks/cifar10_runs.py --shards runs/cifar10/shards/train-4000 --out runs/ways

The shards are those that benchmarks/cifar10.py packed. The row is "all three" by configs/cifar10_robust.yaml. Each run
keeps its output in a file of its folder; a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

BATCH = 128


def line(shards: Path, folder: Path, epochs: int, batch: int, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "lightning_robust.cli.main", "fit", "--config", "cifar10_robust"),
        f"--data.train={shards}",
        f"--data.val={shards}",
        f"--data.batch_size={batch}",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.limit_val_batches=4",
        f"--trainer.max_epochs={epochs}",
        "--trainer.callbacks+=ModelCheckpoint",
        f"--trainer.callbacks.dirpath={folder}",
        "--trainer.callbacks.filename=last",
        "--trainer.callbacks.every_n_train_steps=5",
        "--trainer.callbacks.enable_version_counter=false",
        "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={folder}",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        *more,
    ]


def finish(command: Sequence[str], folder: Path) -> None:
    """Run a command to its end, its output in ``run.log``; a failure shows the end of it."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "run.log"
    with log.open("a") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}; {log} ends:\n{log.read_text()[-3000:]}")
    (folder / "finished").touch()


def run_and_kill(command: Sequence[str], folder: Path, steps: int) -> int:
    """Kill -9 a run once its last checkpoint holds ``steps`` steps; return the step it will resume from."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "killed.log").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while steps_of(folder) < steps:
            try:
                process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
            raise SystemExit(f"The run ended before it could be killed; its output is in {folder / 'killed.log'}.")
        process.kill()
        process.wait()
    return steps_of(folder)


def steps_of(folder: Path) -> int:
    path = folder / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.double().flatten() for value in state.values()])


def last_logged(folder: Path, name: str) -> float:
    rows = [row for path in sorted(folder.rglob("metrics.csv")) for row in csv.DictReader(path.open())]
    return float([row[name] for row in rows if row.get(name)][-1])


def page(out: Path, epochs: int, killed_at: int, command: str) -> str:
    reference = weights(out / "whole")
    total = steps_of(out / "whole")
    lines = [
        "# One row three ways",
        "",
        f'Made by `{command}` with torch {torch.__version__}: the row "all three" of [CIFAR-10](cifar10.md) '
        f"(`cifar10_robust`), {epochs} epochs, {total} steps of {BATCH} images, seed of the config, on the CPU. The "
        f"pair is two gloo processes of {BATCH // 2} images each.",
        "",
        "| run | last epoch: training loss | largest difference of a weight or statistic | its relative norm |",
        "| --- | --- | --- | --- |",
    ]
    told = {
        "whole": "one process",
        "killed": f"killed with -9 after step {killed_at}, resumed",
        "pair": "two processes",
    }
    for name, text in told.items():
        difference = weights(out / name) - reference
        loss = last_logged(out / name, "train_loss_epoch")
        relative = difference.norm() / reference.norm()
        lines.append(f"| {text} | {loss:.4f} | {difference.abs().max():.2g} | {relative:.2g} |")
    lines += [
        "",
        "A pair sees the same global batches as one process, but each process normalizes its half by statistics of its "
        "own (BatchNorm), so its weights differ; with a net that has none they agree to rounding "
        "(`tests/contracts/test_callbacks_ddp.py`).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="training shards packed by benchmarks/cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--report", type=Path, help="markdown page to write")
    arguments = parser.parse_args()
    shards, out, epochs = arguments.shards, arguments.out, arguments.epochs
    runs = {
        "whole": line(shards, out / "whole", epochs, BATCH),
        "killed": line(shards, out / "killed", epochs, BATCH),
        "pair": line(shards, out / "pair", epochs, BATCH // 2, "--trainer.devices=2", "--trainer.strategy=ddp"),
    }
    note = out / "killed" / "step.txt"
    for name, command in tqdm(runs.items(), unit="run"):
        folder = out / name
        if (folder / "finished").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        if name == "killed":
            step = run_and_kill(command, folder, steps_of(out / "whole") // 2)
            note.write_text(str(step))
            command = [*command, f"--ckpt_path={folder / 'last.ckpt'}"]
        finish(command, folder)
    told = page(out, epochs, int(note.read_text()), f"python benchmarks/{Path(__file__).name} --epochs {epochs}")
    if arguments.report:
        arguments.report.write_text(told)
    print(told)


if __name__ == "__main__":
    main()
