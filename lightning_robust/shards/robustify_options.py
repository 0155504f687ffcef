"""How a set is sharpened and written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from lightning_robust.errors import InputError
from lightning_robust.shards.robustify_metadata import Codec

EXTENSIONS: dict[str, Codec] = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}


@dataclass(frozen=True, kw_only=True)
class Sharpening:
    """How images are sharpened and written.

    Attributes:
        alpha: strength, see :func:`laplacian_sharpen`.
        psnr: choose the strength of each image for this distance in dB instead, see :func:`alpha_for_psnr`.
        neighbors: of the Laplacian.
        encode: format of the result; ``same`` keeps that of each image, and a lossless WebP lossless.
        quality: of JPEG and lossy WebP.
        subsampling: of the color of JPEG.
        lossless: write WebP without loss.
        metadata: ``keep`` EXIF, color profile and XMP, or ``strip`` all but the orientation.
        ssim: measure SSIM too, which takes many times as long as the sharpening.
        measure_every: decode again every so many written images that are not lossless, to measure what the encoder
            did. 1 measures all, and costs as much as another decoding of the set.

    Raises:
        InputError: a value is not allowed.
    """

    alpha: float = 0.15
    psnr: float | None = None
    neighbors: Literal[4, 8] = 4
    encode: Literal["same", "jpeg", "png", "webp"] = "same"
    quality: int = 95
    subsampling: Literal["444", "422", "420"] = "444"
    lossless: bool = False
    metadata: Literal["keep", "strip"] = "keep"
    ssim: bool = False
    measure_every: int = 16

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("psnr", self.psnr)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value}: expected a positive number.")
        choices: dict[str, tuple[Any, ...]] = {
            "neighbors": (4, 8),
            "encode": ("same", "jpeg", "png", "webp"),
            "subsampling": ("444", "422", "420"),
            "metadata": ("keep", "strip"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(str, allowed))}.")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality={self.quality}: expected 1 to 100.")
        if self.measure_every < 1:
            raise InputError(f"measure_every={self.measure_every}: expected at least 1.")

    def document(self) -> dict[str, Any]:
        """The options as plain data; ``alpha`` is None where ``psnr`` takes its place."""
        return dataclasses.asdict(self) | ({} if self.psnr is None else {"alpha": None})

    def extension(self, old: str) -> str:
        """Extension of the result for that of the source; it stays where the format does, or where it names none."""
        head, dot, last = old.rpartition(".")
        if self.encode == "same" or EXTENSIONS.get(last.lower(), self.encode) == self.encode:
            return old
        return f"{head}{dot}{'jpg' if self.encode == 'jpeg' else self.encode}"
