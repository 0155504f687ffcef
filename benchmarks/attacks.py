"""DeepFool, Carlini-Wagner and JSMA beside other libraries: docs/results/attacks.md.

    python benchmarks/attacks.py --data CIFAR_MOSAICS --zoo ZOO --out docs/results/attacks.md

CIFAR_MOSAICS as for benchmarks/cifar10.py; ZOO holds cifar_zoo.py, whose ``load(name)`` gives a net for [0, 1] images.
Peers that are not installed are left out and named: torchattacks 3.5.1 (``pip install --no-deps``), foolbox 3.3.4 and
adversarial-robustness-toolbox 1.20.1, best in an environment of their own.

All contestants of a group run once per round and a ratio is taken per round. The clock is the processor time of this
process, so that other work on the machine counts little. The net's parameters ask for no gradient, which spares peers
that would compute theirs. JSMA is one step on one image, see benchmarks/attack_rows_jsma.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attack_rows_jsma
import numpy as np
import torch
from measure import Row, interleave, machine, ratios, verdict
from pretrained import cifar_images
from torch import Tensor, nn

from lightning_robust.attacks import carlini_wagner, deepfool
from lightning_robust.evaluation import mean_interval

GROUPS = ("DeepFool", "C&W", "JSMA")
PEERS = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "ART"}
Attack = Callable[[], Tensor]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    net, image, target = _samples(arguments.zoo, arguments.data, arguments.images)
    missing = [title for name, title in PEERS.items() if importlib.util.find_spec(name) is None]
    groups = {
        "DeepFool": lambda: _deepfool(net, image, target),
        "C&W": lambda: _carlini_wagner(net, image, target, arguments),
    }
    lines: list[str] = []
    for name in arguments.only:
        if name == "JSMA":
            lines += _jsma(arguments.repeats) if "torchattacks" not in missing else []
            continue
        attacks = {peer: attack for peer, attack in groups[name]().items() if peer not in arguments.without}
        print(f"{name}: {', '.join(attacks)}", file=sys.stderr, flush=True)
        lines += _measure(name, attacks, net, image, target, arguments)
    if missing:
        lines.append(f"Not installed, so left out: {', '.join(missing)}.")
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*_preface(arguments, len(image)), *lines]) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--images", type=int, default=32, help="batch, correctly classified images only")
    parser.add_argument("--steps", type=int, default=100, help="of Carlini-Wagner per search")
    parser.add_argument("--searches", type=int, default=5)
    parser.add_argument("--art-steps", type=int, default=10, help="of ART's Carlini-Wagner per search")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--without", nargs="+", choices=PEERS.values(), default=[], help="peers to leave out")
    parser.add_argument("--out", type=Path, help="markdown page to write, e.g. docs/results/attacks.md")
    return parser.parse_args()


def _samples(zoo: Path, data: Path, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    sys.path.insert(0, str(zoo))
    net = __import__("cifar_zoo").load("resnet20").requires_grad_(requires_grad=False)
    image, target = cifar_images(data, 2 * count + 20)
    image = image.float().div(255).contiguous()
    with torch.no_grad():
        right = net(image).argmax(1) == target
    return net, image[right][:count], target[right][:count]


def _deepfool(net: nn.Module, image: Tensor, target: Tensor) -> dict[str, Attack]:
    attacks: dict[str, Attack] = {"ours": partial(deepfool, net, image, target)}
    if importlib.util.find_spec("foolbox"):
        import foolbox

        peer = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)
        attacks["foolbox"] = _by_foolbox(peer, net, image, target)
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        attacks["torchattacks"] = partial(torchattacks.DeepFool(net, steps=50, overshoot=0.02), image, target)
    if importlib.util.find_spec("art"):
        from art.attacks.evasion import DeepFool

        peer = DeepFool(_for_art(net), max_iter=50, epsilon=0.02, nb_grads=10, batch_size=len(image), verbose=False)
        attacks["ART"] = partial(_by_art, peer, image, target)
    return attacks


def _carlini_wagner(net: nn.Module, image: Tensor, target: Tensor, arguments: argparse.Namespace) -> dict[str, Attack]:
    steps, searches = arguments.steps, arguments.searches
    ours = partial(carlini_wagner, net, image, target, steps=steps, searches=searches)
    attacks: dict[str, Attack] = {"ours": ours}
    if importlib.util.find_spec("foolbox"):
        import foolbox

        peer = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=searches, steps=steps, stepsize=5e-3, initial_const=1e-2
        )
        attacks["foolbox"] = _by_foolbox(peer, net, image, target)
    if importlib.util.find_spec("art"):
        from art.attacks.evasion import CarliniL2Method

        peer = CarliniL2Method(
            _for_art(net),
            learning_rate=5e-3,
            binary_search_steps=searches,
            max_iter=arguments.art_steps,
            initial_const=1e-2,
            batch_size=len(image),
            verbose=False,
        )
        attacks["ART"] = partial(_by_art, peer, image, target)
    return attacks


def _by_foolbox(peer, net: nn.Module, image: Tensor, target: Tensor) -> Attack:
    import foolbox

    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    return lambda: peer(model, image, target, epsilons=None)[1]


def _for_art(net: nn.Module):
    from art.estimators.classification import PyTorchClassifier

    loss = nn.CrossEntropyLoss()
    return PyTorchClassifier(net, loss, (3, 32, 32), 10, clip_values=(0, 1), device_type="cpu")


def _by_art(peer, image: Tensor, target: Tensor) -> Tensor:
    return torch.from_numpy(peer.generate(image.numpy(), np.eye(10, dtype=np.float32)[target.numpy()]))


def _measure(
    name: str, attacks: dict[str, Attack], net: nn.Module, image: Tensor, target: Tensor, arguments: argparse.Namespace
) -> list[str]:
    """Time in turns and judge by one forward pass; ART, many times slower, runs once and has no ratio."""
    found: dict[str, Tensor] = {}
    timed = {peer: _timed(peer, attack, found) for peer, attack in attacks.items() if peer != "ART"}
    times = interleave(timed, arguments.repeats)
    if "ART" in attacks:
        times["ART"] = [_timed("ART", attacks["ART"], found)()]
    lines = [f"## {name}", "", "| | CPU s | fooled | median L2 | mean L2 | ours is | must reach | |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    sizes: dict[str, Tensor] = {}
    for peer, result in found.items():
        with torch.no_grad():
            fooled = net(result).argmax(1) != target
        sizes[peer] = (result - image).flatten(1).norm(dim=1).where(fooled, torch.nan)
        distance = sizes[peer][fooled].tolist()
        cells = [peer, f"{statistics.median(times[peer]):.3g}", f"{int(fooled.sum())} of {len(image)}"]
        cells += [
            f"{statistics.median(distance):.4f}",
            f"{statistics.mean(distance):.4f}",
            *_comparison(name, peer, times),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *_norms(sizes), ""]


def _norms(sizes: dict[str, Tensor]) -> list[str]:
    """Our norms against a peer's, in pairs, on the images that both fool."""
    lines = []
    for peer, theirs in sizes.items():
        both = ~(theirs + sizes["ours"]).isnan()
        if peer == "ours" or not bool(both.any()):
            continue
        above = statistics.median(sizes["ours"][both].tolist()) / statistics.median(theirs[both].tolist()) - 1
        found = mean_interval((sizes["ours"][both] / theirs[both]).log().tolist())
        ratio, low, high = (math.exp(value) for value in (found.estimate, found.low, found.high))
        said = "not distinguishable" if low <= 1 <= high else "smaller" if ratio < 1 else "**larger**"
        lines.append(
            f"- {peer}: our median norm is {above:+.1%} of its; image by image ours is {ratio:.3f} [{low:.3f}, "
            f"{high:.3f}] times its (geometric mean): {said}."
        )
    return lines


