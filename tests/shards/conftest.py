from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.web import Web, web_server

from lightning_robust.shards import Sample

Members = Iterable[tuple[str, bytes]]


def png(seed: int = 0, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    return png


@pytest.fixture
def samples() -> list[Sample]:
    return [Sample(f"{number:05d}", png(number), number % 5) for number in range(64)]


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """Write members with Python's tarfile, a writer that shares no code with the package."""

    def write(path: Path, members: Members, *, format: int = tarfile.USTAR_FORMAT) -> Path:
        with tarfile.open(path, "w", format=format) as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as server:
        yield server
