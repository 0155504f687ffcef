from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_robust.datamodules import ShardDataModule, ShardLoader
from lightning_robust.datamodules.plan import EpochOrder
from lightning_robust.datamodules.tasks import LoaderPlan
from lightning_robust.errors import InputError
from lightning_robust.shards import RemoteOptions, open_index


@pytest.fixture(scope="module")
def index(shards):
    return open_index(shards)


@st.composite
def _plans(draw):
    counts = np.array(draw(st.lists(st.integers(0, 9), min_size=1, max_size=12)), dtype=np.int64)
    streams, part, world = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    batch = streams * part * world
    if counts.sum() < batch:
        counts[0] += batch
    settings = {"seed": draw(st.integers(0, 99)), "window": draw(st.integers(1, 5))}
    return counts, streams, batch, world, settings


def _rank(counts, streams, batch, world, settings, *, rank=0):
    return LoaderPlan(counts, batch // world, rank, world, train=True, shuffle=True, streams=streams, **settings)


def _batches(plan, epoch=2, first=0):
    return [task.ids for task in plan.tasks(epoch, first, (8, 8, 3), None)]


@given(_plans())
def test_every_batch_takes_as_much_from_each_stretch_of_the_order(given_plan):
    counts, streams, batch, world, settings = given_plan
    order = EpochOrder(counts, epoch=2, **settings).ids(0, counts.sum())
    stretches = order[: len(order) // streams * streams].reshape(streams, -1)
    part = batch // streams
    expected = [stretches[:, i : i + part].ravel().tolist() for i in range(0, stretches.shape[1] - part + 1, part)]
    assert len(expected) == counts.sum() // batch
    ranks = [_batches(_rank(*given_plan, rank=rank)) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == expected


@given(_plans(), st.integers(0, 3))
def test_the_shards_of_each_batch_are_among_those_needed(given_plan, depth):
    counts, _, _, world, _ = given_plan
    ends = counts.cumsum()
    for rank in range(world):
        plan = _rank(*given_plan, rank=rank)
        plan = plan.entered(plan.global_batch) if plan.batches > 1 else plan
        needs, first = plan.needs(2), plan.done(plan.global_batch) if plan.batches > 1 else 0
        batches = _batches(plan, first=first)
        for number in range(first, plan.batches):
            last = min(number + depth, plan.batches - 1)
            used = np.searchsorted(ends, list(chain(*batches[number - first : last + 1 - first])), side="right")
            assert set(used.tolist()) <= set(needs.needed(*plan.span(number, last)))


@given(_plans(), st.data())
def test_the_rest_of_an_epoch_may_have_batches_of_another_size(given_plan, data):
    counts, streams, batch, _, settings = given_plan
    whole = _rank(counts, streams, batch, 1, settings)
    taken = data.draw(st.integers(0, whole.batches))
    seen = set(chain(*_batches(whole)[:taken]))
    other = data.draw(st.integers(1, max(1, int(counts.sum()) // streams))) * streams
    plan = _rank(counts, streams, other, 1, settings)
    consumed = taken * batch
    entered, first = plan.entered(consumed), plan.done(consumed)
    rest = _batches(entered, first=first)
    read = list(chain(*rest))
    assert len(rest) == (plan.length - consumed) // other
    assert len(read) == len(set(read))
    assert not seen & set(read)
    assert entered.delivered(plan.batches - 1) == consumed + len(read)


def test_each_of_two_machines_fetches_its_part_alone(shards, web, tmp_path):
    url = web.add_folder(Path(shards), "set")
    fetched = []
    for rank in range(2):
        web.gets.clear()
        index = open_index(url, remote=RemoteOptions(cache_dir=str(tmp_path / f"machine-{rank}")))
        loader = ShardLoader(index, batch_size=5, rank=rank, world=2, streams=2, shuffle_window=1)
        used = {int(shard) for batch in loader for shard in index.locate(batch.ids.numpy())[0]}
        fetched.append({path for path in web.gets if path.endswith(".tar")})
        assert len(used) <= 4 < len(index.paths) == 6
        # the stretch of the first ends in a shard where that of the second begins, and one is fetched ahead
        assert len(fetched[-1]) <= 5
        loader.close()
    assert len(fetched[0] | fetched[1]) == 6


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Linear(192, 5), []

    def training_step(self, batch, batch_idx):
        image, target = batch
        self.seen.append(self.trainer.datamodule.batch_ids.tolist())
        return nn.functional.cross_entropy(self.net(image.flatten(1)), target)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_reads_in_streams(shards, index, tmp_path):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=False, **settings)
    net = Net()
    trainer.fit(net, ShardDataModule(train=shards, batch_size=12, num_workers=0, streams=3))
    loader = ShardLoader(index, batch_size=12, streams=3)
    loader.sampler.set_epoch(0)
    assert net.seen == [batch.ids.tolist() for batch in loader]
    assert net.seen != [batch.ids.tolist() for batch in ShardLoader(index, batch_size=12)]


def test_a_state_of_other_streams_is_refused(index):
    state = ShardLoader(index, batch_size=12, streams=3).state_dict()
    with pytest.raises(InputError, match="streams=3 there and 4 here"):
        ShardLoader(index, batch_size=12, streams=4).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streams": 0}, "streams=0 reads nothing"),
        ({"streams": 5}, "streams=5 cannot each give as much to a global batch of 12 samples"),
        ({"streams": 3, "balance": "class"}, "streams=3 is for shuffled training that takes each sample once"),
        ({"streams": 3, "shuffle": False}, "streams=3 is for shuffled training"),
        ({"streams": 3, "purpose": "evaluate"}, "streams=3 is for shuffled training"),
    ],
)
def test_what_cannot_be_streamed_is_refused(index, settings, message):
    with pytest.raises(InputError, match=message):
        ShardLoader(index, batch_size=12, **settings)
