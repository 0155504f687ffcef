"""Attack, swap and publish for nets that others trained: docs/results/pretrained.md.

    python benchmarks/pretrained.py --cifar CIFAR_MOSAICS --imagenet IMAGES --zoo ZOO --out docs/results/pretrained.md

CIFAR_MOSAICS as for benchmarks/cifar10.py; IMAGES holds labels.csv (file, label) and 256 x 256 JPEG; ZOO holds
cifar_zoo.py and imagenet_zoo.py, whose ``load(name)`` gives a net for [0, 1] images. Nothing is trained or tuned here.
"""

from __future__ import annotations

import argparse
import copy
import csv
import platform
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from cifar10 import noise_of_equal_size
from torch import Tensor, nn
from tqdm import tqdm

from lightning_robust.attacks import pgd
from lightning_robust.errors import RobustWarning
from lightning_robust.evaluation import Attack, Clean, accuracy_table, difference_table, evaluate, wilson, worst_of_pgd
from lightning_robust.functional import laplacian_sharpen
from lightning_robust.nn import swap_downsampling

CIFAR = ("resnet20", "resnet56", "robust_resnet", "robust_cnn")
# accuracy under PGD-20 (cross-entropy, step eps / 4) at 1, 2, 4, 8 /255, measured elsewhere on 500 other test images
KNOWN = {
    "resnet20": (16.0, 1.4, 0.0, 0.0),
    "robust_resnet": (68.4, 61.0, 49.4, 19.8),
    "robust_cnn": (53.6, 49.6, 40.2, 25.4),
}
ORDERS = ("pool_first", "lowpass", "conv_first")


def cifar_images(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    mosaics = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in sorted(folder.glob("test_*.jpg"))]
    images = np.concatenate([m.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for m in mosaics])
    targets = np.load(folder / "test_labels.npy").astype(np.int64)
    return torch.from_numpy(images[:count]).permute(0, 3, 1, 2), torch.from_numpy(targets[:count])


