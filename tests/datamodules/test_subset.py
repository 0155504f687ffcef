from __future__ import annotations

import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_robust.datamodules import ShardDataModule, ShardLoader
from lightning_robust.errors import InputError
from lightning_robust.shards import RemoteOptions, open_index

fewer_examples = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
subsets = st.sets(st.integers(0, 69), min_size=4).map(sorted)
larger_subsets = st.sets(st.integers(0, 69), min_size=16).map(sorted)


@pytest.fixture(scope="module")
def index(shards):
    return open_index(shards)


@fewer_examples
@given(kept=subsets, world=st.integers(1, 4), batch_size=st.integers(2, 9))
def test_evaluation_sees_every_sample_of_a_subset_once(index, images, kept, world, batch_size):
    view = index.select(kept)
    loaders = [
        ShardLoader(view, batch_size=batch_size, purpose="evaluate", rank=rank, world=world) for rank in range(world)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    batches = [batch for loader in loaders for batch in loader]
    seen = np.array(kept)[torch.cat([batch.ids for batch in batches])]
    assert sorted(seen) == kept
    pixels = np.concatenate([batch.image.permute(0, 2, 3, 1).numpy() for batch in batches])
    np.testing.assert_array_equal(pixels, images[seen])
    np.testing.assert_array_equal(np.concatenate([batch.target for batch in batches]), seen % 5)


@fewer_examples
@given(kept=larger_subsets, world=st.integers(1, 4), share=st.integers(1, 5), taken=st.integers(0, 3))
def test_training_on_a_subset_splits_and_resumes_exactly(index, kept, world, share, taken):
    if len(kept) < share * world:
        with pytest.raises(InputError, match=f"{len(kept)} training samples do not fill"):
            ShardLoader(index.select(kept), batch_size=share, world=world)
        return
    view = index.select(kept)
    whole = ShardLoader(view, batch_size=share * world)
    reference = [batch.ids.tolist() for batch in whole]
    flat = list(chain.from_iterable(reference))
    assert len(flat) == len(set(flat)) > len(kept) - share * world
    parts = []
    for rank in range(world):
        share_of_rank = {"batch_size": share, "rank": rank, "world": world}
        first = ShardLoader(view, **share_of_rank)
        batches = iter(first)
        began = [next(batches).ids.tolist() for _ in range(min(taken, len(first)))]
        resumed = ShardLoader(index.select(kept), **share_of_rank)
        resumed.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        resumed.sampler.set_epoch(0)
        parts.append(began + [batch.ids.tolist() for batch in resumed])
    assert [list(chain.from_iterable(split)) for split in zip(*parts, strict=True)] == reference


def test_workers_read_the_subset(index, images):
    view = index.with_labels([1, 3], renumber=True)
    batches = list(ShardLoader(view, batch_size=7, num_workers=2))
    seen = np.concatenate([batch.ids for batch in batches])
    whole = np.flatnonzero(np.isin(index.labels, [1, 3]))[seen]
    np.testing.assert_array_equal(np.concatenate([batch.target for batch in batches]), (whole % 5 == 3).astype(int))
    np.testing.assert_array_equal(
        np.concatenate([batch.image.permute(0, 2, 3, 1).numpy() for batch in batches]), images[whole]
    )


def test_a_state_of_another_subset_is_refused(index):
    state = ShardLoader(index.with_labels([0, 1]), batch_size=4).state_dict()
    for other in (index.with_labels([0, 2]), index, index.with_labels([0, 1]).select(range(20))):
        with pytest.raises(InputError, match=r"made on 28 samples \(labels 0, 1\) in 6 shards .* the same samples"):
            ShardLoader(other, batch_size=4).load_state_dict(state)
    with pytest.raises(InputError, match=r"the run reads 28 samples \(labels 0, 2\)"):
        ShardLoader(index.with_labels([0, 2]), batch_size=4).load_state_dict(state)
    ShardLoader(index.with_labels([1, 0]), batch_size=4).load_state_dict(state)


def test_only_shards_with_samples_of_the_subset_are_fetched(web, shards, tmp_path):
    url = web.add_folder(Path(shards), "set")
    index = open_index(url, remote=RemoteOptions(cache_dir=str(tmp_path / "cache")))
    loader = ShardLoader(index.select([1, 2, 40]), batch_size=3)
    (batch,) = loader
    assert sorted(batch.target.tolist()) == [0, 1, 2]
    loader.close()
    fetched = {path for path in web.gets if path.endswith(".tar")}
    assert fetched == {"/set/shard-000000.tar", "/set/shard-000003.tar"}


class Net(pl.LightningModule):
    """Records the targets it is given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        image, target = batch
        self.trained += target.tolist()
        return torch.nn.functional.cross_entropy(self.layer(image.mean((2, 3))), target)

    def validation_step(self, batch, batch_idx):
        self.validated += batch[1].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(data, path, **settings):
    net = Net()
    trainer = pl.Trainer(
        default_root_dir=path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(net, data, **settings)
    return net, trainer


def test_a_data_module_keeps_labels_of_the_sets_named(shards, tmp_path):
    settings = {"train": shards, "val": shards, "batch_size": 7, "num_workers": 0, "num_classes": 2}
    keep = {"train": [4, 2], "val": [2, 4]}
    net, trainer = _fit(ShardDataModule(keep_labels=keep, renumber_labels=True, **settings), tmp_path)
    assert sorted(net.trained) == sorted(net.validated) == [0] * 14 + [1] * 14
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    others = ShardDataModule(keep_labels={"train": [0, 1], "val": [0, 1]}, **settings)
    with pytest.raises(InputError, match=r"\(labels 2, 4\).*\(labels 0, 1\)"):
        _fit(others, tmp_path, ckpt_path=tmp_path / "run.ckpt")
    with pytest.raises(InputError, match=r"Label 2 of .* is not one of 2 classes"):
        ShardDataModule(keep_labels=keep, **settings).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_labels": {"test": [1]}}, r"keep_labels names \['test'\], of which no shards were given"),
        ({"keep_labels": {"val": [1]}, "unindexed": ("val",)}, "unindexed too"),
        (
            {"keep_labels": {"train": [1]}, "renumber_labels": True},
            r"the same labels of all of \['train', 'val'\]",
        ),
        ({"renumber_labels": True}, "renumber_labels=True"),
    ],
)
def test_labels_that_cannot_be_kept_are_said_at_once(shards, settings, message):
    with pytest.raises(InputError, match=message):
        ShardDataModule(train=shards, val=shards, **settings)


def test_labels_are_kept_as_yaml_says():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardDataModule, "data")
    words = ["--data.train", "a.tar", "--data.keep_labels", "{train: [0, 3, 7]}", "--data.renumber_labels", "true"]
    data = parser.instantiate_classes(parser.parse_args(words)).data
    assert (data.keep_labels, data.renumber_labels) == ({"train": [0, 3, 7]}, True)