def _jsma(repeats: int) -> list[str]:
    runs = attack_rows_jsma.contestants()
    print(f"JSMA: {', '.join(runs)}", file=sys.stderr, flush=True)
    found: dict[str, Tensor] = {}
    times = interleave({name: _timed(name, run, found) for name, run in runs.items()}, repeats + 1)
    # the first round warms up
    times = {name: values[1:] for name, values in times.items()}
    lines = ["## JSMA", "", "| | CPU s | peer CPU s | ours is | must reach | |", "|---|---|---|---|---|---|"]
    for row in attack_rows_jsma.ROWS:
        ours, peer = (statistics.median(times[name]) for name in (row.ours, row.peer))
        faster = f"{statistics.median(ratios(row, times)):.1f}x faster"
        lines.append(f"| {row.name} | {ours:.3g} | {peer:.3g} | {faster} | {row.target:g}x | {verdict(row, times)} |")
    large = statistics.median(times[attack_rows_jsma.LARGE])
    lines.append(f"| one at 224x224x3 | {large:.3g} | | | under 1 s | {'meets' if large < 1 else '**misses**'} |")
    same = sum(attack_rows_jsma.is_same_pair(seed) for seed in range(5))
    return [*lines, "", f"Random weights; the same pair as torchattacks on {same} of 5 images.", ""]


def _timed(name: str, attack: Attack, found: dict[str, Tensor]) -> Callable[[], float]:
    def contestant() -> float:
        start = time.process_time()
        found[name] = attack().detach()
        return time.process_time() - start

    return contestant


def _comparison(name: str, peer: str, times: dict[str, list[float]]) -> list[str]:
    if peer in ("ours", "ART"):
        return ["", "", ""]
    target = {("DeepFool", "foolbox"): 2.5, ("DeepFool", "torchattacks"): 4.0, ("C&W", "foolbox"): 1.0}[name, peer]
    row = Row(name, "ours", peer, "faster", target)
    return [f"{statistics.median(ratios(row, times)):.2f}x faster", f"{target:g}x", verdict(row, times)]


def _preface(arguments: argparse.Namespace, count: int) -> list[str]:
    return [
        "# Attacks beside other libraries",
        "",
        f"Made by `python benchmarks/attacks.py` with {machine()} ResNet-20 on {count} CIFAR-10 test images that it "
        "classifies correctly, as one batch; float32, parameters frozen for everybody. Seconds of processor time, "
        f"median of {arguments.repeats} interleaved rounds, ART once. Other work was running on the machine: "
        "trust ratios, not seconds.",
        "",
        "DeepFool: 50 steps, 10 candidate classes (torchattacks takes all), overshoot 0.02. "
        f"Carlini-Wagner: {arguments.steps} steps x {arguments.searches} searches, learning rate 0.005, first constant "
        "0.01, early abort; ours ends by 10 bisections toward the boundary. ART descends by line search, "
        f"{arguments.art_steps} steps per search, which are not comparable. Norms are those of fooled images.",
        "",
    ]


if __name__ == "__main__":
    main()