def imagenet_images(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    rows = list(csv.DictReader((folder / "labels.csv").open()))[:count]
    images = np.stack([cv2.imread(str(folder / row["file"]), cv2.IMREAD_COLOR_RGB) for row in rows])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor([int(row["label"]) for row in rows])


def batches(image: Tensor, target: Tensor, size: int = 100):
    for start in range(0, len(image), size):
        stop = min(start + size, len(image))
        yield image[start:stop], target[start:stop], torch.arange(start, stop)


def attack_table(zoo, image: Tensor, target: Tensor) -> str:
    """PGD-20 with cross-entropy as the known figures have it, one random start."""
    lines = ["| net | n | eps | accuracy | measured elsewhere, n 500 |", "| --- | --- | --- | --- | --- |"]
    for name, known in KNOWN.items():
        net = zoo.load(name)
        levels = (1, 2, 4, 8)
        columns = [
            Attack(str(e), (partial(pgd, steps=20, step_size=e / 255 / 4, early_stop=True),), eps=e / 255)
            for e in levels
        ]
        records = evaluate(net, tqdm(list(batches(image, target)), desc=f"PGD {name}"), columns)
        for level, record, figure in zip(levels, records, known, strict=True):
            lines.append(f"| {name} | {len(image)} | {level}/255 | {percent(record.correct)} | {figure} |")
    return "\n".join(lines) + "\n"


def percent(correct) -> str:
    found = wilson(int(sum(correct)), len(correct))
    return f"{100 * found.estimate:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


@torch.no_grad()
def accuracy(net: nn.Module, prepare, image: Tensor, target: Tensor) -> str:
    right = [net(prepare(x.float() / 255)).argmax(1) == y for x, y, _ in batches(image, target, 50)]
    return percent(torch.cat(right).tolist())


def swap_table(name: str, net: nn.Module, prepare, image: Tensor, target: Tensor) -> list[str]:
    """Clean accuracy before and after each order, without any training after the swap."""
    lines = [f"| {name} | {len(image)} | none |  |  | {accuracy(net, prepare, image, target)} |"]
    example = prepare(image[:2].float() / 255)
    for order in ORDERS:
        swapped = copy.deepcopy(net)
        report = swap_downsampling(swapped, order=order, max_pool="max_then_pool", example_input=example)
        assert list(swapped.state_dict()) == list(net.state_dict())
        assert swapped(example).shape == net(example).shape
        (gradient,) = torch.autograd.grad(swapped(example.requires_grad_()).logsumexp(1).sum(), example)
        assert torch.isfinite(gradient).all()
        example = example.detach()
        counts = f"{len(report.changed)} | {len(report.skipped)} + {len(report.unreached)}"
        lines.append(f"| {name} | {len(image)} | {order} | {counts} | {accuracy(swapped, prepare, image, target)} |")
    return lines


def publish_tables(zoo, image: Tensor, target: Tensor) -> str:
    """Sharpening as a row of inputs, on the unchanged ResNet-20."""
    net, surrogate = zoo.load("resnet20"), zoo.load("resnet56")
    columns = [
        Clean(),
        worst_of_pgd(1 / 255),
        worst_of_pgd(2 / 255),
        Attack("PGD-20 8/255 (transfer)", (partial(pgd, steps=20),), eps=8 / 255, surrogate=surrogate),
    ]
    sharpened = partial(laplacian_sharpen, alpha=0.15)
    ways = {
        "as they are": None,
        "sharpened, alpha 0.15": sharpened,
        "control: noise of equal PSNR": noise_of_equal_size(sharpened),
    }
    found = {
        name: evaluate(net, tqdm(list(batches(image, target)), desc=name), columns, publish=way)
        for name, way in ways.items()
    }
    return accuracy_table(found) + "\n" + difference_table(found, "as they are")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--imagenet", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--attacked", type=int, default=300, help="CIFAR-10 test images that are attacked")
    parser.add_argument("--judged", type=int, default=2000, help="CIFAR-10 test images for the swaps")
    parser.add_argument("--imagenet-judged", type=int, default=200)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.zoo))
    import cifar_zoo
    import imagenet_zoo

    image, target = cifar_images(arguments.cifar, max(arguments.attacked, arguments.judged))
    swaps = [
        "| net | n | order | swapped | skipped + unreached | clean accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in tqdm(CIFAR, desc="swaps, CIFAR"):
        net = cifar_zoo.load(name)
        swaps += swap_table(name, net, lambda x: x, image[: arguments.judged], target[: arguments.judged])
    large, labels = imagenet_images(arguments.imagenet, arguments.imagenet_judged)
    for name in tqdm(("squeezenet", "mobilenet_v1", "mobilenet_v2"), desc="swaps, ImageNet"):
        net = imagenet_zoo.load(name)
        swaps += swap_table(name, net, lambda x, size=net.size: imagenet_zoo.centre(x, size), large, labels)
    few = image[: arguments.attacked], target[: arguments.attacked]
    arguments.out.write_text(
        PAGE.format(
            attacked=arguments.attacked,
            judged=arguments.judged,
            python=platform.python_version(),
            torch=torch.__version__.split("+")[0],
            swaps="\n".join(swaps),
            attacks=attack_table(cifar_zoo, *few),
            inputs=publish_tables(cifar_zoo, *few),
        )
    )


PAGE = """# Nets that others trained, as measured

Made by

    python benchmarks/pretrained.py --cifar CIFAR_MOSAICS --imagenet IMAGES --zoo ZOO --out PAGE

with Python {python}, torch {torch}, seed 0; 95% Wilson intervals. CIFAR-10 images come from JPEG mosaics; the ImageNet
images are the NIPS-2017 DEV subset, whose accuracy is not that of the ImageNet validation set.

## PGD against figures measured elsewhere

PGD-20 with cross-entropy, step eps / 4, one random start, the first {attacked} stored test images (the other figures:
500 lossless ones). An interval that misses the other figure would mean a broken attack.

{attacks}
## Layers swapped without training afterwards

ASAP in the place of every layer that downsamples; max pools keep their maximum; no fine-tuning. Keys, output shapes and
finite gradients were checked for each. `pool_first` changes what the kernels see and is for training from scratch.

{swaps}

## Sharpening: a row of inputs

The pretrained ResNet-20, unchanged. The owner publishes at 8 bits, the attacker moves in the ball around the published
image: white-box (worst of PGD-20 with cross-entropy and margin loss per image), or transferred from the pretrained
ResNet-56. PGD, not AutoAttack; {attacked} images.

{inputs}"""


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore", RobustWarning)
    main()
