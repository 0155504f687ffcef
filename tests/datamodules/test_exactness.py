"""Every sample once, whatever the ranks, workers, start methods and shards."""

from __future__ import annotations

import functools
from itertools import chain

import numpy as np
import pytest

from lightning_robust.datamodules import LoaderOptions, ShardLoader
from lightning_robust.datamodules.plan import EpochOrder
from lightning_robust.shards import Sample, open_index, pack

SAMPLES, BATCH = 72, 5
FORKED = [(world, workers, "fork") for world in (1, 2, 3, 4) for workers in (0, 1, 2, 3)]
# a spawned worker takes seconds to start
SPAWNED = [(2, 1, "spawn"), (1, 3, "spawn")]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Opens a set of 72 samples in so many shards; the pixels of a sample are its id."""
    home = tmp_path_factory.mktemp("sets")

    @functools.cache
    def opened(shards):
        images = np.arange(SAMPLES, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
        samples = [Sample(f"{i:03d}", image, i % 7) for i, image in enumerate(images)]
        pack(samples, home / str(shards), samples_per_shard=SAMPLES // shards)
        index = open_index(str(home / str(shards)))
        assert len(index.paths) == shards
        return index

    return opened


def _read(index, purpose, world, workers, start):
    """Sample ids of each batch of each rank, as told by the ids and, alike, by the pixels and the labels."""
    ranks = []
    for rank in range(world):
        options = LoaderOptions(start_method=start, persistent_workers=False)
        settings = {"batch_size": BATCH, "purpose": purpose, "rank": rank, "world": world, "num_workers": workers}
        batches = list(ShardLoader(index, **settings, options=options))
        for batch in batches:
            assert (batch.image == batch.ids[:, None, None, None]).all()
            assert (batch.target == batch.ids % 7).all()
        ranks.append([batch.ids.tolist() for batch in batches])
    return ranks


# torch warns of more workers than cores, which is what is tested here
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes in total")
@pytest.mark.parametrize(("world", "workers", "start"), FORKED + SPAWNED)
def test_every_sample_comes_once(sets, world, workers, start):
    readers = world * max(workers, 1)
    for shards in {1, readers, 24} if start == "fork" else {2}:
        index = sets(shards)
        evaluated = _read(index, "evaluate", world, workers, start)
        assert len({len(batches) for batches in evaluated}) == 1
        assert sorted(chain(*chain(*evaluated))) == list(range(SAMPLES))
        if shards == readers or (world == 1 and start == "spawn"):
            trained = _read(index, "train", world, workers, start)
            steps = SAMPLES // (BATCH * world)
            assert all([len(ids) for ids in batches] == [BATCH] * steps for batches in trained)
            order = EpochOrder(index.counts, seed=0, epoch=0, window=16).ids(0, SAMPLES).tolist()
            assert list(chain(*chain(*zip(*trained, strict=True)))) == order[: steps * BATCH * world]
