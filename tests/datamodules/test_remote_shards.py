from __future__ import annotations

import gc
import os
import signal
import threading
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_robust.datamodules import ShardDataModule, ShardLoader
from lightning_robust.datamodules.plan import EpochOrder
from lightning_robust.datamodules.readahead import ReadAhead
from lightning_robust.datamodules.tasks import LoaderPlan
from lightning_robust.datamodules.worker import BatchMaker
from lightning_robust.shards import FetchError, RemoteOptions, open_index

# the server's threads, which Python 3.12 and later warn of at every fork of a worker
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

SHARD_BYTES = 30_720


class Net(pl.LightningModule):
    """Records what it is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        self.seen = []

    def training_step(self, batch, batch_idx):
        image, target = batch
        self.seen.append((self.trainer.datamodule.batch_ids.tolist(), image.detach().clone(), target.tolist()))
        return nn.functional.cross_entropy(self.net(image), target)

    def validation_step(self, batch, batch_idx):
        self.seen.append((self.trainer.datamodule.batch_ids.tolist(), batch[0].clone(), batch[1].tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def url(web, shards):
    return web.add_folder(Path(shards), "set")


def _remote(tmp_path, **settings):
    return RemoteOptions(
        **({"cache_dir": str(tmp_path / "cache"), "backoff": 0, "attempts": 3, "timeout": 5} | settings)
    )


def _fit(path, train, val, **settings):
    net = Net()
    data = ShardDataModule(train=train, val=val, batch_size=12, eval_batch_size=9, shuffle_window=2, **settings)
    trainer = pl.Trainer(
        default_root_dir=path,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(net, data)
    return net


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fit_over_http_is_the_fit_on_the_local_files(web, url, shards, tmp_path, num_workers):
    web.faults = {f"/set/shard-{number:06d}.tar": [503, ("cut", 9_000)] for number in range(6)}
    local = _fit(tmp_path, f"{shards}/*.tar", shards, num_workers=0)
    far = url + "shard-{000000..000005}.tar"
    # room for two windows
    remote = _remote(tmp_path, cache_bytes=4 * SHARD_BYTES)
    found = _fit(tmp_path, far, url, num_workers=num_workers, remote=remote)
    assert [(ids, target) for ids, _, target in found.seen] == [(ids, target) for ids, _, target in local.seen]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(found.seen, local.seen, strict=True))
    for name, weight in local.state_dict().items():
        assert torch.equal(weight, found.state_dict()[name])


def test_a_set_that_fits_in_the_cache_is_fetched_once_by_all_workers_and_ranks(web, url, tmp_path):
    index = open_index(url, remote=_remote(tmp_path))
    loaders = [ShardLoader(index, batch_size=5, rank=rank, world=2, num_workers=2, seed=1) for rank in range(2)]
    for _ in range(2):
        batches = [batch for pair in zip(*loaders, strict=True) for batch in pair]
        assert sorted(int(i) for batch in batches for i in batch.ids) == list(range(70))
    assert {path: count for path, count in web.gets.items() if path.endswith(".tar")} == {
        f"/set/shard-{number:06d}.tar": 1 for number in range(6)
    }
    for loader in loaders:
        loader.close()


def test_the_next_window_is_fetched_before_it_is_read(web, url, tmp_path):
    index = open_index(url, remote=_remote(tmp_path))
    plan = LoaderPlan(index.counts, 4, 0, 1, train=True, shuffle=True, seed=3, window=2)
    order = EpochOrder(index.counts, seed=3, epoch=0, window=2).windows
    wanted = [f"/set/shard-{int(shard):06d}.tar" for number in (0, 1) for shard in order.shards(number)]
    arrived = threading.Event()

    def note(path):
        if all(web.gets[name] for name in wanted):
            arrived.set()

    web.after_body = note
    ahead = ReadAhead(index.remote, depth=1)
    ahead.begin(plan, 0)
    ahead.reach(0)
    assert arrived.wait(30)
    (pins,) = (tmp_path / "cache" / "pins").iterdir()
    held = {name.partition("-")[2] for name in pins.read_text().strip('[]"').split('", "')}
    assert held == {Path(name).name for name in wanted}
    ahead.close()
    assert not list((tmp_path / "cache" / "pins").iterdir())
    assert sum(count for path, count in web.gets.items() if path.endswith(".tar")) == 4


def test_a_loader_that_is_dropped_leaves_no_thread_and_no_pin(url, tmp_path):
    before = set(threading.enumerate())
    loader = ShardLoader(open_index(url, remote=_remote(tmp_path)), batch_size=5)
    next(iter(loader))
    fetchers = [thread for thread in threading.enumerate() if "_fetch" in thread.name]
    assert len(fetchers) == 4
    del loader
    gc.collect()
    for thread in fetchers:
        thread.join(30)
    assert not any(thread.is_alive() for thread in fetchers)
    assert not list((tmp_path / "cache" / "pins").iterdir())
    assert not {thread for thread in set(threading.enumerate()) - before if "_fetch" in thread.name}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("consumed", [0, 26])
def test_the_shards_of_each_batch_are_among_those_needed(shards, train, shuffle, world, consumed):
    index = open_index(shards)
    for rank in range(world):
        plan = LoaderPlan(index.counts, 5, rank, world, train=train, shuffle=train and shuffle, seed=0, window=1)
        plan = plan.entered(consumed)
        needs, depth, first = plan.needs(2), 2, plan.done(consumed)
        batches = [task.ids for task in plan.tasks(2, first, (8, 8, 3), None)]
        for number in range(first, plan.batches):
            last = min(number + depth, plan.batches - 1)
            needed = needs.needed(*plan.span(number, last))
            used = {int(shard) for ids in batches[number - first : last + 1 - first] for shard in index.locate(ids)[0]}
            assert used <= set(needed)
            assert len(needed) == len(set(needed)) <= 6


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_lost_network_is_an_error_and_never_a_skipped_sample(web, url, tmp_path, num_workers, on_error):
    index = open_index(url, remote=_remote(tmp_path))
    web.faults = {f"/set/shard-{number:06d}.tar": [503] * 999 for number in range(1, 6)}
    loader = ShardLoader(index, batch_size=10, num_workers=num_workers, on_error=on_error)
    with pytest.raises(FetchError, match=r"shard-00000[1-5]\.tar' cannot be fetched: .*503"):
        list(loader)
    assert loader.skipped == {}
    assert loader._ahead is None


def test_no_sample_is_put_in_the_place_of_a_bad_one_that_cannot_be_fetched(web, url, tmp_path):
    index = open_index(url, remote=_remote(tmp_path))
    web.files.clear()
    maker = BatchMaker(index, seed=0, image_size=None, sample_transform=None, on_error="skip")
    with pytest.raises(FetchError, match="404"):
        maker._sample(0, 0, b"not an image", {})


def test_a_killed_worker_does_not_lock_the_others_out(web, url, tmp_path):
    index = open_index(url, remote=_remote(tmp_path))
    web.faults = {f"/set/shard-{number:06d}.tar": [("stall", 1_000)] for number in range(6)}
    if (child := os.fork()) == 0:
        index.open_shard(0)
        os._exit(0)
    assert web.stalled.wait(30)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    web.faults.clear()
    os.close(index.open_shard(0))


def test_states_are_those_of_the_local_set_and_hide_secrets(url, shards, tmp_path):
    far = open_index(url + "shard-{000000..000005}.tar?key=secret", remote=_remote(tmp_path))
    state = ShardLoader(far, batch_size=12).state_dict()
    assert "secret" not in str(state)
    ShardLoader(open_index(shards), batch_size=12).load_state_dict(state)
