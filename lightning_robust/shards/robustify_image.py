"""Sharpen one encoded image and measure what that changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.decode import decode_image
from lightning_robust.shards.robustify_metadata import (
    Codec,
    codec_of,
    is_gray,
    is_lossless,
    read_metadata,
    with_metadata,
)
from lightning_robust.shards.tar import MAX_MEMBER_BYTES

Pixels = npt.NDArray[np.uint8]

# NaN where it was not measured; distances are between 8-bit pixels, those of the written file against the same original
MEASURES = np.dtype(
    [(name, "<f4") for name in ("alpha", "psnr", "linf", "ssim", "written_psnr", "written_linf", "written_ssim")]
)
EXTENSIONS: dict[str, Codec] = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}

_SSIM_WINDOW = 11
_WEBP_LOSSLESS = 101


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
    measure_every: int = 8

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

    def extension(self, old: str) -> str:
        """Extension of the result for that of the source; it stays where the format does, or where it names none."""
        head, dot, last = old.rpartition(".")
        if self.encode == "same" or EXTENSIONS.get(last.lower(), self.encode) == self.encode:
            return old
        return f"{head}{dot}{'jpg' if self.encode == 'jpeg' else self.encode}"


def sharpen_encoded(
    data: bytes, options: Sharpening, *, where: str, measure_written: bool = True
) -> tuple[bytes, tuple[float, ...]]:
    """Decode, sharpen and encode an image.

    The pixels are those of :func:`decode_image`, so an alpha channel is dropped and the orientation in the metadata is
    neither applied nor changed. A gray image stays gray.

    Args:
        data: a JPEG, PNG or WebP.
        options: what is done.
        where: names the image in an error.
        measure_written: decode the result again, if it is not lossless.

    Returns:
        The encoded image, and a row of :data:`MEASURES`.

    Raises:
        ShardError: the image cannot be decoded, or its result not be encoded.
    """
    original = decode_image(data, where=where)
    sharp, alpha = _sharpened(original, options)
    codec = codec_of(data) if options.encode == "same" else options.encode
    lossless = codec == "png" or (codec == "webp" and (options.lossless or _stays_lossless(data, options)))
    gray = codec != "webp" and is_gray(data)
    encoded = _encoded(sharp, codec, options, gray=gray, lossless=lossless, where=where)
    measured = _distances(original, sharp, options)
    if lossless:
        written = measured
    elif measure_written:
        written = _distances(original, decode_image(encoded, where=f"the result of {where}"), options)
    else:
        written = (math.nan,) * 3
    metadata = read_metadata(data)
    kept = metadata.only_orientation() if options.metadata == "strip" else metadata
    try:
        result = with_metadata(encoded, kept.for_channels(1 if gray else 3))
    except ShardError as error:
        raise ShardError(f"The metadata of {where} cannot be kept: {error}") from None
    if len(result) > MAX_MEMBER_BYTES:
        raise ShardError(f"The result of {where} has {len(result)} bytes; the limit is {MAX_MEMBER_BYTES}.")
    return result, (alpha, *measured, *written)


def _stays_lossless(data: bytes, options: Sharpening) -> bool:
    return options.encode == "same" and is_lossless(data)


def _sharpened(image: Pixels, options: Sharpening) -> tuple[Pixels, float]:
    import torch

    from lightning_robust.functional import alpha_for_psnr, laplacian_sharpen

    planes = torch.from_numpy(image).permute(2, 0, 1)
    alpha = options.alpha
    if options.psnr is not None:
        alpha = float(alpha_for_psnr(planes, options.psnr, neighbors=options.neighbors))
    sharp = laplacian_sharpen(planes[None], alpha, neighbors=options.neighbors)[0]
    return np.ascontiguousarray(sharp.permute(1, 2, 0).numpy()), alpha


def _encoded(image: Pixels, codec: Codec, options: Sharpening, *, gray: bool, lossless: bool, where: str) -> bytes:
    import cv2

    parameters = {
        "png": [],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, _WEBP_LOSSLESS if lossless else options.quality],
        "jpeg": [
            cv2.IMWRITE_JPEG_QUALITY,
            options.quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{options.subsampling}"),
        ],
    }[codec]
    pixels = np.ascontiguousarray(image[:, :, 0]) if gray else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    try:
        done, encoded = cv2.imencode(f".{codec}", pixels, parameters)
    except cv2.error as error:
        raise ShardError(f"The result of {where} cannot be encoded as {codec}: {error.err}.") from None
    if not done:
        raise ShardError(f"The result of {where}, of shape {image.shape}, cannot be encoded as {codec}.")
    return bytes(encoded)


def _distances(original: Pixels, other: Pixels, options: Sharpening) -> tuple[float, float, float]:
    """PSNR in dB, largest difference in levels, and SSIM."""
    import cv2

    squares = cv2.norm(original, other, cv2.NORM_L2SQR) / original.size
    psnr = 10 * math.log10(255**2 / squares) if squares else math.inf
    return psnr, cv2.norm(original, other, cv2.NORM_INF), _ssim(original, other) if options.ssim else math.nan


def _ssim(original: Pixels, other: Pixels) -> float:
    """SSIM of the luminance (BT.601); NaN where the image is smaller than the window."""
    if min(original.shape[:2]) < _SSIM_WINDOW:
        return math.nan
    import cv2
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    ours, theirs = (
        torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).float()[None, None] for image in (other, original)
    )
    return float(torch.as_tensor(structural_similarity_index_measure(ours, theirs, data_range=255.0)))
