from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.web import Web, web_server

from lightning_robust.shards import Sample, pack

SAMPLES = 70


def pixels(count, side=8):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def images():
    return pixels(SAMPLES)


@pytest.fixture(scope="session")
def shards(images, tmp_path_factory):
    """70 lossless 8x8 images in 6 shards, the last one smaller; the label is the id modulo 5."""
    folder = tmp_path_factory.mktemp("shards")
    pack([Sample(f"{i:03d}", image, i % 5) for i, image in enumerate(images)], folder, samples_per_shard=13)
    return str(folder)


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as server:
        yield server
