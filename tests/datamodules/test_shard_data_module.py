from __future__ import annotations

import copy
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, timer
from torch import nn

from lightning_robust.datamodules import LoaderOptions, ShardDataModule
from lightning_robust.errors import InputError, ShardError, UnsupportedError
from lightning_robust.shards import Sample, open_index, pack


class Net(pl.LightningModule):
    """Records what it is given."""

    def __init__(self, stop_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(192, 5))
        self.stop_at = stop_at
        self.seen, self.evaluated, self.images = [], [], []

    def training_step(self, batch, batch_idx):
        image, target = (batch["image"], batch["target"]) if isinstance(batch, dict) else batch
        if self.trainer.global_step == self.stop_at:
            raise KeyError("killed")
        self.seen.append((self.current_epoch, batch_idx, self.trainer.datamodule.batch_ids.tolist()))
        self.images.append(image.detach().clone())
        return nn.functional.cross_entropy(self.net(image), target)

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(self.trainer.datamodule.batch_ids.tolist())
        image, target = batch
        self.log("loss", nn.functional.cross_entropy(self.net(image), target), batch_size=len(target))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.trainer.datamodule.batch_ids

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def _trainer(path, **settings):
    defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=path, **(defaults | settings))


def _data(shards, **settings):
    return ShardDataModule(**({"train": shards, "batch_size": 12, "num_workers": 0} | settings))


def _flat(batches):
    return sorted(i for batch in batches for i in batch)


def test_fit_gives_each_epoch_its_own_order_and_every_evaluation_all_samples(shards, tmp_path):
    data = _data(shards, val=shards, test=shards, predict=shards, eval_batch_size=9, num_workers=2)
    net, trainer = Net(), _trainer(tmp_path, num_sanity_val_steps=2, val_check_interval=0.5)
    trainer.fit(net, data)
    epochs = [[ids for e, _, ids in net.seen if e == epoch] for epoch in range(2)]
    assert [len(batches) for batches in epochs] == [5, 5]
    assert epochs[0] != epochs[1]
    assert len(set(_flat(epochs[0]))) == 60
    # two sanity batches, then a whole validation twice in each epoch
    whole = net.evaluated[2:]
    assert len(whole) == 4 * 8
    assert all(_flat(whole[i * 8 : i * 8 + 8]) == list(range(70)) for i in range(4))

    net.evaluated.clear()
    trainer.validate(net, data)
    trainer.test(net, data)
    assert _flat(net.evaluated) == sorted([*range(70), *range(70)])
    assert not any(loader._pool._workers for loader in data._loaders.values())


def test_predict_returns_every_sample_once(shards, tmp_path):
    found = _trainer(tmp_path).predict(Net(), _data(None, predict=shards, batch_size=16))
    assert _flat(batch.tolist() for batch in found) == list(range(70))


def test_images_are_exact_floats(shards, images, tmp_path):
    net = Net()
    _trainer(tmp_path, max_epochs=1).fit(net, _data(shards))
    for (_, _, ids), image in zip(net.seen, net.images, strict=True):
        expected = images[ids].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        assert image.dtype == torch.float32
        assert image.is_contiguous()
        np.testing.assert_array_equal(image.numpy(), expected)


# Lightning says, for a module with such a hook and any data module, which of the two it calls
@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`.*LightningModule` instance")
def test_the_hook_of_the_module_still_runs(shards, tmp_path):
    class Dimmed(Net):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            assert batch[0].dtype == torch.float32
            return batch[0] * 0, batch[1]

    net = Dimmed()
    _trainer(tmp_path, max_epochs=1).fit(net, _data(shards))
    assert [int(image.count_nonzero()) for image in net.images] == [0] * 5


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_images_have_the_precision_of_the_trainer(shards, tmp_path, precision, dtype):
    net = Net()
    _trainer(tmp_path, max_epochs=1, precision=precision).fit(net, _data(shards))
    assert {image.dtype for image in net.images} == {dtype}


def test_dict_batches_carry_ids(shards, tmp_path):
    class DictNet(Net):
        def training_step(self, batch, batch_idx):
            assert set(batch) == {"image", "target", "index"}
            assert torch.equal(batch["target"], batch["index"] % 5)
            return super().training_step(batch, batch_idx)

    net = DictNet()
    _trainer(tmp_path, max_epochs=1).fit(net, _data(shards, batch_format="dict"))
    assert len(net.seen) == 5


class _Noise(nn.Module):
    def forward(self, image):
        assert image.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return (image + torch.randn_like(image)).clamp(0, 1)


