"""Sharpen encoded images and measure what that changed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_robust.errors import ShardError
from lightning_robust.shards.decode import decode_image
from lightning_robust.shards.robustify_metadata import (
    Codec,
    codec_of,
    is_gray,
    is_lossless,
    read_metadata,
    with_metadata,
)
from lightning_robust.shards.robustify_options import Sharpening
from lightning_robust.shards.tar import MAX_MEMBER_BYTES

Pixels = npt.NDArray[np.uint8]
Measures = tuple[float, ...]

# NaN where it was not measured; distances are between 8-bit pixels, those of the written file against the same original
MEASURES = np.dtype(
    [(name, "<f4") for name in ("alpha", "psnr", "linf", "ssim", "written_psnr", "written_linf", "written_ssim")]
)

_SSIM_WINDOW = 11
_WEBP_LOSSLESS = 101
# small images share the cost of a call; many large ones would not fit the memory
_GROUP_PIXELS = 1 << 21


class _Image(NamedTuple):
    where: str
    data: bytes
    pixels: Pixels
    measured: bool


def sharpen_encoded(
    images: Iterable[tuple[str, bytes]], options: Sharpening
) -> Generator[tuple[bytes, Measures], None, None]:
    """Decode, sharpen and encode images, one after another.

    The pixels are those of :func:`decode_image`, so an alpha channel is dropped and the orientation in the metadata is
    neither applied nor changed. A gray image stays gray. A thread encodes while the next images are decoded.

    Args:
        images: what names an image in an error, and a JPEG, PNG or WebP.
        options: what is done.

    Yields:
        The encoded image, and a row of :data:`MEASURES`.

    Raises:
        ShardError: an image cannot be decoded, or its result not be encoded.
    """
    waiting: deque[Future[list[tuple[bytes, Measures]]]] = deque()
    with ThreadPoolExecutor(1) as encoder:
        for group in _groups(images, options):
            sharp, alphas = _sharpened([image.pixels for image in group], options)
            waiting.append(encoder.submit(_encode_group, group, sharp, alphas, options))
            if len(waiting) > 1:
                yield from waiting.popleft().result()
        for encoded in waiting:
            yield from encoded.result()


def _groups(images: Iterable[tuple[str, bytes]], options: Sharpening) -> Iterator[list[_Image]]:
    """Images of one size, decoded."""
    group: list[_Image] = []
    for number, (where, data) in enumerate(images):
        pixels = decode_image(data, where=where)
        if group and (pixels.shape != group[0].pixels.shape or len(group) * pixels[..., 0].size >= _GROUP_PIXELS):
            yield group
            group = []
        group.append(_Image(where, data, pixels, number % options.measure_every == 0))
    if group:
        yield group


def _sharpened(originals: list[Pixels], options: Sharpening) -> tuple[Pixels, list[float]]:
    import torch

    from lightning_robust.functional import alpha_for_psnr, laplacian_sharpen

    batch = torch.from_numpy(np.stack(originals)).permute(0, 3, 1, 2)
    alphas = [options.alpha] * len(originals)
    if options.psnr is not None:
        alphas = alpha_for_psnr(batch, options.psnr, neighbors=options.neighbors).tolist()
    sharp = laplacian_sharpen(batch, alphas if options.psnr else options.alpha, neighbors=options.neighbors)
    return np.ascontiguousarray(sharp.permute(0, 2, 3, 1).numpy()), alphas


def _encode_group(
    group: list[_Image], sharp: Pixels, alphas: list[float], options: Sharpening
) -> list[tuple[bytes, Measures]]:
    return [_encode(*each, options) for each in zip(group, sharp, alphas, strict=True)]


def _encode(image: _Image, sharp: Pixels, alpha: float, options: Sharpening) -> tuple[bytes, Measures]:
    data, where = image.data, image.where
    codec = codec_of(data) if options.encode == "same" else options.encode
    stays_lossless = options.lossless or (options.encode == "same" and is_lossless(data))
    lossless = codec == "png" or (codec == "webp" and stays_lossless)
    gray = codec != "webp" and is_gray(data)
    encoded = _encoded(sharp, codec, options, gray=gray, lossless=lossless, where=where)
    measured = _distances(image.pixels, sharp, options)
    if lossless:
        written = measured
    elif image.measured:
        written = _distances(image.pixels, decode_image(encoded, where=f"the result of {where}"), options)
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
