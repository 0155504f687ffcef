"""One step of JSMA with the exact best pair: `python benchmarks/attack_rows_jsma.py`.

Needs torchattacks 3.5.1 (`pip install --no-deps torchattacks==3.5.1`), best in an environment of its own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from measure import Row, interleave, machine, repeated, table
from torch import Tensor, nn

from lightning_robust.attacks import jsma
from lightning_robust.attacks.pairs import best_pair
from lightning_robust.models import resnet20

OURS, PEER, LARGE = "ours: JSMA step", "theirs: torchattacks 3.5.1", "ours: JSMA step, 224x224x3"
ROWS = [Row("one exact JSMA step, ResNet-20, one 32x32x3 image", OURS, PEER, "faster", target=10.0)]


def contestants(seed: int = 0) -> dict[str, Callable[[], Tensor]]:
    """One step on one image by us and by the peer, and by us at 224x224x3, where the peer's map takes 91 GB."""
    import torchattacks

    net, image, target = problem(32, seed)
    large_net, large_image, large_target = problem(224, seed)
    peer = torchattacks.JSMA(net, theta=1.0, gamma=2 / image[0].numel())
    return {
        OURS: lambda: one_step(net, image, target),
        PEER: lambda: peer(image, target),
        LARGE: lambda: one_step(large_net, large_image, large_target),
    }


def problem(size: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A net of random weights, an image and the net's own answer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = resnet20().eval()
        # below 0.99, where the peer takes a feature for full
        image = 0.9 * torch.rand(1, 3, size, size)
    with torch.no_grad():
        return net, image, net(image).argmax(1)


def one_step(net: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Both of an image's steps: the search and its judgment, toward the class that torchattacks aims at."""
    return jsma(net, image, target, toward=(target + 1) % 10, gamma=2 / image[0].numel())


def is_same_pair(seed: int = 0) -> bool:
    """Whether ours is the pair that the peer changes."""
    import torchattacks

    net, image, target = problem(32, seed)
    peer = torchattacks.JSMA(net, theta=1.0, gamma=2 / image[0].numel())
    changed = (peer(image.clone(), target) != image).flatten().nonzero()[:, 0]
    jacobian = peer.compute_jacobian(image)
    aim = int((target + 1) % 10)
    pair, _ = best_pair(jacobian[aim][None], (jacobian[aim] - jacobian.sum(0))[None])
    return pair[0].tolist() == changed.tolist()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    same = sum(is_same_pair(seed) for seed in range(5))
    runs = contestants()
    times = interleave({name: repeated(run) for name, run in runs.items()}, options.repeats)
    print("\n".join(table(ROWS, times, {})))
    print(f"\nOne step at 224x224x3: {statistics.median(times[LARGE]):.2f} s (must stay under 1 s).")
    print(f"Same pair as torchattacks on {same} of 5 images. {machine()}")


if __name__ == "__main__":
    main()
