"""Random size, random place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.defenses._planes import check_choice, check_range, take
from lightning_robust.defenses.contract import Defense

# of images of 299 pixels: smallest size, first size that is not drawn (also the canvas)
_SIZES = {"paper": (299, 331), "competition": (310, 331)}


class RandomResizePad(Defense):
    """Resize every image to a size of its own and put it at a random place of a larger gray canvas.

    Images of 299 pixels become 331 wide; other sizes scale alike (224 becomes 248), so the net must take the larger
    size. One draw sizes both axes.

    Args:
        variant: ``paper`` draws from 299 to 330 pixels; ``competition`` from 310 to 330, as the released code does, and
            mirrors half of the images. That code averages 30 draws: ``Purified(model, RandomResizePad(), votes=30)``.
        steps: ``both``; ``pad`` keeps the image's size; ``resize`` goes to the drawn size and back (ours: a batch needs
            one size). The pixel-deflection paper has rows for either step alone but not their settings.
        interpolation: ``bilinear``, as the attackers' code, or ``nearest``, as the competition's.
        fill: gray of the canvas. The released zeros are on images in [-1, 1], which is 0.5 here.

    Raises:
        InputError: if an option is unknown.

    Source:
        Xie et al., ICLR 2018; released code of its NIPS 2017 entry; Athalye et al., ICML 2018, released code.

    Example:
        >>> import torch
        >>> RandomResizePad()(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 3, 248, 248])
    """

    is_random = True

    def __init__(
        self,
        *,
        variant: Literal["paper", "competition"] = "paper",
        steps: Literal["both", "resize", "pad"] = "both",
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
        fill: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("variant", variant, tuple(_SIZES))
        check_choice("steps", steps, ("both", "resize", "pad"))
        check_choice("interpolation", interpolation, ("bilinear", "nearest"))
        check_range("fill", fill, 0, 1)
        self.variant = variant
        self.steps = steps
        self.interpolation = interpolation
        self.fill = fill

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return (
            f"variant={self.variant!r}, steps={self.steps!r}, interpolation={self.interpolation!r}, fill={self.fill:g}"
        )

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Draw sizes and places, and resample."""
        if self.variant == "competition":
            mirrored = streams.uniform(seeds, (1, 1, 1), "flip") < 0.5
            image = torch.where(mirrored, image.flip(-1), image)
        sizes = self._draw_sizes(image, seeds)
        given = [torch.full_like(sizes[0], side) for side in image.shape[2:]]
        if self.steps == "resize":
            origin = [torch.zeros_like(size) for size in sizes]
            resized = self._resample(image, given, sizes, origin, self._canvas(image))
            return self._resample(resized, sizes, given, origin, tuple(image.shape[2:]))
        canvas = self._canvas(image)
        target = sizes if self.steps == "both" else given
        offsets = [
            ((side - size + 1) * streams.uniform(seeds, (), name).double()).long()
            for side, size, name in zip(canvas, target, ("down", "right"), strict=True)
        ]
        return self._resample(image, given, target, offsets, canvas)

    def surrogate(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Return the result itself: it carries the true gradient, and the identity would not have its size."""
        return self.purify(image, seeds)

    def _canvas(self, image: Tensor) -> tuple[int, ...]:
        return tuple(_scaled(331, side) for side in image.shape[2:])

    def _draw_sizes(self, image: Tensor, seeds: Tensor) -> list[Tensor]:
        """Heights and widths, int64 of shape (B,)."""
        draw = streams.uniform(seeds, (), "size").double()
        sizes = []
        for side in image.shape[2:]:
            low, high = (_scaled(size, side) for size in _SIZES[self.variant])
            sizes.append(low + (draw * max(high - low, 1)).long())
        return sizes

    def _resample(
        self,
        image: Tensor,
        sources: list[Tensor],
        targets: list[Tensor],
        offsets: list[Tensor],
        canvas: tuple[int, ...],
    ) -> Tensor:
        rows, columns = (
            _Axis(source, target, offset, length, nearest=self.interpolation == "nearest")
            for source, target, offset, length in zip(sources, targets, offsets, canvas, strict=True)
        )
        top = self._blend(image, rows.low, columns)
        if self.interpolation == "bilinear":
            bottom = self._blend(image, rows.high, columns)
            top = torch.lerp(top, bottom, rows.fraction[:, None, :, None].to(image.dtype).expand_as(top))
        inside = rows.inside[:, None, :, None] & columns.inside[:, None, None, :]
        return torch.where(inside, top, self.fill)

    def _blend(self, image: Tensor, rows: Tensor, columns: _Axis) -> Tensor:
        left = take(image, rows, columns.low)
        if self.interpolation == "nearest":
            return left
        right = take(image, rows, columns.high)
        return torch.lerp(left, right, columns.fraction[:, None, None, :].to(image.dtype).expand_as(left))


class _Axis:
    """Where each position of the canvas finds its pixels along one axis.

    Args:
        source: pixels of each image that hold it, int64 of shape (B,).
        target: pixels that they become.
        offset: the first of these on the canvas.
        length: of the canvas.
        nearest: take the pixel at the floor of the scaled position; else half-pixel centers, for interpolation.
    """

    def __init__(self, source: Tensor, target: Tensor, offset: Tensor, length: int, *, nearest: bool) -> None:
        position = torch.arange(length, device=source.device) - offset[:, None]
        self.inside = (position >= 0) & (position < target[:, None])
        last = source[:, None] - 1
        if nearest:
            self.low = (position * source[:, None] // target[:, None]).clamp_min(0).minimum(last)
            return
        ratio = (source.double() / target.double())[:, None]
        exact = ((position + 0.5) * ratio - 0.5).clamp_min(0).minimum(last.double())
        self.low = exact.long()
        self.high = (self.low + 1).minimum(last)
        self.fraction = exact - self.low


def _scaled(size: int, side: int) -> int:
    return round(size * side / 299)
