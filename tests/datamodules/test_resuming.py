from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from lightning_robust.datamodules import ShardDataModule, ShardLoader
from lightning_robust.datamodules.plan import EpochOrder
from lightning_robust.errors import InputError
from lightning_robust.shards import open_index

SAMPLES = 70
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 4))


@pytest.fixture(scope="module")
def index(shards):
    return open_index(shards)


def _taken(index, batch_size, world, batches):
    """State after some batches, and the samples of these on all ranks together."""
    seen, states = [], []
    for rank in range(world):
        loader = ShardLoader(index, batch_size=batch_size, rank=rank, world=world)
        loader.sampler.set_epoch(3)
        running = iter(loader)
        seen += [next(running).ids.tolist() for _ in range(batches)]
        states.append(loader.state_dict())
    assert all(state == states[0] for state in states)
    return states[0], set(chain.from_iterable(seen))


def _rest(index, state, batch_size, world):
    """Global batches that the epoch of a state still has, and the state after them."""
    ranks = []
    for rank in range(world):
        loader = ShardLoader(index, batch_size=batch_size, rank=rank, world=world)
        loader.any_batch_size = True
        loader.load_state_dict(state)
        ranks.append([batch.ids.tolist() for batch in loader])
    return [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)], loader.state_dict()


@given(before=SIZES, after=SIZES, data=st.data())
def test_the_rest_of_an_epoch_is_read_in_batches_of_another_size(index, before, after, data):
    former, present = before[0] * before[1], after[0] * after[1]
    taken = data.draw(st.integers(0, SAMPLES // former), label="batches taken")
    state, seen = _taken(index, *before, taken)
    rest, _ = _rest(index, state, *after)
    order = EpochOrder(index.counts, seed=0, epoch=3, window=16).ids(0, SAMPLES).tolist()
    left = SAMPLES - taken * former
    if taken == SAMPLES // former and former != present:
        assert rest == []
    elif left < present:
        assert rest == ([] if former == present else [order[-present:]])
    else:
        read = list(chain.from_iterable(rest))
        assert all(len(batch) == present for batch in rest)
        assert read == order[SAMPLES - left :][: left // present * present]
        assert not seen & set(read)


@given(sizes=st.lists(SIZES, min_size=3, max_size=3), data=st.data())
def test_an_epoch_may_change_its_batches_more_than_once(index, sizes, data):
    first, second, third = (batch_size * world for batch_size, world in sizes)
    state, seen = _taken(index, *sizes[0], data.draw(st.integers(0, SAMPLES // first - 1), label="first"))
    left = (SAMPLES - len(seen)) // second
    loader = ShardLoader(index, batch_size=second)
    loader.any_batch_size = True
    loader.load_state_dict(state)
    running = iter(loader)
    for _ in range(data.draw(st.integers(0, left), label="second")):
        seen |= set(next(running).ids.tolist())
    rest, _ = _rest(index, loader.state_dict(), *sizes[2])
    order = EpochOrder(index.counts, seed=0, epoch=3, window=16).ids(0, SAMPLES).tolist()
    if left == 0 or (SAMPLES - len(seen)) // second == 0:
        return  # it came to the end of its epoch, or to the batch that is filled up
    assert seen == set(order[: len(seen)])
    whole = order[len(seen) :][: (SAMPLES - len(seen)) // third * third]
    assert list(chain.from_iterable(rest)) == (whole or order[-third:])


def test_a_new_epoch_after_it_is_whole(index):
    state, _ = _taken(index, 6, 2, 3)
    loader = ShardLoader(index, batch_size=8)
    loader.any_batch_size = True
    loader.load_state_dict(state)
    assert [sum(1 for _ in loader), sum(1 for _ in loader)] == [(SAMPLES - 36) // 8, SAMPLES // 8]
    assert len(loader) == SAMPLES // 8


def test_what_is_no_state_is_refused(index):
    with pytest.raises(InputError, match="no state of a ShardLoader, since it lacks version, data"):
        ShardLoader(index, batch_size=12).load_state_dict({})


def test_an_evaluation_goes_on_with_the_same_ranks_and_batches_alone(index):
    def loader(batch_size, world):
        return ShardLoader(index, purpose="evaluate", batch_size=batch_size, world=world)

    for batch_size, world in ((6, 2), (5, 1)):
        resumed = loader(batch_size, world)
        resumed.any_batch_size = True
        with pytest.raises(InputError, match=r"ranks=|global_batch_size="):
            resumed.load_state_dict(loader(12, 1).state_dict())


def test_it_has_to_be_asked_for(index):
    state, _ = _taken(index, 6, 2, 3)
    with pytest.raises(InputError, match="global_batch_size=12 there and 8 here"):
        ShardLoader(index, batch_size=8).load_state_dict(state)


@pytest.mark.parametrize("drawn", [{"balance": "class"}, {"mix": {"shard-000000.tar": 1, "shard-00000[1-5].tar": 1}}])
def test_balanced_and_mixed_epochs_keep_their_batch_size(index, drawn):
    state = ShardLoader(index, batch_size=12, **drawn).state_dict()
    loader = ShardLoader(index, batch_size=8, **drawn)
    loader.any_batch_size = True
    with pytest.raises(InputError, match=r"with balance or mix, .* of the same product"):
        loader.load_state_dict(state)
    with pytest.raises(InputError, match="seed=0 there and 1 here"):
        ShardLoader(index, batch_size=12, seed=1, **drawn).load_state_dict(state)


class Net(pl.LightningModule):
    """Notes what it is given, and when its epochs end."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        self.seen, self.validated, self.ended = [], [], []

    def training_step(self, batch, batch_idx):
        image, target = batch
        self.seen.append((self.current_epoch, batch_idx, self.trainer.datamodule.batch_ids.tolist()))
        return nn.functional.cross_entropy(self.net(image), target)

    def validation_step(self, batch, batch_idx):
        self.validated += [(self.current_epoch, i) for i in self.trainer.datamodule.batch_ids.tolist()]

    def on_train_epoch_end(self):
        self.ended.append(self.current_epoch)
        if self.trainer.world_size > 1:
            text = repr((self.seen, self.validated, self.ended))
            Path(self.trainer.default_root_dir, f"rank-{self.global_rank}.txt").write_text(text)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]


class EarlyNet(Net):
    """Makes Lightning build the loaders before it restores the loops."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


def _fit(path, shards, batch_size, *, net=Net, ckpt_path=None, **settings):
    defaults = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    trainer, module = pl.Trainer(default_root_dir=path, **(defaults | settings)), net()
    data = ShardDataModule(train=shards, val=shards, batch_size=batch_size, eval_batch_size=70, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


class _SavesAfterTraining(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(Path(trainer.default_root_dir, f"trained-epoch={trainer.current_epoch}.ckpt"))


@pytest.fixture(scope="module")
def checkpoints(shards, tmp_path_factory):
    """Three epochs in batches of 12, with a checkpoint after each of the 15 steps, and one after each epoch."""
    path = tmp_path_factory.mktemp("checkpoints")
    savers = [
        ModelCheckpoint(path, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(path, filename="end-{epoch}", every_n_epochs=1, save_top_k=-1),
        _SavesAfterTraining(),
    ]
    whole, _ = _fit(path, shards, 12, callbacks=savers, enable_checkpointing=True)
    return path, whole


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
@pytest.mark.parametrize(("batch_size", "net"), [(5, Net), (9, EarlyNet), (30, Net), (70, EarlyNet)])
def test_a_trainer_goes_on_with_another_batch_size(shards, checkpoints, tmp_path, batch_size, net):
    path, whole = checkpoints
    for step in range(1, 15):
        resumed, trainer = _fit(tmp_path, shards, batch_size, net=net, ckpt_path=path / f"step={step}.ckpt")
        epoch, done = divmod(step, 5)
        before = {i for e, _, ids in whole.seen[:step] for i in ids if e == epoch}
        read = [ids for e, _, ids in resumed.seen if e == epoch]
        left = SAMPLES - len(before)
        assert len(read) == (max(1, left // batch_size) if done else SAMPLES // batch_size)
        assert all(len(ids) == batch_size for ids in read)
        assert len(set(chain(*read))) == len(list(chain(*read)))
        if left >= batch_size:
            assert not before & set(chain(*read))
        # the rest is as ever: whole epochs, every validation over all, the schedule at the end of each epoch
        later = range(epoch + 1, 3)
        assert [e for e, _, _ in resumed.seen if e > epoch] == [e for e in later for _ in range(SAMPLES // batch_size)]
        expected = [(e, i) for e in range(epoch, 3) for i in range(SAMPLES)]
        assert [one for one in resumed.validated if one[0] >= epoch] == expected
        assert [e for e in resumed.ended if e >= epoch] == list(range(epoch, 3))
        if done:
            assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
@pytest.mark.parametrize("kind", ["end", "trained"])
@pytest.mark.parametrize("batch_size", [5, 12, 30])
def test_a_trainer_goes_on_after_an_epoch_with_another_batch_size(shards, checkpoints, tmp_path, batch_size, kind):
    path, _ = checkpoints
    resumed, trainer = _fit(tmp_path, shards, batch_size, ckpt_path=path / f"{kind}-epoch=0.ckpt")
    assert [e for e, _, _ in resumed.seen] == [e for e in (1, 2) for _ in range(SAMPLES // batch_size)]
    assert [b for _, b, _ in resumed.seen] == [*range(SAMPLES // batch_size)] * 2
    assert trainer.current_epoch == 3


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
@pytest.mark.parametrize(("limit", "batches"), [(4, 1), (2, 1), (0.5, 4)])
def test_limits_count_batches_of_the_present_size(shards, checkpoints, tmp_path, limit, batches):
    path, _ = checkpoints
    checkpoint = path / "step=1.ckpt"
    resumed, _ = _fit(tmp_path, shards, 5, ckpt_path=checkpoint, limit_train_batches=limit, max_epochs=1)
    assert [e for e, _, _ in resumed.seen] == [0] * batches
    assert resumed.validated == [(0, i) for i in range(SAMPLES)]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
@pytest.mark.parametrize("step", [3, 5])
@pytest.mark.parametrize("batch_size", [5, 12, 30])
def test_loaders_that_are_made_anew_for_each_epoch_are_counted_too(shards, checkpoints, tmp_path, batch_size, step):
    path, _ = checkpoints
    settings = {"ckpt_path": path / f"step={step}.ckpt", "reload_dataloaders_every_n_epochs": 1}
    resumed, _ = _fit(tmp_path, shards, batch_size, **settings)
    for epoch in (1, 2):
        assert [b for e, b, _ in resumed.seen if e == epoch] == [*range(SAMPLES // batch_size)]


@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
@pytest.mark.filterwarnings("ignore:.*use_distributed_sampler.*")
def test_two_processes_go_on_where_one_was_killed(shards, checkpoints, tmp_path):
    path, whole = checkpoints
    checkpoint = path / "step=7.ckpt"
    _fit(tmp_path, shards, 4, ckpt_path=checkpoint, strategy="ddp_fork", devices=2, max_epochs=2)
    ranks = [eval((tmp_path / f"rank-{rank}.txt").read_text()) for rank in range(2)]
    before = {i for e, _, ids in whole.seen[:7] for i in ids if e == 1}
    read = [i for seen, _, _ in ranks for _, _, ids in seen for i in ids]
    assert len(read) == len(set(read)) == (SAMPLES - 24) // 8 * 8
    assert not before & set(read)
    assert sorted(i for _, validated, _ in ranks for _, i in validated) == list(range(SAMPLES))
    assert [ended for _, _, ended in ranks] == [[1], [1]]
