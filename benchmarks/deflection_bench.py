"""What the figures of benchmarks/deflection_figures.py are drawn from."""

from __future__ import annotations

import argparse
import csv
import importlib
from pathlib import Path

import numpy as np
import torch
from deflection_rows import ATTACKS
from deflection_work import BUDGETS, CHUNK, TUNING, Place, load_net, right_images
from pretrained import imagenet_images
from torch import Tensor, nn

from lightning_robust.evaluation import mean_interval
from lightning_robust.evaluation.rounding import round_to_8_bits
from lightning_robust.nn import RobustActivationMap


class Bench:
    """A net, the images that it gets right, what attacks made of them, and what the net says of all of these."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.place = Place(arguments.images.absolute(), arguments.zoo.absolute(), arguments.out.absolute())
        self.name, self.count, self.draws = arguments.net, arguments.count, arguments.draws
        self.net: nn.Module = load_net(self.name, self.place.zoo)
        self.image, self.target = right_images(self.name, "report", self.place)
        self.find_map = RobustActivationMap(self.net)
        self._maps: dict[int, Tensor] = {}
        self.attacked = {a: found for a in ATTACKS if (found := self._attacked(f"{a} {BUDGETS[a][0]}")) is not None}
        most = max(len(found) for found in self.attacked.values())
        self.logits = logits(self.net, self.image[:most])
        self.logits_attacked = {a: logits(self.net, found) for a, found in self.attacked.items()}

    def maps(self, classes: int) -> Tensor:
        """Maps of the clean images."""
        if classes not in self._maps:
            parts = self.image[: len(self.logits)].split(CHUNK)
            self._maps[classes] = torch.cat([self.find_map(part, classes=classes) for part in parts])
        return self._maps[classes]

    def broken(self, attack: str) -> Tensor:
        """Numbers of the images that an attack took the net away from."""
        answer = self.logits_attacked[attack].argmax(1)
        return (answer != self.target[: len(answer)]).nonzero().flatten()

    def _attacked(self, attack: str) -> Tensor | None:
        folder = self.place.out / "attack" / self.name / "report" / attack.replace(" ", "-") / "none"
        parts = []
        # up to the first gap: what another process still works on is left out
        while (path := folder / f"{CHUNK * len(parts)}.npz").exists():
            with np.load(path) as stored:
                parts.append(torch.from_numpy(stored["image"]).float() / 255)
        return torch.cat(parts) if parts else None


@torch.no_grad()
def logits(net: nn.Module, image: Tensor) -> Tensor:
    return torch.cat([net(part) for part in image.split(CHUNK)])


def told(values: Tensor, digits: int = 1) -> str:
    found = mean_interval(values.double().tolist())
    return f"{found.estimate:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)), ""]


def credited(bench: Bench, chosen: Tensor) -> list[dict[str, str]]:
    """Rows of labels.csv of images of the report split, found by their pixels."""
    zoo = importlib.import_module("imagenet_zoo")
    every = imagenet_images(bench.place.images, 10_000)[0][TUNING:].float() / 255
    every = round_to_8_bits(zoo.centre(every, bench.net.size))
    rows = list(csv.DictReader((bench.place.images / "labels.csv").open()))[TUNING:]
    return [rows[int((every == one).flatten(1).all(1).nonzero()[0])] for one in bench.image[chosen]]


def correlation(first: Tensor, second: Tensor) -> Tensor:
    first, second = (value.flatten(1) - value.flatten(1).mean(1, keepdim=True) for value in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1)).clamp_min(1e-12)


def write_credits(folder: Path, credit: list[dict[str, str]]) -> None:
    lines = [
        "# Photographs in these figures",
        "",
        "From the NIPS 2017 DEV set; each under CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/), cut to 224 x "
        "224, attacked, deflected, denoised or overlaid with maps by us. The first is also that of `differences.png`.",
        *table(
            ["photograph", "author", "license", "source"],
            [[row["name"].replace("_", " "), row["author"], row["license"], row["landing_url"]] for row in credit],
        ),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "CREDITS.md").write_text("\n".join(lines))


def shares(top: Tensor, wanted: Tensor) -> list[float]:
    """Percent of rows that have the wanted class at each of five places, then of those that have it nowhere."""
    at = (top == wanted[:, None]).double().mean(0) * 100
    return [*at.tolist(), 100 - float(at.sum())]


def share_inside(maps: Tensor, change: Tensor) -> Tensor:
    """Share of each image's change in the half of its pixels on which its map is highest."""
    ranked = change.flatten(1).gather(1, maps.flatten(1).argsort(dim=1, descending=True))
    return ranked[:, : ranked.shape[1] // 2].sum(1) / ranked.sum(1)
