"""docs/results/deflection.md from the pieces that benchmarks/deflection_tables.py left."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from deflection_pieces import (
    NONE,
    Pieces,
    accuracy,
    chosen_defense,
    destruction,
    difference,
    difference_of,
    named,
    told,
    worst,
)
from deflection_rows import (
    ATTACKS,
    MAIN,
    SEARCHED,
    SMALL,
    SMALL_COLUMNS,
    TABLE_1,
    TABLE_1_LARGE,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_4_ATTACKS,
    TABLE_5,
    TABLE_5_COLUMNS,
    TABLE_6,
    TABLE_6_COLUMNS,
    TABLE_7,
    TABLE_7_COLUMNS,
    TABLE_8,
    TABLE_8_COLUMNS,
    TABLE_9,
)
from deflection_work import ADAPTIVE, LONG, PATIENT, SHORT, Place
from torch import Tensor

HEADING = """# Pixel deflection, as measured

**This defense does not hold against an attacker who knows it.** At Linf 4/255 its accuracy falls to about 0%, as
Athalye and Carlini showed in 2018 (arXiv 1804.03286).{fall} The paper's tables are of attacks on the bare net, with the
defense put in afterwards; they are repeated below with adaptive rows under each.

What this is not: the paper's nets and images. These are photographs of the NIPS 2017 DEV set (CC BY 2.0), chosen by
others so that an Inception-v3 gets them right, and a {net} that others trained, at 224 x 224. Only images that
the net gets right before any attack are counted, as in the paper. All images are received at 8 bits. A small n is a
small n: see the intervals.

