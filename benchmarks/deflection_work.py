"""The pieces of work behind benchmarks/deflection_tables.py: attack, judge and adapt, ten images at a time.

Every finished piece is a file of its own, written aside and renamed, so a run that is cut off goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from deflection_rows import MAIN, defense_named, net_behind
from pretrained import imagenet_images
from torch import Tensor, nn

from lightning_robust import attacks as A
from lightning_robust import defenses as D
from lightning_robust import seeds as streams
from lightning_robust.evaluation.rounding import round_to_8_bits

CHUNK = 10
TUNING = 100  # the first images are for choosing parameters, the others for reporting
EPS = 4 / 255
# steps of the adaptive attacks: on the rows of Table 1, and on all others
LONG, SHORT = 30, 15
MAIN_ROWS = ("identity", MAIN)
# of BPDA where a few steps are not enough
PATIENT = {"quilt": 60, "tvm+quilt": 60, "crop+tvm+quilt": 60}
# normalized L2 of the paper's Table 1: the usual budget, and the large one where it has a row
BUDGETS = {
    "FGSM": (0.05, 0.12),
    "IGSM": (0.03, 0.09),
    "DFool": (0.02, 0.08),
    "JSMA": (0.02, 0.05),
    "LBFGS": (0.02, 0.04),
    "C&W": (0.04, None),
}
SLOW = ("JSMA", "LBFGS", "C&W")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where things are."""

    images: Path
    zoo: Path
    out: Path


@dataclasses.dataclass(frozen=True)
class Piece:
    """One piece of work: ``kind`` is attack, judge or adapt; ``attack`` is "clean" or a name and budget."""

    kind: str
    net: str
    split: str
    start: int
    attack: str = "clean"
    defense: str = ""
    draws: int = 20

    def path(self, out: Path) -> Path:
        attack, defense = self.attack.replace(" ", "-"), self.defense.replace(" ", "-") or "none"
        return out / self.kind / self.net / self.split / attack / defense / f"{self.start}.npz"


def do(piece: Piece, place: Place) -> None:
    """Do one piece, unless its file is there."""
    path = piece.path(place.out)
    if path.exists():
        return
    found = {"attack": _attack, "judge": _judge, "adapt": _adapt}[piece.kind](piece, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.part")
    with aside.open("wb") as file:
        np.savez(file, **{name: value.numpy() for name, value in found.items()})
    aside.replace(path)


def read(piece: Piece, place: Place) -> dict[str, Tensor]:
    with np.load(piece.path(place.out)) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


@functools.cache
def load_net(name: str, zoo: Path) -> nn.Module:
    if str(zoo) not in sys.path:
        sys.path.insert(0, str(zoo))
    net: nn.Module = importlib.import_module("imagenet_zoo").load(name)
    return net.requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)


@functools.cache
def right_images(net_name: str, split: str, place: Place) -> tuple[Tensor, Tensor]:
    """The images of a split that the net gets right, cut to its size: [0, 1] floats and labels."""
    net = load_net(net_name, place.zoo)
    image, target = imagenet_images(place.images, 10_000)
    part = slice(0, TUNING) if split == "tune" else slice(TUNING, None)
    zoo = importlib.import_module("imagenet_zoo")
    unit = round_to_8_bits(zoo.centre(image[part].float() / 255, net.size))
    with torch.no_grad():
        right = torch.cat([net(part).argmax(1) for part in unit.split(CHUNK)]) == target[part]
    return unit[right], target[part][right]


@functools.cache
def patch_bank(net_name: str, place: Place) -> D.PatchBank:
    """Patches of the images that are not reported on."""
    return D.PatchBank.from_images(right_images(net_name, "tune", place)[0])


def _chunk(piece: Piece, place: Place) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    image, target = right_images(piece.net, piece.split, place)
    chosen = slice(piece.start, piece.start + CHUNK)
    ids = torch.arange(len(image))[chosen]
    return load_net(piece.net, place.zoo), image[chosen], target[chosen], ids


def _attack(piece: Piece, place: Place) -> dict[str, Tensor]:
    net, image, target, ids = _chunk(piece, place)
    name, budget = piece.attack.rsplit(" ", 1)
    adversarial = round_to_8_bits(run_attack(name, net, image, target, float(budget), streams.derive(ids, "attack")))
    size = A.normalized_l2(image, adversarial)
    found = {"image": (adversarial * 255).round().to(torch.uint8)}
    return found | dataclasses.asdict(size)


