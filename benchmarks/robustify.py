"""Rate of `shards robustify` in one process, shard to shard, as a ratio against a bare loop that decodes and encodes.

    python benchmarks/robustify.py [--jpegs FOLDER]

The loop has the encoded images and the sharpened pixels in memory: it decodes the former and encodes the latter, with
the same codec and settings, and neither sharpens, measures, hashes nor writes. OpenCV's own threads are off. The rounds
of all contestants are interleaved. A job costs a tenth of a second besides, most of it for syncing, so the sets are
large: 256 images, again and again under new keys. robustify encodes in a second thread; pin the process to one core
(taskset -c 0) to see the ratio without that.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import measure
import numpy as np
from stream import _jpegs, _pngs

from lightning_robust.shards import Sample, SampleReader, ShardIndex, Sharpening, decode_image, pack, robustify
from lightning_robust.shards.robustify_image import sharpen_encoded

_TARGET = 0.7
_DISTINCT = 256
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jpegs", type=Path, help="folder of 256x256 JPEG files to use instead of synthetic images")
    parser.add_argument("--images", type=int, default=2048, help="JPEG in the set; a quarter as many PNG")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        jpegs = _jpegs(min(_DISTINCT, arguments.images), arguments.jpegs)
        sets = {
            "JPEG 256x256": pack(_repeated(jpegs, arguments.images), home / "jpeg"),
            "PNG 256x256": pack(_repeated([_as_png(jpeg) for jpeg in jpegs], arguments.images // 4), home / "png"),
            "PNG 32x32": pack(_pngs(arguments.images), home / "small"),
        }
        rows, contestants = [], {}
        for name, index in sets.items():
            contestants[f"{name}: bare loop"] = measure.repeated(_bare(index))
            for variant, options in _VARIANTS.items() if name.startswith("JPEG") else [("", Sharpening())]:
                ours = f"{name}{variant}"
                contestants[ours] = measure.repeated(_robustify(index, home / "out", options))
                target = _TARGET if not variant and "256" in name else None
                rows.append(measure.Row(ours, ours, f"{name}: bare loop", "faster", target))
        times = measure.interleave(contestants, arguments.repeats)
    print("\n".join(measure.table(rows, times, {})))
    print(f"\n{arguments.images} JPEG, a quarter as many large PNG, as many small. {measure.machine()}")


_VARIANTS = {"": Sharpening(), ", each result measured": Sharpening(measure_every=1)}


def _bare(index: ShardIndex) -> Callable[[], None]:
    payloads = SampleReader(index).read(range(len(index)))
    jpeg = payloads[0].startswith(b"\xff\xd8")
    # encoded without loss, so that what robustify would encode comes back
    lossless = Sharpening(encode="png")
    sharp = [_bgr(data) for data, _ in sharpen_encoded((("", payload) for payload in payloads), lossless)]

    def run() -> None:
        for payload, pixels in zip(payloads, sharp, strict=True):
            cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)
            cv2.imencode(".jpg" if jpeg else ".png", pixels, _JPEG if jpeg else [])

    return run


def _robustify(index: ShardIndex, home: Path, options: Sharpening) -> Callable[[], None]:
    numbers = itertools.count()

    def run() -> None:
        result = home / str(next(numbers))
        robustify(list(index.paths), result, sharpening=options)
        shutil.rmtree(result)

    return run


def _bgr(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def _repeated(samples: list[Sample], count: int) -> list[Sample]:
    return [replace(samples[number % len(samples)], key=f"{number:06d}") for number in range(count)]


def _as_png(sample: Sample) -> Sample:
    return Sample(sample.key, decode_image(bytes(sample.image)), sample.target)


if __name__ == "__main__":
    main()
