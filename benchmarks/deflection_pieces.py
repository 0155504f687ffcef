"""What the pieces that benchmarks/deflection_tables.py left say: accuracies, intervals, differences."""

from __future__ import annotations

import dataclasses
import statistics

import numpy as np
import torch
from deflection_rows import SEARCH, SEARCHED
from deflection_work import ADAPTIVE, BUDGETS, Place
from torch import Tensor

from lightning_robust.evaluation import mean_interval, wilson

NONE = "&ndash;"


@dataclasses.dataclass(frozen=True)
class Judged:
    """Labels of every draw, and the truth: (draws, n) and (n)."""

    label: Tensor
    target: Tensor

    @property
    def right(self) -> Tensor:
        """Share of the draws that are right, per image."""
        return (self.label == self.target).double().mean(0)

    @property
    def voted(self) -> Tensor | None:
        """Share of majorities of ten draws that are right, per image; a tie goes to the smaller class."""
        groups = len(self.label) // 10
        if not groups:
            return None
        found = [self.label[10 * g : 10 * g + 10].mode(0).values == self.target for g in range(groups)]
        return torch.stack(found).double().mean(0)

    @property
    def random(self) -> bool:
        return len(self.label) > 1


class Pieces:
    """What a folder of pieces holds."""

    def __init__(self, place: Place, net: str, split: str = "report") -> None:
        self.place, self.net, self.split = place, net, split

    def judged(self, attack: str, defense: str, kind: str = "judge") -> Judged | None:
        found = self._all(kind, attack, defense)
        if not found:
            return None
        return Judged(torch.cat([f["label"] for f in found], 1), torch.cat([f["target"] for f in found]))

    def sizes(self, attack: str) -> dict[str, float]:
        found = self._all("attack", attack, "")
        names = [name for name in found[0] if name != "image"] if found else []
        return {name: float(torch.cat([f[name] for f in found]).double().mean()) for name in names}

    def _all(self, kind: str, attack: str, defense: str) -> list[dict[str, Tensor]]:
        folder = self.place.out / kind / self.net / self.split / attack.replace(" ", "-")
        paths = sorted((folder / (defense.replace(" ", "-") or "none")).glob("*.npz"), key=lambda p: int(p.stem))
        return [{name: torch.from_numpy(array) for name, array in np.load(path).items()} for path in paths]


def told(values: Tensor, *, random: bool) -> str:
    """A mean over images in percent, with its 95% interval."""
    count = len(values)
    settled = not random or bool(((values == 0) | (values == 1)).all())
    found = wilson(int(values.sum()), count) if settled else mean_interval(values.tolist())
    low, high = max(found.low, 0.0), min(found.high, 1.0)
    return f"{100 * found.estimate:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def difference(first: Judged | None, second: Judged | None) -> str:
    """Mean difference of two defenses on the same images, in points."""
    if first is None or second is None:
        return NONE
    count = min(len(first.target), len(second.target))
    return difference_of(first.right[:count], second.right[:count])


def difference_of(first: Tensor, second: Tensor) -> str:
    """Mean difference of two shares of right draws per image, in points."""
    gap = (first - second).tolist()
    if len(set(gap)) == 1:
        return f"{100 * gap[0]:+.1f}"
    found = mean_interval(gap)
    text = f"{100 * found.estimate:+.1f} [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"
    return f"{text}, not distinguishable" if found.low <= 0 <= found.high else text


def accuracy(judged: Judged | None) -> str:
    return NONE if judged is None else told(judged.right, random=judged.random)


def destruction(attacked: Judged | None, defended: Judged | None) -> str:
    """Of the images that the attack broke, the share that a defense mends."""
    if attacked is None or defended is None:
        return NONE
    count = min(len(attacked.target), len(defended.target))
    broken = attacked.right[:count] == 0
    values = defended.right[:count][broken]
    if len(values) < 2:
        return NONE
    settled = not defended.random or bool(((values == 0) | (values == 1)).all())
    found = wilson(int(values.sum()), len(values)) if settled else mean_interval(values.tolist())
    return f"{found.estimate:.2f} [{max(found.low, 0):.2f}, {min(found.high, 1):.2f}]"


def named(attack: str, large: bool = False) -> str:
    return "clean" if attack == "clean" else f"{attack} {BUDGETS[attack][int(large)]}"


def worst(pieces: Pieces, defense: str) -> tuple[list[Judged | None], Tensor | None]:
    """The adaptive attacks on a defense, and per image the lowest share of right draws under any of them."""
    found = [pieces.judged(way, defense, "adapt") for way in ADAPTIVE]
    there = [one for one in found if one is not None]
    if not there:
        return found, None
    count = min(len(one.target) for one in there)
    return found, torch.stack([one.right[:count] for one in there]).min(0).values


def chosen_defense(tuned: Pieces) -> str | None:
    """The best value of each searched parameter as the name of a defense; None before the search is done."""
    best = []
    for names in SEARCH.values():
        found = {name: [tuned.judged(attack, name) for attack in SEARCHED] for name in names}
        if any(one is None for judged in found.values() for one in judged):
            return None
        means = {name: statistics.mean(float(o.right.mean()) for o in judged if o) for name, judged in found.items()}
        best.append(max(means, key=means.__getitem__).split()[1])
    return f"chosen {'-'.join(best)}"
