"""The figures of the pixel-deflection paper on nets and images that others made: docs/results/deflection_figures.md.

    python benchmarks/deflection_figures.py --images IMAGES --zoo ZOO --out RUNS --figures docs/results/figures

IMAGES, ZOO and RUNS as for benchmarks/deflection_tables.py, whose finished attacks are read here, as many as there are.
IMAGES/labels.csv also says author, license and landing_url of each photograph. One thread, some minutes.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Iterator
from pathlib import Path

import deflection_plots as plots
import torch
from deflection_bench import (
    Bench,
    correlation,
    credited,
    logits,
    share_inside,
    shares,
    table,
    told,
    write_credits,
)
from deflection_pieces import Pieces
from deflection_rows import SEARCH, SEARCHED
from deflection_work import BUDGETS, labels
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lightning_robust import defenses as D
from lightning_robust import seeds as streams
from lightning_robust.evaluation import mean_interval
from lightning_robust.functional import pixel_deflection

SHOWN = "FGSM"
PHOTOGRAPHS = 4
DEFLECTIONS = (0, 10, 30, 100, 300, 1000, 3000, 10000)
WAVELETS = ("db1", "db2", "bior2.2")
MENDED = ("FGSM", "DFool")
GAIN = 1.5
SMOOTH = 9


def figure_maps(bench: Bench, folder: Path) -> Iterator[str]:
    chosen = bench.broken(SHOWN)[:PHOTOGRAPHS]
    credit = credited(bench, chosen)
    names = {int(r["label"]): r["name"] for r in csv.DictReader((bench.place.images / "labels.csv").open())}
    clean, attacked = bench.image[chosen], bench.attacked[SHOWN][chosen]
    rows = []
    for number, before, after in zip(chosen.tolist(), clean, attacked, strict=True):
        row = []
        for image, scores in ((before, bench.logits[number]), (after, bench.logits_attacked[SHOWN][number])):
            label = int(scores.argmax())
            picture = image.permute(1, 2, 0).numpy()
            heats = [bench.find_map(image[None], classes=count)[0].numpy() for count in (1, 5)]
            said = names.get(label, f"class {label}").replace("_", " ")[:22]
            row += [(said, picture, None), *(("", picture, heat) for heat in heats)]
        rows.append(row)
    plots.activation_maps(rows, ["clean", "CAM", "R-CAM", "attacked", "CAM", "R-CAM"], folder / "activation_maps.png")
    write_credits(folder, credit)
    yield f"## Activation maps, clean and attacked (Figures 4 and 7)\n\n![maps]({folder.name}/activation_maps.png)\n"
    people = "; ".join(f"{r['author']} ([{r['license']}]({r['landing_url']}))" for r in credit)
    yield (
        f"The first {len(chosen)} photographs on which {SHOWN} at relative L2 {BUDGETS[SHOWN][0]} succeeds, with what "
        f"the net calls them; not picked by eye. Photographs from above: {people}; cut to size and overlaid "
        f"([credits]({folder.name}/CREDITS.md)).\n\nThe premise of the robust map is that an attack moves it less than "
        "the map of the top class. Mean correlation over pixels of the map of the attacked image with that of the "
        "clean one, over the images that the attack broke:"
    )
    lines = []
    for attack, images in bench.attacked.items():
        broken = bench.broken(attack)[: bench.count]
        alike = [correlation(bench.maps(c)[broken], bench.find_map(images[broken], classes=c)) for c in (1, 5)]
        if len(broken) > 1:
            lines.append([attack, str(len(broken)), *(told(a, 2) for a in alike), told(alike[1] - alike[0], 2)])
    yield from table(["attack", "n", "CAM", "R-CAM", "R-CAM minus CAM"], lines)


def figure_differences(bench: Bench, folder: Path) -> Iterator[str]:
    number = int(bench.broken(SHOWN)[0])
    image, seeds = bench.image[number : number + 1], torch.tensor([number])
    denoise = D.WaveletDenoising()
    rows, sizes = {}, []
    for count in (100, 1000, 10000):
        deflected = pixel_deflection(image, count, seeds=seeds)
        both = (deflected, denoise(deflected, seeds=seeds))
        shown = [(0.5 + GAIN * (one - image)).clamp(0, 1) for one in both]
        rows[f"K = {count:,}"] = [one[0].permute(1, 2, 0).numpy() for one in (deflected, *shown)]
        sizes.append([f"{count:,}", *(f"{(one - image).square().mean().sqrt():.4f}" for one in both)])
    plots.pictures(rows, ["deflected", "its difference", "difference after denoising"], folder / "differences.png")
    yield (
        f"## What deflection and denoising change (Figure 1)\n\n![differences]({folder.name}/differences.png)\n\nNo "
        f"map; differences {GAIN:g} times enlarged around gray. RMSE of the same against the clean image:"
    )
    yield from table(["K", "deflected", "and denoised"], sizes)


@torch.no_grad()
def figure_probability(bench: Bench, folder: Path) -> Iterator[str]:
    lines, figures, count = {}, [], bench.count
    wanted = {"clean": bench.image} | {a: bench.attacked[a] for a in MENDED if a in bench.attacked}
    for name, image in wanted.items():
        chosen = torch.arange(count) if name == "clean" else bench.broken(name)[:count]
        found = []
        for deflections in tqdm(DEFLECTIONS, desc=f"deflections, {name}"):
            total = torch.zeros(len(chosen))
            draws = bench.draws if deflections else 1
            for draw in range(draws):
                seeds = streams.derive(chosen, "figure", draw)
                moved = pixel_deflection(image[chosen], deflections, seeds=seeds)
                probability = logits(bench.net, moved).softmax(1)
                total += probability.gather(1, bench.target[chosen, None])[:, 0] / draws
            found.append(mean_interval(total.tolist()))
        key = f"{name} (n {len(chosen)})"
        lines[key] = tuple([getattr(one, part) for one in found] for part in ("estimate", "low", "high"))
        figures.append([key, *(f"{one.estimate:.2f}" for one in found)])
    plots.curves({"deflections": (DEFLECTIONS, lines)}, "probability of the true class", 1, folder / "probability.png")
    yield (
        f"## Probability of the true class against deflections (Figure 2)\n\n![probability]({folder.name}/"
        f"probability.png)\n\nMean over images and {bench.draws} draws each, with 95% intervals over images; "
        "deflection alone, window 10, no map, no denoising; attacked images are those that the attack broke."
    )
    yield from table(["", *(f"K {k:,}" for k in DEFLECTIONS)], figures)


def figure_places(bench: Bench, folder: Path) -> Iterator[str]:
    maps, lines = bench.maps(5), []
    shown = {f"objects: R-CAM (n {len(maps)})": maps.mean(0).numpy()}
    for attack, images in bench.attacked.items():
        change = (images - bench.image[: len(images)]).abs().sum(1)
        moved = change.flatten(1).any(1).nonzero().flatten()
        if len(moved) > 1:
            average = F.avg_pool2d(change[moved].mean(0)[None, None], SMOOTH, 1, SMOOTH // 2, count_include_pad=False)
            shown[f"{attack} (n {len(moved)})"] = average[0, 0].numpy()
            lines.append([attack, str(len(moved)), told(100 * share_inside(maps[moved], change[moved]))])
    plots.places(shown, folder / "places.png")
    yield (
        f"## Where attacks and objects lie (Figure 3)\n\n![places]({folder.name}/places.png)\n\nMean absolute change "
        f"per pixel, over squares of {SMOOTH} pixels a side, and mean robust map, each by its own maximum; images that "
        "an attack did not change are left out. The premise of the defense is that attacks change pixels everywhere, "
        "while objects are somewhere. Share of an attack's absolute change, in percent, that falls into the object's "
        "half: the half of the pixels on which the robust map of that clean image is highest. 50 is everywhere alike; "
        "above 50, the pixels that the map spares are those that the attack prefers:"
    )
    yield from table(["attack", "n", "in the object's half"], lines)


def figure_ranks(bench: Bench, folder: Path) -> Iterator[str]:
    groups = ["1", "2", "3", "4", "5", "not"]
    before, after = {}, {}
    for attack, scores in bench.logits_attacked.items():
        broken = bench.broken(attack)
        if len(broken):
            clean, moved = bench.logits[broken].topk(5).indices, scores[broken].topk(5).indices
            before[f"{attack} (n {len(broken)})"] = shares(clean, moved[:, 0])
            after[f"{attack} (n {len(broken)})"] = shares(moved, bench.target[broken])
    panels = {"adversarial class in the clean top 5": before, "true class in the attacked top 5": after}
    plots.bars(panels, groups, "share of images, percent", folder / "ranks.png")
    yield (
        f"## Rank of the adversarial and of the true class (Figure 6)\n\n![ranks]({folder.name}/ranks.png)\n\nOf the "
        'images that an attack broke; rank 1 is the class itself, "not" is outside the five. Percent at rank 2 '
        "(the paper: nearly 40 for the adversarial class) and outside:"
    )
    rows = [[k, *(f"{v[i]:.0f}" for v in (before[k], after[k]) for i in (1, 5))] for k in before]
    heads = ["attack", "adversarial class 2nd", "not in the clean 5", "true class 2nd", "not in the attacked 5"]
    yield from table(heads, rows)


def wavelets(bench: Bench) -> Iterator[str]:
    count, draws, rows = min(20, bench.count), 5, []
    wanted = {"clean": bench.image} | {a: bench.attacked[a] for a in MENDED if a in bench.attacked}
    for name, image in wanted.items():
        right = {}
        for wavelet in WAVELETS:
            defense = D.Sequence([D.PixelDeflection(), D.WaveletDenoising(wavelet=wavelet)])
            found = labels(bench.net, defense, image[:count], torch.arange(count), draws)
            right[wavelet] = 100 * (found == bench.target[:count]).double().mean(0)
        gaps = [gap_told(right[other] - right["db1"]) for other in WAVELETS[1:]]
        rows.append([name, *(f"{float(values.mean()):.1f}" for values in right.values()), *gaps])
    yield (
        f"## Which wavelet\n\nAccuracy in percent of deflection and denoising (no map), {count} images, {draws} fresh "
        "draws each, the same for every wavelet; differences in points with 95% intervals over images. Haar and db1 "
        "are one filter bank."
    )
    yield from table(["", *WAVELETS, *(f"{other} minus db1" for other in WAVELETS[1:])], rows)


def gap_told(values: Tensor) -> str:
    if len(values.unique()) == 1:
        return f"{float(values[0]):+.1f}, the same on every image"
    found = mean_interval(values.tolist())
    text = f"{found.estimate:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
    return f"{text}, not distinguishable" if found.low <= 0 <= found.high else text


def figure_search(bench: Bench, folder: Path) -> Iterator[str]:
    pieces = Pieces(bench.place, bench.name, "tune")
    panels = {}
    for parameter, names in SEARCH.items():
        lines = {}
        for attack in SEARCHED:
            found = [pieces.judged(attack, name) for name in names]
            if any(one is None for one in found):
                return
            means = [mean_interval((100 * one.right).tolist()) for one in found if one is not None]
            lines[attack] = tuple([getattr(one, part) for one in means] for part in ("estimate", "low", "high"))
        panels[parameter] = ([float(name.split()[1]) for name in names], lines)
    plots.curves(panels, "accuracy, percent", 100, folder / "search.png")
    yield (
        f"## Linear search (Figure 5)\n\n![search]({folder.name}/search.png)\n\nOne parameter at a time, the others at "
        "their defaults, under attacks of a small relative L2, on images that no other figure uses; 5 draws each, 95% "
        "intervals over images. What the best values are worth on other images is in [the tables](deflection.md).\n"
    )


def page(bench: Bench, folder: Path) -> Iterator[str]:
    budgets = {attack: BUDGETS[attack][0] for attack in bench.attacked}
    yield "# Pixel deflection in figures\n"
    yield (
        "The figures of Prakash et al. (CVPR 2018) again, with another net and other images: photographs of the NIPS "
        f"2017 DEV set that {bench.name} gets right, at {bench.net.size} x {bench.net.size}. The attacks are on the "
        "bare net and know nothing of a defense; an attacker who does know brings accuracy to about 0% at 4/255. "
        "Nothing here says otherwise.\n"
    )
    yield (
        "Made by `python benchmarks/deflection_figures.py --images IMAGES --zoo ZOO --out RUNS --figures "
        f"docs/results/{folder.name} --net {bench.name} --count {bench.count} --draws {bench.draws}`, Python "
        f"{platform.python_version()}, torch {torch.__version__}, one thread. Relative L2 of the attacks: "
        + ", ".join(f"{attack} {budget}" for attack, budget in budgets.items())
        + ". Brackets hold 95% intervals over images (Student). Small n are small n.\n"
    )
    for section in (figure_maps, figure_differences, figure_probability, figure_places, figure_search, figure_ranks):
        yield from section(bench, folder)
    yield from wavelets(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the pieces of deflection_tables.py; only read"
    )
    parser.add_argument("--figures", type=Path, required=True, help="folder of the PNG; the page goes beside it")
    parser.add_argument("--net", default="mobilenet_v1")
    parser.add_argument("--count", type=int, default=40, help="images where the net runs many times")
    parser.add_argument("--draws", type=int, default=3, help="draws of deflection where the probability is averaged")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = list(page(Bench(arguments), arguments.figures))
    (arguments.figures.parent / "deflection_figures.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
