"""One CIFAR-10 row three ways: as it is, killed half-way and resumed, and as two processes of half the batch.

    python benchmarks/cifar10_runs.py --shards runs/cifar10/shards/train-4000 --out runs/ways

The shards are those that benchmarks/cifar10.py packed. Prints a table of weights.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import torch


def line(shards: Path, folder: Path, epochs: int, batch: int, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "lightning_robust.cli.main", "fit", "--config", "cifar10_robust"),
        f"--data.train={shards}",
        f"--data.val={shards}",
        f"--data.batch_size={batch}",
        "--data.num_workers=1",
        "--trainer.accelerator=cpu",
        "--trainer.limit_val_batches=1",
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


def run(*arguments: object) -> None:
    subprocess.run(line(*arguments), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # type: ignore[arg-type]


def run_and_kill(shards: Path, folder: Path, epochs: int, batch: int) -> int:
    """Kill -9 the run once its log says that half of the steps are done; return the step it resumes from."""
    process = subprocess.Popen(
        line(shards, folder, epochs, batch), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None:
        found = sorted(folder.glob("last.ckpt"))
        if found and torch.load(found[0], weights_only=True)["global_step"] >= 15:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"])


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.double().flatten() for value in state.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    shards, out, epochs = arguments.shards, arguments.out, arguments.epochs
    run(shards, out / "whole", epochs, 128)
    step = run_and_kill(shards, out / "killed", epochs, 128)
    run(shards, out / "killed", epochs, 128, f"--ckpt_path={out / 'killed' / 'last.ckpt'}")
    run(shards, out / "pair", epochs, 64, "--trainer.devices=2", "--trainer.strategy=ddp")
    reference = weights(out / "whole")
    print("| run | largest difference of a weight or statistic | relative norm of the difference |")
    print("| --- | --- | --- |")
    for name, told in (("killed", f"killed with -9 after step {step}, resumed"), ("pair", "2 processes, gloo")):
        difference = weights(out / name) - reference
        print(f"| {told} | {difference.abs().max():.2g} | {difference.norm() / reference.norm():.2g} |")


if __name__ == "__main__":
    main()