def _interrupted_and_whole(path, shards, steps, *, trainer=None, **settings):
    settings = {"val": shards, "batch_transform": _Noise(), "eval_batch_size": 20} | settings
    keep = {"enable_checkpointing": True, **(trainer or {})}
    whole = Net()
    _trainer(path, **(trainer or {})).fit(whole, _data(shards, **settings))

    def saver():
        return ModelCheckpoint(path / "ckpt", filename="{step}", every_n_train_steps=3, save_top_k=-1)

    first = Net(stop_at=steps)
    with pytest.raises(KeyError, match="killed"):
        _trainer(path, callbacks=[saver()], **keep).fit(first, _data(shards, **settings))
    checkpoint = path / "ckpt" / f"step={steps // 3 * 3}.ckpt"
    second = Net()
    torch.rand(7)
    _trainer(path, callbacks=[saver()], **keep).fit(second, _data(shards, **settings), ckpt_path=checkpoint)
    return whole, first, second


_MIX = {"shard-{000000..000001}.tar": 3, "shard-{000002..000005}.tar": 1}


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty.*")
@pytest.mark.parametrize(
    ("steps", "settings"),
    [(4, {}), (8, {"num_workers": 1}), (5, {"num_workers": 2}), (8, {"balance": "class"}), (8, {"mix": _MIX})],
)
def test_a_killed_run_goes_on_at_the_very_sample(shards, tmp_path, steps, settings):
    whole, first, second = _interrupted_and_whole(tmp_path, shards, steps, **settings)
    saved = steps // 3 * 3
    assert second.seen == whole.seen[saved:]
    assert first.seen == whole.seen[:steps]
    for one, other in zip(whole.images[saved:], second.images, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


class ScheduledNet(Net):
    """Asks for the number of steps, which makes Lightning build the loaders before it restores the loops."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
@pytest.mark.parametrize("limit", [5, 3])
@pytest.mark.parametrize("net", [Net, ScheduledNet])
def test_a_run_goes_on_from_every_step_with_a_schedule_that_counts_steps(shards, tmp_path, net, limit):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    settings = {"enable_checkpointing": True, "limit_train_batches": limit, "max_epochs": 2}
    whole = net()
    _trainer(tmp_path, callbacks=[saver], **settings).fit(whole, _data(shards))
    for step in range(1, 2 * limit):
        resumed = net()
        trainer = _trainer(tmp_path, limit_train_batches=limit, max_epochs=2)
        trainer.fit(resumed, _data(shards), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:]
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
def test_a_fit_after_a_resumed_one_starts_anew(shards, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2)
    _trainer(tmp_path, max_epochs=1, enable_checkpointing=True, callbacks=[saver]).fit(Net(), _data(shards))
    data = _data(shards)
    _trainer(tmp_path, max_epochs=1).fit(ScheduledNet(), data, ckpt_path=tmp_path / "step=4.ckpt")
    again, fresh = Net(), Net()
    _trainer(tmp_path, max_epochs=1).fit(again, data)
    _trainer(tmp_path, max_epochs=1).fit(fresh, _data(shards))
    assert again.seen == fresh.seen


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty.*")
@pytest.mark.parametrize("every", [5, 3])
def test_resuming_on_other_data_or_in_another_order_is_refused(shards, tmp_path, every):
    def trainer(**settings):
        saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=every)
        return _trainer(tmp_path, enable_checkpointing=True, callbacks=[saver], **settings)

    trainer(max_steps=every).fit(Net(), _data(shards))
    other = tmp_path / "other"
    pack([Sample(str(i), np.zeros((8, 8, 3), np.uint8), 0) for i in range(40)], other)
    for data, message in ((_data(str(other)), "made on 70 samples"), (_data(shards, seed=6), "another order")):
        with pytest.raises(InputError, match=message):
            trainer(max_epochs=3).fit(Net(), data, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("drawn", [{}, {"balance": "class"}, {"mix": _MIX}])
def test_overfit_batches_repeats_the_first_batches(shards, tmp_path, drawn):
    net = Net()
    _trainer(tmp_path, overfit_batches=2, max_epochs=3).fit(net, _data(shards, **drawn, val=shards))
    assert [ids for _, _, ids in net.seen] == [list(range(12)), list(range(12, 24))] * 3


def test_limits_reloading_and_fast_dev_run(shards, tmp_path):
    net = Net()
    settings = {"max_epochs": 3, "limit_train_batches": 2, "reload_dataloaders_every_n_epochs": 1}
    _trainer(tmp_path, **settings).fit(net, _data(shards, val=shards))
    assert [(e, b) for e, b, _ in net.seen] == [(e, b) for e in range(3) for b in range(2)]
    assert len({str(ids) for _, _, ids in net.seen}) == 6
    net = Net()
    _trainer(tmp_path, fast_dev_run=True).fit(net, _data(shards, val=shards))
    assert len(net.seen) == 1


def test_a_second_fit_goes_on_counting_epochs(shards, tmp_path):
    net, data, trainer = Net(), _data(shards), _trainer(tmp_path, max_epochs=1)
    trainer.fit(net, data)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(net, data)
    assert [epoch for epoch, _, _ in net.seen] == [0] * 5 + [1] * 5
    assert net.seen[0][2] != net.seen[5][2]


def test_batch_transform_acts_in_training_only_and_leaves_the_global_generator_alone(shards, images, tmp_path):
    class Check(Net):
        def validation_step(self, batch, batch_idx):
            ids = self.trainer.datamodule.batch_ids
            expected = torch.from_numpy(images[ids]).permute(0, 3, 1, 2) / 255
            assert torch.equal(batch[0], expected)
            super().validation_step(batch, batch_idx)

    def run(seed):
        net = Check()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        data = _data(shards, val=shards, batch_transform=K.AugmentationSequential(K.RandomHorizontalFlip(p=0.5)))
        _trainer(tmp_path, precision="bf16-mixed").fit(net, data)
        assert torch.equal(torch.get_rng_state(), before)
        return net

    one, other = run(1), run(2)
    flipped = 0
    for (_, _, ids), image, again in zip(one.seen, one.images, other.images, strict=True):
        assert torch.equal(image, again)
        plain = torch.from_numpy(images[ids]).permute(0, 3, 1, 2) / 255
        is_flipped = (image == plain.flip(3)).flatten(1).all(1)
        assert torch.all(is_flipped | (image == plain).flatten(1).all(1))
        flipped += int(is_flipped.sum())
    assert 30 < flipped < 90


def test_works_without_a_trainer(shards):
    data = _data(shards, val=shards)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    image, target = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert image.shape == (12, 3, 8, 8)
    assert torch.equal(data.batch_ids % 5, target)
    assert torch.equal(data.transfer_batch_to_device(target, torch.device("cpu"), 0), target)


def test_shards_without_labels_give_bare_images(shards, tmp_path):
    for path in Path(shards).glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = ShardDataModule(predict=str(tmp_path), label_key=None, num_workers=0)
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0).shape == (35, 3, 8, 8)


def test_deepcopy_before_use(shards):
    data = copy.deepcopy(_data(shards, loader=LoaderOptions(prefetch_factor=3)))
    assert data.loader.prefetch_factor == 3


def _copy(shards, folder):
    for path in sorted(Path(shards).glob("*.tar")):
        (folder / path.name).write_bytes(path.read_bytes())
    return sorted(folder.glob("*.tar"))


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "text", "zeros"])
@pytest.mark.parametrize("indexed", [True, False])
def test_damaged_shards_are_named(shards, tmp_path, damage, indexed):
    victim = _copy(shards, tmp_path)[2]
    if indexed:
        open_index(str(tmp_path))
    whole = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    contents = {"cut": whole[: len(whole) // 2 + 100], "empty": b"", "text": b"<html>" * 999, "zeros": bytes(10240)}
    if damage in contents:
        victim.write_bytes(contents[damage])
    shards = str(tmp_path) if indexed else str(tmp_path / "shard-{000000..000005}.tar")
    with pytest.raises(ShardError, match=victim.name):
        _trainer(tmp_path).fit(Net(), _data(shards))


def test_labels_outside_the_classes_are_found_at_setup(shards, tmp_path):
    with pytest.raises(InputError, match=r"Label 3 of sample 3 .* is not one of 3 classes .* 28 of 70"):
        _trainer(tmp_path).fit(Net(), _data(shards, num_classes=3))
    _data(shards, num_classes=5).setup("fit")


def test_more_workers_than_shards_serve_all(shards, tmp_path):
    net = Net()
    one = sorted(Path(shards).glob("*.tar"))[-1]
    _trainer(tmp_path, max_epochs=1).fit(net, _data(str(one), batch_size=2, num_workers=2))
    assert len(set(_flat(ids for _, _, ids in net.seen))) == 4


def test_missing_arguments_are_named(shards, tmp_path):
    with pytest.raises(InputError, match="No train shards"):
        _trainer(tmp_path).fit(Net(), _data(None))
    with pytest.raises(InputError, match="No test shards"):
        _trainer(tmp_path).test(Net(), _data(shards))
    with pytest.raises(InputError, match="batch_format"):
        _data(shards, batch_format="list")
    with pytest.raises(InputError, match="_Pair returned tuple"):
        _trainer(tmp_path).fit(Net(), _data(shards, batch_transform=_Pair()))


class _Pair(nn.Module):
    def forward(self, image):
        return image, image


@pytest.mark.parametrize("handed", ["by name", "by place"])
def test_the_trainer_of_the_other_package_is_refused_in_a_sentence(shards, tmp_path, handed):
    import lightning

    class Other(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            raise AssertionError("must not be reached")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(default_root_dir=tmp_path, max_epochs=1, **settings)
    arguments = {"datamodule" if handed == "by name" else "train_dataloaders": _data(shards)}
    with pytest.raises(UnsupportedError, match=r"ShardDataModule belongs to pytorch_lightning, as does the command"):
        trainer.fit(Other(), **arguments)


def test_a_run_ends_when_its_time_is_up(shards, tmp_path, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(timer, "time", clock)

    class Slow(Net):
        def on_train_batch_start(self, batch, batch_idx):
            clock.now += 1.0

    data = _data(shards, num_workers=1)
    net = Slow()
    _trainer(tmp_path, max_epochs=-1, max_time={"seconds": 7}).fit(net, data)
    assert [(epoch, number) for epoch, number, _ in net.seen] == [(0, b) for b in range(5)] + [(1, 0), (1, 1)]
    assert data._loaders["train"]._pool._workers is None


class _RankNet(Net):
    def on_validation_epoch_end(self):
        self._write(self.evaluated)

    def on_train_end(self):
        self._write([ids for _, _, ids in self.seen])

    def _write(self, batches):
        Path(self.trainer.default_root_dir, f"rank-{self.global_rank}.txt").write_text(repr(batches))


@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:.*sync_dist.*")
@pytest.mark.filterwarnings("ignore:.*use_distributed_sampler.*")
def test_two_processes_evaluate_every_sample_once(shards, tmp_path):
    trainer = _trainer(tmp_path, strategy="ddp_fork", devices=2)
    trainer.validate(_RankNet(), _data(None, val=shards, batch_size=8, num_workers=1))
    batches = [eval((tmp_path / f"rank-{rank}.txt").read_text()) for rank in range(2)]
    assert len(batches[0]) == len(batches[1])
    assert _flat(batches[0] + batches[1]) == list(range(70))


@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:.*use_distributed_sampler.*")
@pytest.mark.parametrize("drawn", [{}, {"balance": "class"}, {"mix": _MIX}])
def test_two_processes_train_on_the_batches_of_one(shards, tmp_path, drawn):
    whole = Net()
    _trainer(tmp_path).fit(whole, _data(shards, **drawn))
    trainer = _trainer(tmp_path, strategy="ddp_fork", devices=2)
    trainer.fit(_RankNet(), _data(shards, batch_size=6, num_workers=1, **drawn))
    first, second = (eval((tmp_path / f"rank-{rank}.txt").read_text()) for rank in range(2))
    assert [one + other for one, other in zip(first, second, strict=True)] == [ids for _, _, ids in whole.seen]


def test_every_argument_can_be_given_on_a_command_line():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardDataModule, "data")
    words = ["--data.train", "s-{000..003}.tar", "--data.val", '["a.tar", "b.tar"]', "--data.image_size", "[32, 24]"]
    words += ["--data.loader.prefetch_factor", "4", "--data.on_error", "skip", "--data.num_classes", "10"]
    words += ["--data.unindexed", "[train]", "--data.epoch_batches", "7"]
    words += ["--data.batch_transform", "torch.nn.Hardtanh", "--data.batch_transform.min_val", "0.5"]
    words += ["--data.sample_transform", "albumentations.HorizontalFlip", "--data.sample_transform.p", "1.0"]
    data = parser.instantiate_classes(parser.parse_args(words)).data
    assert data.shards["train"] == "s-{000..003}.tar"
    assert data.shards["val"] == ["a.tar", "b.tar"]
    assert data.image_size == (32, 24)
    assert (data.unindexed, data.epoch_batches) == (("train",), 7)
    assert data.loader == LoaderOptions(prefetch_factor=4)
    assert isinstance(data.batch_transform, nn.Hardtanh)
    assert data.sample_transform.p == 1.0
    assert parser.instantiate_classes(parser.parse_args(["--data.image_size", "32"])).data.image_size == (32, 32)
