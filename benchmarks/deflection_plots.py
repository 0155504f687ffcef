"""Plots of benchmarks/deflection_figures.py, each from arrays into one small PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray
Cell = tuple[str, Array, Array | None]
Curve = tuple[Sequence[float], Sequence[float], Sequence[float]]
Panel = tuple[Sequence[float], Mapping[str, Curve]]
# the color-blind safe ones of Okabe and Ito
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save(figure: Figure, path: Path) -> None:
    """Write a figure with 256 colors, which takes a third of the room."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def activation_maps(rows: Sequence[Sequence[Cell]], heads: Sequence[str], path: Path) -> None:
    """Draw rows of (caption, image (H, W, 3), map (H, W) laid over it or None)."""
    figure, axes = plt.subplots(len(rows), len(heads), figsize=(1.25 * len(heads), 1.42 * len(rows)), squeeze=False)
    for number, row in enumerate(rows):
        for place, (caption, image, heat) in enumerate(row):
            axis = axes[number][place]
            axis.imshow(image)
            if heat is not None:
                axis.imshow(heat, cmap="turbo", vmin=0, vmax=1, alpha=0.5)
            axis.set_xlabel(caption, fontsize=6, labelpad=2)
            axis.set(xticks=[], yticks=[])
            if number == 0:
                axis.set_title(heads[place], fontsize=7)
    figure.tight_layout(pad=0.3)
    save(figure, path)


def pictures(rows: Mapping[str, Sequence[Array]], heads: Sequence[str], path: Path) -> None:
    """Draw rows of images (H, W, 3) in [0, 1], named at the left."""
    figure, axes = plt.subplots(len(rows), len(heads), figsize=(1.9 * len(heads), 1.95 * len(rows)), squeeze=False)
    for number, (name, row) in enumerate(rows.items()):
        for place, image in enumerate(row):
            axes[number][place].imshow(image)
            axes[number][place].set(xticks=[], yticks=[])
        axes[number][0].set_ylabel(name, fontsize=8)
    for place, head in enumerate(heads):
        axes[0][place].set_title(head, fontsize=8)
    figure.tight_layout(pad=0.4)
    save(figure, path)


def curves(panels: Mapping[str, Panel], label: str, top: float, path: Path) -> None:
    """Draw panels of curves (middle, low, high) over their positions; positions from 0 up get a logarithmic axis."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 if len(panels) == 1 else 3 * len(panels), 3), sharey=True)
    for axis, (name, (where, lines)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for color, (line, (middle, low, high)) in zip(COLORS, lines.items(), strict=False):
            axis.plot(where, middle, marker="o", markersize=3, linewidth=1.2, color=color, label=line)
            axis.fill_between(where, np.clip(low, 0, top), np.clip(high, 0, top), color=color, alpha=0.12, linewidth=0)
        if max(where) > 1:
            axis.set_xscale("symlog", linthresh=10)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set(ylabel=label, ylim=(0, 1.02 * top))
    np.atleast_1d(axes)[-1].legend(fontsize=7)
    figure.tight_layout()
    save(figure, path)


def places(maps: Mapping[str, Array], path: Path) -> None:
    """Draw average maps (H, W), each divided by its maximum."""
    columns = 4
    lines = -(-len(maps) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(1.6 * columns, 1.8 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, found) in zip(axes.flat, maps.items(), strict=False):
        axis.imshow(found / found.max(), cmap="turbo", vmin=0, vmax=1)
        axis.set_title(name, fontsize=8)
    figure.tight_layout(pad=0.4)
    save(figure, path)


def bars(panels: Mapping[str, Mapping[str, Sequence[float]]], groups: Sequence[str], label: str, path: Path) -> None:
    """Draw panels of grouped bars: a value of each line at each group."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 2.8), sharey=True)
    for axis, (name, lines) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        width = 0.85 / len(lines)
        for number, (line, values) in enumerate(lines.items()):
            left = np.arange(len(groups)) + (number - (len(lines) - 1) / 2) * width
            axis.bar(left, values, width, label=line, color=COLORS[number % len(COLORS)])
        axis.set_xticks(range(len(groups)), groups)
        axis.set_title(name, fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel(label)
    np.atleast_1d(axes)[-1].legend(fontsize=7)
    figure.tight_layout()
    save(figure, path)