{made}
`PD + R-CAM + DWT` is `protocol="paper"`, K 100, window 10, the map of the attacked net, BayesShrink with sigma 0.04
on each channel's scale. A random defense is judged by the mean of fresh draws per image (20; 5 under JSMA, L-BFGS and
C&W, for quilting, the blur control and the rows of Table 9), never by a draw the attacker saw; Ens-10 by the
majorities of the same draws in tens. Adaptive attacks are PGD on the margin with {long} steps on the rows of Table 1,
{patient} on those with quilting and {short} on others: through the defense's BPDA backward, and through its exact
gradient with 1 fresh draw a step (EOT 1) or the mean of 5 (EOT 5, on the paper's own rows). Brackets hold 95%
intervals over images (Wilson; Student where draws are averaged). |L2| is the mean relative L2 norm of the change; the
two other readings stand beside it.
All attacks are scaled to their budget but JSMA, which is only scaled down: it may change 225 values of an image, with
which it rarely fools this net, and where it does the change is two to three times its budget.
Quilting takes its patches from the tuning images that the net gets right, 50 of each (its authors had a million). A row
of a larger n than the command's is from a run with more images. Where no gradient exists, BPDA is the only attack.

Why so far from the paper: these nets fall at a fraction of its budgets (FGSM leaves 6% at 1/255), and a change that was
the smallest possible is scaled up to the budget, deep into the wrong class, where a few deflected pixels bring nothing
back. "Smaller changes" shows what the defense does near the border of a class.
"""


def adaptive_table(pieces: Pieces, defenses: Sequence[str], label: Callable[[str], str] = str) -> list[str]:
    lines = [
        "Adaptive attacks on the same, Linf 4/255, accuracy in percent:",
        "",
        "| defense | n | " + " | ".join(ADAPTIVE) + " | **worst per image** |",
        "| --- | --- |" + " --- |" * (len(ADAPTIVE) + 1),
    ]
    for defense in dict.fromkeys(defenses):
        found, lowest = worst(pieces, defense)
        if lowest is None:
            continue
        cells = " | ".join(accuracy(one) for one in found)
        lines.append(f"| {label(defense)} | {len(lowest)} | {cells} | **{told(lowest, random=True)}** |")
    return [*lines, ""] if len(lines) > 4 else []


def table_1(
    pieces: Pieces, papers: Sequence[dict], *, head: str = "paper: L2, none, single, Ens-10", large: bool = False
) -> list[str]:
    lines = [
        f"| attack | n | draws | relative L2 | RMSE | L2 / sqrt(HW) | no defense | single | Ens-10 | {head} |",
        "| --- |" + " --- |" * 9,
    ]
    for attack in papers[0]:
        bare, guarded = (pieces.judged(named(attack, large), d) for d in ("identity", MAIN))
        if bare is None or guarded is None:
            continue
        sizes = pieces.sizes(named(attack, large)) if attack != "clean" else {}
        size = " | ".join(f"{sizes[r]:.4f}" if r in sizes else "0" for r in ("relative", "rmse", "hw"))
        voted = NONE if guarded.voted is None else told(guarded.voted, random=True)
        printed = "; ".join(", ".join(f"{v:g}" for v in paper[attack]) for paper in papers)
        cells = f"{accuracy(bare)} | {accuracy(guarded)} | {voted} | {printed}"
        lines.append(f"| {attack} | {len(guarded.target)} | {len(guarded.label)} | {size} | {cells} |")
    return [*lines, ""] if len(lines) > 2 else []


def columns_table(pieces: Pieces, columns: Sequence[str], paper: dict, heads: Sequence[str]) -> list[str]:
    lines = ["| attack | " + " | ".join(heads) + " | paper |", "| --- |" + " --- |" * (len(heads) + 1)]
    for attack, printed in paper.items():
        cells = [accuracy(pieces.judged(named(attack), column)) for column in columns]
        if any(cell != NONE for cell in cells):
            lines.append(f"| {attack} | " + " | ".join(cells) + " | " + ", ".join(f"{v:g}" for v in printed) + " |")
    return [*lines, ""] if len(lines) > 2 else []


def chosen_table(pieces: Pieces, chosen: str) -> list[str]:
    sigma, deflections, window = chosen.split()[1].split("-")
    lines = [
        f"On images that no table uses, the best values one at a time are sigma {sigma}, K {deflections} and window "
        f"{window}: by the mean accuracy of {', '.join(SEARCHED)} (relative L2), "
        "plotted in [the figures](deflection_figures.md). On the images of the tables:",
        "",
        "| attack, relative L2 | defaults | chosen | chosen minus defaults |",
        "| --- | --- | --- | --- |",
    ]
    for attack in ("clean", *SMALL):
        ours, theirs = pieces.judged(attack, chosen), pieces.judged(attack, MAIN)
        lines.append(f"| {attack} | {accuracy(theirs)} | {accuracy(ours)} | {difference(ours, theirs)} |")
    return [*lines, ""]


def small_table(pieces: Pieces) -> list[str]:
    heads = ("no defense", "PD + R-CAM + DWT", "PD + DWT", "PD", "DWT", "JPEG", "median 2x2", "control: noise")
    lines = ["| attack, relative L2 | " + " | ".join(heads) + " | PD + R-CAM + DWT minus the noise control |"]
    lines.append("| --- |" + " --- |" * (len(heads) + 1))
    for attack in SMALL:
        found = {column: pieces.judged(attack, column) for column in SMALL_COLUMNS}
        if any(found.values()):
            gap = difference(found[MAIN], found["noise"])
            lines.append(f"| {attack} | " + " | ".join(accuracy(one) for one in found.values()) + f" | {gap} |")
    return [*lines, ""] if len(lines) > 2 else []


def table_4(pieces: Pieces) -> list[str]:
    heads = [f"{attack}, paper" for attack in TABLE_4_ATTACKS]
    lines = [
        "| defense | clean accuracy | "
        + " | ".join(heads)
        + " | accuracy minus the noise control's, mean of the four |",
        "| --- |" + " --- |" * (len(heads) + 2),
    ]
    for name, (label, printed) in TABLE_4.items():
        cells = []
        for attack, figure in zip(TABLE_4_ATTACKS, printed, strict=True):
            ours = destruction(pieces.judged(named(attack), "identity"), pieces.judged(named(attack), name))
            cells.append(f"{ours} ({figure if figure is not None else NONE})")
        if all(cell.startswith(NONE) for cell in cells):
            continue
        clean = accuracy(pieces.judged("clean", name))
        lines.append(f"| {label} | {clean} | " + " | ".join(cells) + f" | {against(pieces, name, 'noise')} |")
    return [*lines, ""] if len(lines) > 2 else []


def right_over(pieces: Pieces, defense: str, attacks: Sequence[str]) -> Tensor | None:
    """Share of right draws per image, the mean over several attacks on the images that all of them have."""
    found = [pieces.judged(named(attack), defense) for attack in attacks]
    if any(one is None for one in found):
        return None
    count = min(len(one.target) for one in found if one is not None)
    return torch.stack([one.right[:count] for one in found if one is not None]).mean(0)


def against(pieces: Pieces, first: str, second: str) -> str:
    if first == second:
        return NONE
    ours, theirs = (right_over(pieces, name, TABLE_4_ATTACKS) for name in (first, second))
    return NONE if ours is None or theirs is None else difference_of(ours, theirs)


def table_9(pieces: Pieces) -> list[str]:
    lines = ["| what | window 5, 10, 50, 100 (or the four denoisers) | paper |", "| --- | --- | --- |"]
    for label, (names, printed) in TABLE_9.items():
        cells = []
        for name in names:
            right = right_over(pieces, name, ATTACKS)
            cells.append(NONE if right is None else f"{told(right, random=True)}, n {len(right)}")
        if any(cell != NONE for cell in cells):
            lines.append(f"| {label} | {'; '.join(cells)} | {', '.join(f'{v:g}' for v in printed)} |")
    return [*lines, ""] if len(lines) > 2 else []


def heading(pieces: Pieces, command: str) -> list[str]:
    _, lowest = worst(pieces, MAIN)
    fall = "" if lowest is None else f" On these images it leaves {told(lowest, random=True)}% (n {len(lowest)})."
    made = f"Made by `{command}`, Python {platform.python_version()}, torch {torch.__version__}, two shared CPU cores."
    return [
        *HEADING.format(
            fall=fall, made=made, net=pieces.net, long=LONG, short=SHORT, patient=PATIENT["quilt"]
        ).splitlines(),
        "",
    ]


def write_page(path: Path, place: Place, arguments: argparse.Namespace) -> None:
    pieces = Pieces(place, arguments.net)
    options = (
        f"--count {arguments.count} --slow-count {arguments.slow_count} --adaptive-count {arguments.adaptive_count}"
    )
    lines = heading(pieces, f"python benchmarks/deflection_tables.py --images IMAGES --zoo ZOO --out OUT {options}")

    def section(title: str, body: list[str], adaptive: Sequence[str], label: Callable[[str], str] = str) -> None:
        if body:
            lines.extend([f"## {title}", "", *body, *adaptive_table(pieces, adaptive, label)])

    labels = {name: label for name, (label, _) in TABLE_4.items()}

    def spoken(name: str) -> str:
        return labels.get(name, name)

    head = "paper, ResNet-50: L2, none, single, Ens-10 (Table 1; Table 2: other images)"
    body = table_1(pieces, (TABLE_1, TABLE_2), head=head)
    section("Tables 1 and 2: no defense, single, Ens-10", body, ["identity", MAIN], spoken)
    section("Table 1, large perturbations", table_1(pieces, (TABLE_1_LARGE,), large=True), ["identity", MAIN], spoken)
    section("Smaller changes", small_table(pieces), SMALL_COLUMNS, spoken)
    chosen = chosen_defense(Pieces(place, arguments.net, "tune"))
    if chosen is not None and pieces.judged("clean", chosen) is not None:
        section("Linear search", chosen_table(pieces, chosen), [MAIN, chosen], spoken)
    for other in arguments.other_nets:
        papers = [{attack: rows[net] for attack, rows in TABLE_3.items()} for net in (0, 1)]
        body = table_1(Pieces(place, other), papers, head="paper, other nets: VGG-19; Inception-v3")
        if body:
            lines.extend([f"## Table 3: {other}", "", *body, *adaptive_table(Pieces(place, other), [MAIN], spoken)])
    section("Table 4: destruction rate", table_4(pieces), list(TABLE_4), spoken)
    heads = ("JPEG", "WD", "PD", "PD + JPEG", "PD + WD + JPEG", "PD + WD")
    section(
        "Table 5: with and without", columns_table(pieces, TABLE_5_COLUMNS, TABLE_5, heads), TABLE_5_COLUMNS, spoken
    )
    heads = ("hard", "VisuShrink", "SUREShrink", "BayesShrink")
    section("Table 6: thresholds", columns_table(pieces, TABLE_6_COLUMNS, TABLE_6, heads), TABLE_6_COLUMNS, spoken)
    heads = ("10", "100", "1,000", "10,000")
    section("Table 7: deflections", columns_table(pieces, TABLE_7_COLUMNS, TABLE_7, heads), TABLE_7_COLUMNS, spoken)
    heads = ("5", "10", "50", "100")
    section("Table 8: window", columns_table(pieces, TABLE_8_COLUMNS, TABLE_8, heads), TABLE_8_COLUMNS, spoken)
    names = [name for group, _ in TABLE_9.values() for name in group]
    section("Table 9: mean over the six attacks", table_9(pieces), names, spoken)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
