"""The tables of the pixel-deflection paper on nets and images that others made: docs/results/deflection.md.

    python benchmarks/deflection_tables.py --images IMAGES --zoo ZOO --out RUNS --report docs/results/deflection.md

IMAGES holds labels.csv (file, label) and 256 x 256 JPEG; ZOO holds imagenet_zoo.py, whose ``load(name)`` gives a net
for [0, 1] images. Work is done in pieces of ten images, each a file under --out: a run that is cut off goes on, and a
run with more --count adds to what is there. ``--page-only`` writes the page from what is there.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from deflection_page import write_page
from deflection_pieces import Pieces, chosen_defense
from deflection_rows import (
    ATTACKS,
    MAIN,
    SEARCH,
    SEARCHED,
    SMALL,
    SMALL_COLUMNS,
    TABLE_4,
    TABLE_4_ATTACKS,
    TABLE_5_COLUMNS,
    TABLE_6_COLUMNS,
    TABLE_7_COLUMNS,
    TABLE_8_COLUMNS,
    TABLE_9,
    has_gradient,
)
from deflection_work import ADAPTIVE, BUDGETS, SLOW, Piece, Place, do, pieces_of
from tqdm import tqdm

OTHER_NETS = ("mobilenet_v2", "squeezenet")
# judged on 5 draws: seconds per image and draw
SLOW_DEFENSES = ("quilt", "tvm+quilt", "crop+tvm+quilt", "blur")
# rows of Table 9 alone, by the start of their names: 5 draws too
ONLY_TABLE_9 = ("gaussian", "min", "max", "mean", "denoise")
# attacked with 5 draws a step as well: the paper's own
OWN = ("pd", "pd+rcam", "pd+rcam+dct", MAIN)


def phases(arguments: argparse.Namespace, place: Place) -> Iterator[tuple[str, list[Piece]]]:
    """Yield the work in an order in which a piece finds what it needs, the most telling first."""
    net, count, slow = arguments.net, arguments.count, arguments.slow_count
    usual = [f"{name} {BUDGETS[name][0]}" for name in ATTACKS]
    large = [f"{name} {BUDGETS[name][1]}" for name in ATTACKS if BUDGETS[name][1]]

    def images(attack: str) -> int:
        return min(count, slow) if attack.split(" ")[0] in SLOW else count

    def judged(attacks: Iterable[str], defenses: Iterable[str], of: str = net, split: str = "report") -> list[Piece]:
        found = []
        for attack, defense in itertools.product(attacks, dict.fromkeys(defenses)):
            number = arguments.tune_count if split == "tune" else images(attack) if attack != "clean" else count
            slow_to_judge = attack.split(" ")[0] in SLOW or defense in SLOW_DEFENSES
            slow_to_judge |= defense.startswith(ONLY_TABLE_9)
            draws = 5 if slow_to_judge or split == "tune" else arguments.draws
            found += pieces_of("judge", of, split, number, attack=attack, defense=defense, draws=draws)
        return found

    def attacked(attacks: Iterable[str], of: str = net, split: str = "report") -> list[Piece]:
        number = {a: arguments.tune_count if split == "tune" else images(a) for a in attacks}
        return [piece for a in number for piece in pieces_of("attack", of, split, number[a], attack=a)]

    def adapted(defenses: Iterable[str], of: str = net) -> list[Piece]:
        return [
            piece
            for defense, way in itertools.product(dict.fromkeys(defenses), ADAPTIVE)
            if (way == "BPDA" or has_gradient(defense)) and (way != "EOT 5" or defense in OWN)
            for piece in pieces_of(
                "adapt",
                of,
                "report",
                arguments.adaptive_count,
                attack=way,
                defense=defense,
                draws=5 if defense in SLOW_DEFENSES else arguments.draws,
            )
        ]

    yield "attacks", attacked(usual)
    yield "Table 1", judged(["clean", *usual], ["identity", MAIN])
    yield "adaptive, first", adapted(["identity", MAIN])
    yield "attacks, small", attacked(SMALL)
    yield "small", judged(SMALL, SMALL_COLUMNS)
    table_4 = [f"{name} {BUDGETS[name][0]}" for name in TABLE_4_ATTACKS]
    yield "Table 5", judged(["clean", *usual], TABLE_5_COLUMNS)
    yield "Table 4", judged(["clean", *table_4], TABLE_4)
    yield "adaptive", adapted([*TABLE_5_COLUMNS, *TABLE_4])
    yield "Table 6", judged(["clean", *usual], TABLE_6_COLUMNS)
    yield "Table 7", judged(["clean", *usual], TABLE_7_COLUMNS)
    yield "Table 8", judged(["clean", *usual], TABLE_8_COLUMNS)
    yield "adaptive, rest", adapted([*TABLE_6_COLUMNS, *TABLE_7_COLUMNS, *TABLE_8_COLUMNS])
    yield "attacks, large", attacked(large)
    yield "Table 1, large", judged(large, ["identity", MAIN])
    for other in arguments.other_nets:
        yield f"attacks, {other}", attacked(usual, other)
        yield f"Table 3, {other}", judged(["clean", *usual], ["identity", MAIN], other)
        yield f"adaptive, {other}", adapted([MAIN], other)
    yield "attacks, search", attacked(SEARCHED[1:], split="tune")
    yield "search", judged(SEARCHED, [n for names in SEARCH.values() for n in names], split="tune")
    chosen = chosen_defense(Pieces(place, net, "tune"))
    if chosen is not None:
        yield "chosen", judged(["clean", *SMALL], [MAIN, chosen])
        yield "adaptive, chosen", adapted([chosen])
    # many rows, of which the page shows means only
    table_9 = [name for names, _ in TABLE_9.values() for name in names]
    yield "Table 9", judged(usual, table_9)
    yield "adaptive, Table 9", adapted(table_9)


def work(phase: str, pieces: list[Piece], place: Place, pool: ProcessPoolExecutor) -> None:
    open_pieces = [piece for piece in dict.fromkeys(pieces) if not piece.path(place.out).exists()]
    waiting = {pool.submit(do, piece, place): piece for piece in open_pieces}
    try:
        for done in tqdm(as_completed(waiting), total=len(waiting), desc=phase, disable=not waiting):
            done.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pieces")
    parser.add_argument("--report", type=Path, help="markdown page to write; figures go into a folder beside it")
    parser.add_argument("--net", default="mobilenet_v1", help="the net of all tables but the third")
    parser.add_argument("--other-nets", nargs="*", default=OTHER_NETS, help="nets of Table 3")
    parser.add_argument("--count", type=int, default=30, help="images under fast attacks")
    parser.add_argument("--slow-count", type=int, default=20, help="images under JSMA, L-BFGS, C&W")
    parser.add_argument("--adaptive-count", type=int, default=20, help="images under adaptive attacks")
    parser.add_argument("--tune-count", type=int, default=80, help="other images, for the linear search; 5 draws")
    parser.add_argument("--draws", type=int, default=20, help="fresh draws of a random defense; 5 under slow attacks")
    parser.add_argument("--parallel", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--phases", nargs="*", help="only these, by the start of their names")
    parser.add_argument("--page-only", action="store_true", help="write the page from the pieces that are there")
    arguments = parser.parse_args()
    place = Place(arguments.images.absolute(), arguments.zoo.absolute(), arguments.out.absolute())
    if not arguments.page_only:
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.parallel, mp_context=context) as pool:
            for name, pieces in phases(arguments, place):
                if not arguments.phases or name.startswith(tuple(arguments.phases)):
                    work(name, pieces, place, pool)
    if arguments.report:
        write_page(arguments.report, place, arguments)


if __name__ == "__main__":
    main()