def run_attack(name: str, net: nn.Module, image: Tensor, target: Tensor, budget: float, seeds: Tensor) -> Tensor:
    """Attack the bare net at a relative L2 budget."""
    norm = image.flatten(1).norm(dim=1)
    eps = budget * norm / image[0].numel() ** 0.5
    if name == "FGSM":
        found = A.fgsm(net, image, target, eps=eps, random_start=False)
    elif name == "IGSM":
        found = A.igsm(net, image, target, eps=eps)
    elif name == "DFool":
        found = A.deepfool(net, image, target)
    elif name == "JSMA":
        # most succeed far below this limit; the smallest change is what is scaled, down only
        found = A.jsma(net, image, target, toward="second", gamma=0.0015)
        spent = (found - image).flatten(1).norm(dim=1) / norm
        return torch.where((spent > budget).view(-1, 1, 1, 1), A.scale_to_budget(image, found, budget), found)
    elif name == "LBFGS":
        found = A.lbfgs(net, image, target, searches=4, steps=30)
    else:
        found = A.carlini_wagner(net, image, target, searches=4, steps=60, learning_rate=0.01)
    return A.scale_to_budget(image, found, budget)


def _judge(piece: Piece, place: Place) -> dict[str, Tensor]:
    net, image, target, ids = _chunk(piece, place)
    if piece.attack != "clean":
        attacked = read(dataclasses.replace(piece, kind="attack", defense=""), place)
        image = attacked["image"].float() / 255
    defense = defense_named(piece.defense, net, functools.partial(patch_bank, piece.net, place))
    net = net_behind(piece.defense, net)
    return {"label": labels(net, defense, image, ids, piece.draws), "target": target}


@torch.no_grad()
def labels(net: nn.Module, defense: D.Defense, image: Tensor, ids: Tensor, draws: int) -> Tensor:
    """What the net says of an image under fresh draws of a defense: (draws, B); one row if nothing is random."""
    guarded = D.Purified(net, defense)
    rows = draws if defense.is_random else 1
    seeds = streams.derive(ids, "judge")
    found = [guarded(image, seeds=streams.derive(seeds, draw)).argmax(1) for draw in range(rows)]
    return torch.stack(found)


def _adapt(piece: Piece, place: Place) -> dict[str, Tensor]:
    """Attacks that know the defense, at Linf 4/255, judged on fresh draws; ``attack`` names the way of the gradient."""
    net, image, target, ids = _chunk(piece, place)
    defense = defense_named(piece.defense, net, functools.partial(patch_bank, piece.net, place))
    way = ADAPTIVE[piece.attack]
    net = net_behind(piece.defense, net)
    steps = PATIENT.get(piece.defense, LONG if piece.defense in MAIN_ROWS else SHORT)
    adversarial = way(net, defense, image, target, streams.derive(ids, "adaptive"), steps=steps)
    adversarial = round_to_8_bits(adversarial)
    return {"label": labels(net, defense, adversarial, ids, piece.draws), "target": target}


def _bpda(net: nn.Module, defense: nn.Module, image: Tensor, target: Tensor, seeds: Tensor, *, steps: int) -> Tensor:
    return _climb(A.eot(A.bpda(defense, net), 1), image, target, seeds, steps)


def _exact(
    net: nn.Module, defense: nn.Module, image: Tensor, target: Tensor, seeds: Tensor, *, steps: int, draws: int
) -> Tensor:
    return _climb(A.eot(D.Purified(net, defense), draws), image, target, seeds, steps)


def _climb(model: Callable[[Tensor], Tensor], image: Tensor, target: Tensor, seeds: Tensor, steps: int) -> Tensor:
    return A.pgd(model, image, target, eps=EPS, steps=steps, step_size=5 * EPS / steps, seeds=seeds, loss="margin")


ADAPTIVE = {
    "BPDA": _bpda,
    "EOT 1": functools.partial(_exact, draws=1),
    "EOT 5": functools.partial(_exact, draws=5),
}


def pieces_of(kind: str, net: str, split: str, count: int, **more: object) -> Sequence[Piece]:
    return [Piece(kind, net, split, start, **more) for start in range(0, count, CHUNK)]  # type: ignore[arg-type]
