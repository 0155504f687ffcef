"""Distortion over a set, and the manifest that says what was done."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_robust.shards.robustify_image import MEASURES
from lightning_robust.shards.robustify_job import MANIFEST_NAME, Record, Written

KIND = "lightning-robust-sharpened-v1"

_MEANING = (
    "psnr (dB), linf (levels) and ssim (torchmetrics, luminance) are of the sharpened pixels against the decoded "
    "original; written_* of the decoded result against it. Summaries are over the samples counted; unchanged ones, of "
    "infinite PSNR, are counted apart."
)


def versions() -> dict[str, str]:
    """Versions of what decides the bytes of the result."""
    import cv2

    from lightning_robust import __version__

    return {"lightning_robust": __version__, "opencv": cv2.__version__}


def summarize(
    parts: Sequence[npt.NDArray[np.void]], worst: Sequence[dict[str, tuple[float, str]]] = ()
) -> dict[str, Any]:
    """Mean, quartiles and extremes of each measure.

    Args:
        parts: rows of :data:`MEASURES`.
        worst: the worst value of each part with its sample's key.
    """
    summary: dict[str, Any] = {"meaning": _MEANING}
    for name in MEASURES.names or ():
        values = np.concatenate([part[name] for part in parts]).astype(np.float64)
        finite = values[np.isfinite(values)]
        unchanged = int(np.isposinf(values).sum())
        if not finite.size and not unchanged:
            continue
        entry: dict[str, Any] = {"count": int(finite.size)}
        if name.endswith("psnr"):
            entry["unchanged"] = unchanged
        if finite.size:
            quartiles = np.quantile(finite, (0, 0.25, 0.5, 0.75, 1))
            entry["mean"] = _rounded(finite.mean())
            entry |= dict(zip(("min", "q1", "median", "q3", "max"), map(_rounded, quartiles), strict=True))
        candidates = [part[name] for part in worst if name in part]
        if candidates and name != "alpha":
            choose = max if name.endswith("linf") else min
            value, key = choose(candidates, key=lambda pair: pair[0])
            entry["worst"] = {"key": key, "value": _rounded(value)}
        summary[name] = entry
    return summary


def manifest(document: dict[str, Any], records: dict[str, Record]) -> dict[str, Any]:
    """Say what was done.

    Args:
        document: of the job.
        records: of all units, by name.
    """
    entries = []
    for name, record in records.items():
        entry: dict[str, Any] = {"name": name, "samples": record.samples, "size": sum(f.size for f in record.files)}
        if document["source"]["kind"] == "folder":
            entry["files"] = len(record.files)
        entries.append(entry | {"sha256": _digest(document["source"]["kind"], record.files)})
    return {
        "kind": KIND,
        "versions": document["versions"],
        "parameters": document["parameters"],
        "source": document["source"],
        "statistics": summarize(
            [record.measures for record in records.values()], [record.worst for record in records.values()]
        ),
        document["source"]["kind"]: entries,
    }


def mark(parameters: dict[str, Any]) -> dict[str, Any]:
    """What the index says of a set that was sharpened."""
    return {name: parameters[name] for name in ("alpha", "psnr", "neighbors")} | {"manifest": MANIFEST_NAME}


def _digest(kind: str, files: list[Written]) -> str:
    """SHA-256 of a shard; of a folder, that of the lines that ``sha256sum`` prints for its files in order of name."""
    if kind == "shards":
        return files[0].sha256
    lines = (f"{file.sha256}  {file.path.rsplit('/', 1)[-1]}\n" for file in sorted(files, key=lambda file: file.path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _rounded(value: float) -> float:
    return round(float(value), 4)
