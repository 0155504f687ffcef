"""Images sewn from patches of other images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.defenses._planes import check_choice, check_whole
from lightning_robust.defenses.contract import Defense
from lightning_robust.defenses.patch_bank import PatchBank
from lightning_robust.errors import InputError

# distances held at a time in the search
_CHUNK = 2**24


class Quilting(Defense):
    """Replace every patch of the image by one of its nearest neighbors among clean patches, and sew them.

    Patches overlap by half their width, rounded down. The search is exact (the released code's index is approximate).
    An image whose size does not fit whole patches is extended by its edge and cut again; the authors' code leaves the
    last rows and columns black.

    Args:
        bank: clean patches, or the path of a saved bank.
        neighbors: one of so many nearest is drawn, uniformly. 10 in the attackers' code; 1 is not random.
        stitch: ``cut`` joins along the seam of least squared difference in each overlap, ``paste`` lets the later patch
            cover the earlier, ``average`` takes means in the overlaps (ours).

    Raises:
        InputError: if an option is unknown, the bank has fewer patches than ``neighbors`` or cannot be read, or, in the
            call, the images have other channels than the bank.

    Source:
        Guo et al., ICLR 2018, section 4.3; released code of Athalye et al., ICML 2018. Seams: Efros and Freeman,
        SIGGRAPH 2001 (the authors' code cuts a graph instead).
    """

    is_differentiable = False
    patches: Tensor

    def __init__(
        self,
        bank: PatchBank | str | Path,
        *,
        neighbors: int = 10,
        stitch: Literal["cut", "paste", "average"] = "cut",
    ) -> None:
        super().__init__()
        check_choice("stitch", stitch, ("cut", "paste", "average"))
        patches = (bank if isinstance(bank, PatchBank) else PatchBank.load(bank)).patches
        check_whole("neighbors", neighbors, 1, len(patches))
        self.register_buffer("patches", patches, persistent=False)
        self.neighbors = neighbors
        self.stitch = stitch

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether there is a choice."""
        return self.neighbors > 1

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"patches={tuple(self.patches.shape)}, neighbors={self.neighbors}, stitch={self.stitch!r}"

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Search, draw and sew; without a gradient."""
        count, channels, height, width = image.shape
        known, patch = self.patches.shape[1:3]
        if channels != known:
            raise InputError(f"The images have {channels} channels and the patch bank {known}: build one that fits.")
        step = patch - patch // 2
        margins = [max(patch - side, (patch - side) % step) for side in (height, width)]
        padded = F.pad(image.detach(), (0, margins[1], 0, margins[0]), mode="replicate")
        windows = padded.unfold(2, patch, step).unfold(3, patch, step)
        rows, columns = windows.shape[2:4]
        queries = windows.permute(0, 2, 3, 1, 4, 5).reshape(count * rows * columns, channels * patch * patch)
        nearest = self._search(queries).view(count, rows * columns, self.neighbors)
        rank = streams.integers(seeds, (rows * columns, 1), self.neighbors, "quilting")
        chosen = self.patches[nearest.gather(2, rank)].to(image.dtype) / 255
        tiles = chosen.view(count, rows, columns, channels, patch, patch)
        sew = {"cut": _sew_along_cuts, "paste": _paste, "average": _average}[self.stitch]
        return sew(tiles, step)[..., :height, :width]

    def _search(self, queries: Tensor) -> Tensor:
        """Indices of the nearest patches, nearest first, shape (Q, neighbors)."""
        known = self.patches.flatten(1).to(queries.dtype) / 255
        # |q - p|^2 falls where q.p - |p|^2 / 2 grows
        half_square = known.square().sum(1) / 2
        size = max(1, _CHUNK // len(known))
        found = [(part @ known.T - half_square).topk(self.neighbors).indices for part in torch.split(queries, size)]
        return torch.cat(found) if found else queries.new_zeros(0, self.neighbors, dtype=torch.long)


def _paste(tiles: Tensor, step: int) -> Tensor:
    rows, columns, patch = tiles.shape[1], tiles.shape[2], tiles.shape[-1]
    tile, inner = [], []
    for number in (rows, columns):
        position = torch.arange((number - 1) * step + patch, device=tiles.device)
        tile.append((position // step).clamp_max(number - 1))
        inner.append(position - tile[-1] * step)
    return tiles[:, tile[0][:, None], tile[1], :, inner[0][:, None], inner[1]].permute(2, 3, 0, 1)


def _average(tiles: Tensor, step: int) -> Tensor:
    count, rows, columns, channels, patch, _ = tiles.shape
    size = ((rows - 1) * step + patch, (columns - 1) * step + patch)
    stacked = tiles.permute(0, 3, 4, 5, 1, 2).reshape(count, channels * patch * patch, rows * columns)
    total = F.fold(stacked, size, patch, stride=step)
    return total / F.fold(torch.ones_like(stacked), size, patch, stride=step)


def _sew_along_cuts(tiles: Tensor, step: int) -> Tensor:
    """Lay the tiles in raster order, each cut to what lies there.

    A tile meets only its upper and left neighbors and the one up and to the right. So all tiles with equal
    ``column + 2 * row`` are independent and are laid at once.
    """
    count, rows, columns, channels, patch, _ = tiles.shape
    canvas = tiles.new_zeros(count, channels, (rows - 1) * step + patch, (columns - 1) * step + patch)
    inner = torch.arange(patch, device=tiles.device)
    every_row = torch.arange(rows, device=tiles.device)
    for front in range(columns + 2 * (rows - 1)):
        row = every_row[max(0, (front - columns + 2) // 2) : min(rows, front // 2 + 1)]
        column = front - 2 * row
        down, right = (row[:, None] * step + inner)[:, :, None], (column[:, None] * step + inner)[:, None, :]
        old, new = canvas[:, :, down, right], tiles[:, row, column].transpose(1, 2)
        error = (old - new).square().sum(1)
        beyond_left = inner >= _cut(error[..., : patch - step], column > 0)[..., None]
        beyond_top = inner >= _cut(error[..., : patch - step, :].transpose(-1, -2), row > 0)[..., None]
        replaced = beyond_left & beyond_top.transpose(-1, -2)
        canvas[:, :, down, right] = torch.where(replaced[:, None], new, old)
    return canvas


def _cut(error: Tensor, meets: Tensor) -> Tensor:
    """Where the seam of least error runs through the overlap, line by line, moving one pixel a line at most.

    Args:
        error: shape (B, N, P, overlap).
        meets: whether there is a neighbor at all, shape (N,).

    Returns:
        First pixel of the new patch in each line, int64, shape (B, N, P); 0 without a neighbor.
    """
    costs = [error[..., -1, :]]
    for line in range(error.shape[-2] - 2, -1, -1):
        reachable = F.pad(costs[0], (1, 1), value=torch.inf).unfold(-1, 3, 1).amin(-1)
        costs.insert(0, error[..., line, :] + reachable)
    pixel = torch.arange(error.shape[-1], device=error.device)
    seam = [costs[0].argmin(-1)]
    for cost in costs[1:]:
        far = (pixel - seam[-1][..., None]).abs() > 1
        seam.append(cost.masked_fill(far, torch.inf).argmin(-1))
    return torch.stack(seam, -1) * meets[:, None]
