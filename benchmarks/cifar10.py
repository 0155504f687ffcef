"""Train the rows of docs/results/cifar10.md by the command line, judge them, and write the page.

    python benchmarks/cifar10.py --data CIFAR_MOSAICS --zoo ZOO --out runs/cifar10 --preset check

CIFAR_MOSAICS holds train_*.jpg and test_*.jpg (mosaics of 25 x 40 tiles of 32 x 32 pixels) and {train,test}_labels.npy;
ZOO holds cifar_zoo.py with a pretrained ResNet-56, the surrogate of the transferred attack. A row that is finished is
not run again, and a killed one resumes at its last epoch, so the command may be repeated until it is done.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

JAFR = ["JacobianFrequencyRegularization"]
FGSM = ["AdversarialTraining", "AdversarialTraining.mode=train", "AdversarialTraining.guard.every_n_steps={epoch}"]
ROWS: dict[str, list[str]] = {
    "plain": [],
    "FLC": ["FrequencyPooling", "FrequencyPooling.pool=flc"],
    "ASAP": ["FrequencyPooling"],
    "JaFR low": JAFR,
    "JaFR high": [*JAFR, "JacobianFrequencyRegularization.direction=high"],
    "all three": ["FrequencyPooling", "PreemptiveSharpening", *JAFR],
    "FGSM-RS": FGSM,
    "FGSM-RS, ASAP": ["FrequencyPooling", *FGSM],
    "FGSM-RS, JaFR": [*FGSM, *JAFR],
}
THREE_SEEDS = ("plain", "all three")


@dataclass(frozen=True)
class Preset:
    """How long to train and on how much."""

    net: str
    train_images: int
    val_images: int
    epochs: int
    test_images: int
    options: list[str] = field(default_factory=list)


# the released recipe of JaFR: images stay in [0, 1]
PREACT = [
    *("--model.net=lightning_robust.models.preact_resnet18", "--model.lr=0.2", "--model.schedule=triangular"),
    *("--model.mean=null", "--model.std=null"),
]
PRESETS = {
    "check": Preset("ResNet-20", 4000, 1000, 6, 400),
    "resnet20": Preset("ResNet-20", 45000, 5000, 30, 2000),
    "full": Preset("PreActResNet-18", 45000, 5000, 30, 2000, PREACT),
}


def pack_shards(data: Path, shards: Path, preset: Preset) -> None:
    """Pack training (the first images), validation (the last of the training set) and test images."""
    import cv2
    import numpy as np

    from lightning_robust.shards import pack
    from lightning_robust.shards.sources import ArraySamples

    for split in ("train", "test"):
        targets = np.load(data / f"{split}_labels.npy").astype(np.int64)
        mosaics = [cv2.imread(str(p), cv2.IMREAD_COLOR_RGB) for p in sorted(data.glob(f"{split}_*.jpg"))]
        images = np.concatenate([m.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for m in mosaics])
        parts = {"test": slice(None, preset.test_images)}
        if split == "train":
            parts = {"train": slice(None, preset.train_images), "val": slice(50000 - preset.val_images, 50000)}
        for name, part in parts.items():
            folder = shards / f"{name}-{len(images[part])}"
            if not (folder / "index.json").exists():
                pack(ArraySamples(images[part], targets[part]), folder, samples_per_shard=1000, overwrite=True)


def shard_folder(shards: Path, name: str, count: int) -> str:
    return str(shards / f"{name}-{count}")


def callback_arguments(row: str, preset: Preset) -> list[str]:
    """The callbacks of a row; the guard of an adversarial one looks once an epoch."""
    arguments = []
    for part in ROWS[row]:
        name, _, option = part.format(epoch=preset.train_images // 128).partition(".")
        arguments.append(f"--trainer.callbacks.{option}" if option else f"--trainer.callbacks+={name}")
    return arguments


def command(row: str, seed: int, preset: Preset, shards: Path, folder: Path, options: list[str]) -> list[str]:
    """The line a user would type for one row."""
    last = sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    return [
        *("lightning-robust", "fit", "--config", "cifar10_resnet20", f"--seed_everything={seed}"),
        f"--data.train={shard_folder(shards, 'train', preset.train_images)}",
        f"--data.val={shard_folder(shards, 'val', preset.val_images)}",
        f"--data.seed={seed}",
        *preset.options,
        f"--trainer.max_epochs={preset.epochs}",
        "--trainer.callbacks+=ModelCheckpoint",
        f"--trainer.callbacks.dirpath={folder}",
        "--trainer.callbacks.filename=last",
        "--trainer.callbacks.enable_version_counter=false",
        "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={folder}",
        "--trainer.enable_progress_bar=false",
        *callback_arguments(row, preset),
        *options,
        *([f"--ckpt_path={last[-1]}"] if last else []),
    ]


def train(row: str, seed: int, preset: Preset, shards: Path, out: Path, options: list[str]) -> None:
    folder = run_folder(out, row, seed)
    if (folder / "seconds.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    line = command(row, seed, preset, shards, folder, options)
    began = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        log.write(" ".join(line) + "\n")
        log.flush()
        done = subprocess.run(
            [sys.executable, "-m", "lightning_robust.cli.main", *line[1:]], stdout=log, stderr=log, check=False
        )
    if done.returncode:
        raise RuntimeError(
            f"Row {row!r}, seed {seed} failed; see {folder / 'log.txt'}. Run the command again to resume."
        )
    (folder / "seconds.json").write_text(json.dumps({"seconds": time.perf_counter() - began, "command": line}))


def run_folder(out: Path, row: str, seed: int) -> Path:
    return out / f"{row.replace(', ', '+').replace(' ', '-')}-{seed}"


def judge(row: str, seed: int, preset: Preset, shards: Path, out: Path, zoo: Path, device: str) -> None:
    """Judge one trained net under every column and keep one bit per image and column."""
    from functools import partial

    import torch

    from lightning_robust import corruptions
    from lightning_robust.attacks import pgd
    from lightning_robust.evaluation import Attack, Clean, Corruption, evaluate, save_records, worst_of_pgd
    from lightning_robust.functional import laplacian_sharpen
    from lightning_robust.models import ImageClassifier, preact_resnet18, resnet20
    from lightning_robust.nn import restore

    folder = run_folder(out, row, seed)
    if (folder / "records.json").exists():
        return
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True, map_location="cpu")
    build = resnet20 if preset.net == "ResNet-20" else preact_resnet18
    statistics = {name: checkpoint["hyper_parameters"][name] for name in ("mean", "std")}
    model = ImageClassifier(build(), **statistics)
    if "lightning_robust" in checkpoint:
        restore(model, checkpoint)
    else:
        model.load_state_dict(checkpoint["state_dict"])
    model = model.to(device).eval()
    batches = list(test_batches(shard_folder(shards, "test", preset.test_images)))
    noise = 0.05
    columns = [
        Clean(),
        *(worst_of_pgd(eps / 255) for eps in (1, 2, 8)),
        Corruption("noise", partial(corruptions.gaussian_noise, std=noise)),
        Corruption("blur", partial(corruptions.gaussian_blur, sigma=1.0)),
        Corruption("contrast", partial(corruptions.contrast, factor=0.3)),
        *(Corruption(f"{b} noise", partial(corruptions.band_noise, band=b, rmse=noise)) for b in BANDS),
    ]
    models = {"as trained": evaluate(model, batches, columns, device=device)}
    if (row, seed) == ("plain", 0):
        sys.path.insert(0, str(zoo))
        import cifar_zoo

        surrogate = cifar_zoo.load("resnet56").to(device)
        transfer = Attack("PGD-20 8/255 (transfer)", (partial(pgd, steps=20),), eps=8 / 255, surrogate=surrogate)
        columns = [Clean(), *(worst_of_pgd(e / 255) for e in (1, 2, 8)), transfer]
        sharpened = partial(laplacian_sharpen, alpha=0.15)
        models["inputs as they are"] = evaluate(model, batches, columns, device=device)
        models["inputs sharpened, alpha 0.15"] = evaluate(model, batches, columns, publish=sharpened, device=device)
        models["control: inputs with noise of equal PSNR"] = evaluate(
            model, batches, columns, publish=noise_of_equal_size(sharpened), device=device
        )
    save_records(folder / "records.json", models)


BANDS = ("low", "middle", "high")


def noise_of_equal_size(publish):
    """Gaussian noise with, per image, the distortion of another way to publish."""
    import torch

    from lightning_robust import seeds

    def publish_noise(image):
        rmse = (publish(image) - image).square().flatten(1).mean(1).sqrt()
        # the same draw for an image in every batch: seeded by its own content
        key = (image * 255).round().to(torch.int64).flatten(1)
        weight = torch.arange(1, key.shape[1] + 1, device=key.device)
        noise = seeds.normal(seeds.derive((key * weight).sum(1), "control"), tuple(image.shape[1:]))
        return (image + noise * rmse[:, None, None, None]).clamp(0, 1)

    return publish_noise


def test_batches(folder: str):
    from lightning_robust.datamodules import ShardDataModule

    data = ShardDataModule(test=folder, batch_size=250, num_workers=0, num_classes=10)
    data.prepare_data()
    data.setup("test")
    for batch in data.test_dataloader():
        image, target = data.transfer_batch_to_device(batch, "cpu", 0)
        yield image, target, data.batch_ids


def gaps(out: Path, row: str) -> list[tuple[float, float]]:
    """FGSM and PGD-10 accuracy on the guard's training images, at the last check of each epoch."""
    found: dict[int, tuple[float, float]] = {}
    for path in sorted(run_folder(out, row, 0).glob("**/metrics.csv")):
        for line in csv.DictReader(path.open()):
            if line.get("adversarial/fgsm_accuracy"):
                pair = (float(line["adversarial/fgsm_accuracy"]), float(line["adversarial/pgd_accuracy"]))
                found[int(line["epoch"])] = pair
    return [found[epoch] for epoch in sorted(found)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 mosaics")
    parser.add_argument("--zoo", type=Path, required=True, help="folder of cifar_zoo.py")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--preset", choices=sorted(PRESETS), default="check")
    parser.add_argument("--rows", nargs="*", choices=sorted(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of the rows 'plain' and 'all three'")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parallel", type=int, default=1, help="rows that train at the same time")
    parser.add_argument("--option", action="append", default=[], help="passed on to fit, e.g. --trainer.devices=2")
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument("--report", type=Path, help="write the page here")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    preset = PRESETS[arguments.preset]
    if arguments.epochs:
        preset = replace(preset, epochs=arguments.epochs)
    out = arguments.out / arguments.preset
    shards = arguments.out / "shards"
    pack_shards(arguments.data, shards, preset)
    runs = [(row, seed) for row in arguments.rows for seed in range(arguments.seeds if row in THREE_SEEDS else 1)]
    options = [f"--trainer.accelerator={'gpu' if arguments.device == 'cuda' else arguments.device}", *arguments.option]
    os.environ.setdefault("PYTHONUNBUFFERED", "1")

    with (
        ProcessPoolExecutor(arguments.parallel, mp_context=multiprocessing.get_context("spawn")) as judges,
        ThreadPoolExecutor(arguments.parallel) as pool,
    ):

        def one(run: tuple[str, int]) -> None:
            train(*run, preset, shards, out, options)
            print(f"trained {run[0]}, seed {run[1]}", flush=True)
            judges.submit(judge, *run, preset, shards, out, arguments.zoo, arguments.device).result()
            print(f"judged {run[0]}, seed {run[1]}", flush=True)

        list(pool.map(one, runs))
    if arguments.report:
        from cifar10_page import write_page

        write_page(arguments.report, out, preset, runs, arguments.preset, arguments.device)
        print(f"wrote {arguments.report}")


if __name__ == "__main__":
    main()
