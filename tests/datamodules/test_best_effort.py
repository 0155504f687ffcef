"""Shards without an index: what the loader keeps to, what it refuses, and what it says it cannot promise."""

from __future__ import annotations

import gc
import io
import os
import tarfile
import threading
import warnings
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from lightning_robust.datamodules import BestEffortLoader, LoaderOptions, ShardDataModule, ShardLoader
from lightning_robust.errors import InputError, RobustWarning, ShardError, UnsupportedError
from lightning_robust.shards import FetchError, RemoteOptions, Sample, open_index, pack
from lightning_robust.shards.writing import _to_png

quiet = pytest.mark.filterwarnings("ignore:Shards are read without an index")
pytestmark = [quiet, pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")]


def _loader(shards, **settings):
    return BestEffortLoader(shards, **({"batch_size": 4, "epoch_batches": 5} | settings))


def _image(number):
    """An image that tells its number."""
    return np.full((8, 8, 3), number, dtype=np.uint8)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """70 images in 7 shards without an index; the pixels are the number, the label is the number modulo 5."""
    folder = tmp_path_factory.mktemp("numbered")
    pack([Sample(f"{i:03d}", _image(i), i % 5) for i in range(70)], folder, samples_per_shard=10)
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    return str(folder)


def _numbers(batches):
    found = []
    for batch in batches:
        assert batch.image.dtype == torch.uint8
        assert batch.image.shape[1:] == (3, 8, 8)
        assert batch.ids is None
        numbers = batch.image[:, 0, 0, 0].long()
        assert torch.equal(batch.image, numbers[:, None, None, None].expand_as(batch.image).to(torch.uint8))
        assert torch.equal(batch.target, numbers % 5)
        found.append(numbers.tolist())
    return found


def _flat(batches):
    return [number for batch in batches for number in batch]


def _close(*loaders):
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_has_its_batches_and_an_order_of_its_own(numbered, num_workers):
    loader, again = (_loader(numbered, epoch_batches=9, num_workers=num_workers, seed=3) for _ in range(2))
    first, second = _numbers(loader), _numbers(loader)
    assert [len(batch) for batch in first + second] == [4] * 18
    assert first != second
    assert sorted(_flat(first)) != sorted(_flat(second))
    again.sampler.set_epoch(1)
    assert _numbers(again) == second
    assert _numbers(_loader(numbered, epoch_batches=9, seed=4)) != _numbers(_loader(numbered, epoch_batches=9, seed=3))
    _close(loader, again)


def test_samples_are_mixed_across_shards(numbered):
    batches = _numbers(_loader(numbered, epoch_batches=5, batch_size=10))
    assert all(len({number // 10 for number in batch}) > 2 for batch in batches)
    plain = _numbers(_loader(numbered, epoch_batches=7, batch_size=10, shuffle=False))
    assert plain == [list(range(start, start + 10)) for start in range(0, 70, 10)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_read_other_samples_and_the_same_number_of_batches(numbered, world, num_workers):
    loaders = [
        _loader(numbered, batch_size=5, epoch_batches=3, rank=rank, world=world, num_workers=num_workers)
        for rank in range(world)
    ]
    for _ in range(2):
        parts = [_numbers(loader) for loader in loaders]
        assert [len(part) for part in parts] == [3] * world
        seen = [_flat(part) for part in parts]
        shards = [{number // 10 for number in part} for part in seen]
        assert sum(map(len, shards)) == len(set.union(*shards))
        assert len(set.union(*map(set, seen))) == sum(map(len, seen)) == 15 * world
    _close(*loaders)


def test_shares_change_from_epoch_to_epoch_until_all_was_seen_by_every_rank(numbered):
    loader = _loader(numbered, batch_size=10, epoch_batches=3, rank=1, world=2)
    assert len({number for _ in range(12) for number in _flat(_numbers(loader))}) == 70


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_long_epoch_goes_through_the_shards_again(numbered, num_workers):
    loader = _loader(numbered, batch_size=7, epoch_batches=20, num_workers=num_workers)
    found = _flat(_numbers(loader))
    assert len(found) == 140
    if num_workers < 2:
        assert sorted(found[:70]) == sorted(found[70:]) == list(range(70))
        assert found[:70] != found[70:]
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_evaluation_reads_every_sample_once(numbered, num_workers):
    loader = BestEffortLoader(numbered, batch_size=16, purpose="evaluate", num_workers=num_workers)
    for _ in range(2):
        assert [len(batch) for batch in _numbers(loader)] == [16, 16, 16, 16, 6]
    assert _flat(_numbers(loader)) == list(range(70))
    with pytest.raises(TypeError, match="no known length"):
        len(loader)
    loader.close()


@pytest.mark.parametrize(("start_method", "persistent"), [("fork", False), ("spawn", True)])
def test_the_start_of_workers_changes_nothing(numbered, start_method, persistent):
    options = LoaderOptions(start_method=start_method, persistent_workers=persistent)
    loader = _loader(numbered, num_workers=1, options=options)
    plain = _loader(numbered, num_workers=0)
    for _ in range(2):
        assert _numbers(loader) == _numbers(plain)
    assert (loader._workers is not None) == persistent
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_that_was_left_does_not_leak_into_the_next(numbered, num_workers):
    loader, plain = _loader(numbered, num_workers=num_workers), _loader(numbered, num_workers=num_workers)
    batches = iter(loader)
    next(batches)
    second = _numbers(loader)
    list(plain)
    assert second == _numbers(plain)
    with pytest.raises(UnsupportedError, match="one at a time"):
        next(batches)
    _close(loader, plain)


def test_fewer_shards_than_readers_are_refused(numbered):
    with pytest.raises(InputError, match=r"7 shards cannot be shared by 8 readers \(ranks: 4, workers on each: 2\)"):
        _loader(numbered, world=4, num_workers=2)
    _loader(numbered, world=7)
    with pytest.raises(InputError, match="by 8 readers"):
        _loader(numbered, world=8)


def test_senseless_arguments_are_refused(numbered):
    for wrong in (None, 0):
        with pytest.raises(InputError, match=f"epoch_batches={wrong}: give the number of batches"):
            _loader(numbered, epoch_batches=wrong)
    with pytest.raises(InputError, match="shuffle_buffer=0"):
        _loader(numbered, shuffle_buffer=0)
    with pytest.raises(InputError, match="epoch_batches=5 is of training"):
        _loader(numbered, purpose="evaluate")
    for settings in ({"world": 2}, {"num_workers": 2}):
        with pytest.raises(UnsupportedError, match="cannot be exact"):
            BestEffortLoader(numbered, batch_size=4, purpose="evaluate", **settings)
    with pytest.raises(ShardError, match="missing"):
        _loader(f"{numbered}/none.tar")


@pytest.mark.parametrize("command", ["pipe:cat {}", "file://{}", "pipe:cat {}::x"])
def test_a_list_of_shards_runs_no_program(numbered, command):
    with pytest.raises(UnsupportedError, match="are not read"):
        _loader([command.format(sorted(Path(numbered).glob("*.tar"))[0])])


def test_stale_variables_of_the_environment_split_nothing(numbered, monkeypatch):
    expected = _numbers(_loader(numbered))
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "WORKER": "1", "NUM_WORKERS": "3", "WDS_CACHE": "/no"}.items():
        monkeypatch.setenv(name, value)
    assert _numbers(_loader(numbered)) == expected


@pytest.mark.filterwarnings("default:Shards are read without an index")
def test_it_says_once_what_it_cannot_promise(numbered):
    loader = _loader(numbered)
    with pytest.warns(RobustWarning, match=r"every sample once .*5 batches .*ranks or workers.* after a resume"):
        list(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)
        list(_loader(numbered, rank=1, world=2))
        list(BestEffortLoader(numbered, batch_size=16, purpose="evaluate"))


class _NoiseBelow(A.ImageOnlyTransform):
    """Noise everywhere but in the first row, which tells the number."""

    def apply(self, img, **params):
        img = img.copy()
        img[1:] = self.random_generator.integers(0, 256, img[1:].shape)
        return img


def test_the_sample_transform_is_seeded_by_epoch_and_key(numbered):
    def run(**settings):
        transform = _NoiseBelow(p=1.0)
        loader = _loader(numbered, epoch_batches=7, batch_size=10, sample_transform=transform, **settings)
        epochs = [{int(image[0, 0, 0]): image for batch in loader for image in batch.image} for _ in range(2)]
        loader.close()
        return epochs

    one, other = run(), run(shuffle_buffer=3)
    for epoch in range(2):
        assert len(one[epoch]) == 70
        assert all(torch.equal(image, other[epoch][number]) for number, image in one[epoch].items())
    assert not any(torch.equal(image, one[1][number]) for number, image in one[0].items())


def test_images_are_brought_to_one_size_or_refused(tmp_path):
    images = [np.full((8 + i, 9, 3), i, dtype=np.uint8) for i in range(6)]
    pack([Sample(f"{i}", image, i) for i, image in enumerate(images)], tmp_path)
    (batch,) = _loader(str(tmp_path), batch_size=6, epoch_batches=1, image_size=(5, 4))
    assert batch.image.shape == (6, 3, 5, 4)
    with pytest.raises(InputError, match=r"sample '1' of .* shape \(H, W, C\) = \(9, 9, 3\) .* image_size=\(8, 9"):
        list(_loader(str(tmp_path), shuffle=False))


def _write(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def _set_with_a_bad_image(path, bad=b"\xff\xd8 no image"):
    png = [_to_png(_image(i), "") for i in range(6)]
    png[3] = bad
    return _write(path / "a.tar", [(f"k{i}.{kind}", data) for i in range(6) for kind, data in
                                   (("png", png[i]), ("cls", str(i % 5).encode()))])  # fmt: skip


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_named(tmp_path, num_workers):
    path = _set_with_a_bad_image(tmp_path)
    loader = _loader(path, shuffle=False, num_workers=num_workers)
    with pytest.raises(ShardError, match=r"image of sample 'k3' of shard '.*a\.tar' .* cannot be decoded"):
        list(loader)
    assert loader._workers is None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_skipped_counted_and_told_of(tmp_path, caplog, num_workers):
    path = _set_with_a_bad_image(tmp_path)
    loader = _loader(path, shuffle=False, batch_size=5, epoch_batches=2, on_error="skip", num_workers=num_workers)
    with pytest.warns(RobustWarning, match="A sample was skipped: The image of sample 'k3'"):
        assert _numbers(loader) == [[0, 1, 2, 4, 5]] * 2
    assert list(loader.skipped) == [f"sample 'k3' of shard {path!r}"]
    assert caplog.text.count("Skipped, as on_error='skip' asks") == 1
    loader.close()


def test_hopeless_shards_end_even_where_skipping_is_asked(tmp_path):
    path = _write(tmp_path / "a.tar", [("k.png", b"no image"), ("k.cls", b"1")])
    with pytest.raises(ShardError, match="cannot be decoded"):
        list(_loader(path, on_error="skip"))


GOOD = _to_png(_image(1), "")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", GOOD)], r"sample 'a' of shard .* lacks a label \(\.cls\)"),
        ([("a.cls", b"1")], r"sample 'a' .* lacks an image"),
        ([("a.png", GOOD), ("a.cls", b"cat")], r"label of sample 'a' .* is b'cat'"),
        ([("a.png", GOOD), ("a.cls", b"-1")], "not a class number"),
        ([("a.png", GOOD), ("a.png", GOOD)], "duplicate file name"),
        ([("a.txt", b"x")], "holds no samples"),
        ([], "holds no samples"),
    ],
)
def test_samples_that_are_none_are_named(tmp_path, members, message):
    with pytest.raises(ShardError, match=message):
        list(_loader(_write(tmp_path / "a.tar", members), on_error="skip"))


def test_a_pickle_in_a_shard_is_not_loaded(tmp_path):
    payload = b"cos\nmkdir\n(V" + str(tmp_path / "pwned").encode() + b"\ntR."
    members = [("a.png", GOOD), ("a.cls", b"1"), *((f"a.{kind}", payload) for kind in ("pyd", "pkl", "pth", "npy"))]
    list(_loader(_write(tmp_path / "a.tar", members)))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("cut", ["member", "boundary", "header", "bits"])
def test_a_shard_that_webdataset_would_read_as_a_shorter_one_is_an_error(numbered, tmp_path, cut):
    whole = sorted(Path(numbered).glob("*.tar"))[0].read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        middle = archive.getmembers()[10]
    ends = {"member": middle.offset_data + 1, "boundary": middle.offset, "header": middle.offset + 100}
    damaged = bytearray(whole[: ends.get(cut, len(whole))])
    if cut == "bits":
        damaged[middle.offset + 5] ^= 1
    (tmp_path / "a.tar").write_bytes(damaged)
    with pytest.raises(ShardError, match=r"a\.tar"):
        list(_loader(str(tmp_path), on_error="skip"))


def test_labels_are_held_to_the_classes_and_may_be_absent(numbered):
    with pytest.raises(InputError, match="is not one of 3 classes"):
        list(_loader(numbered, num_classes=3))
    assert len(list(_loader(numbered, num_classes=5))) == 5
    assert next(iter(_loader(numbered, label_key=None))).target is None


def _remote(**settings):
    return RemoteOptions(**({"backoff": 0, "attempts": 3, "timeout": 5, "cache_dir": "/no/cache"} | settings))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("ranges", [True, False])
def test_shards_at_urls_are_read_without_a_copy(numbered, web, num_workers, ranges):
    web.ranges = ranges
    far = web.add_folder(Path(numbered), "set") + "shard-{000000..000006}.tar"
    web.faults = {f"/set/shard-{number:06d}.tar": [503, ("cut", 5_000), ("cut", 9_000)] for number in range(7)}
    settings = {"epoch_batches": 9, "num_workers": num_workers, "seed": 5}
    loader, local = _loader(far, remote=_remote(), **settings), _loader(numbered, **settings)
    assert _numbers(loader) == _numbers(local)
    assert not any("index" in path for path in web.gets)
    _close(loader, local)


def test_a_store_that_cannot_be_reached_is_no_skipped_sample(numbered, web):
    far = web.add_folder(Path(numbered), "set") + "shard-000003.tar"
    web.faults["/set/shard-000003.tar"] = [503] * 9
    with pytest.raises(FetchError, match=r"shard-000003\.tar' cannot be fetched: .*503"):
        list(_loader(far + "?key=secret", remote=_remote(), on_error="skip"))
    web.files.clear()
    with pytest.raises(FetchError, match="404") as found:
        list(_loader(far + "?key=secret", remote=_remote()))
    assert "secret" not in str(found.value)


def test_a_named_pipe_is_a_shard(numbered, tmp_path):
    pipe = tmp_path / "stream"
    os.mkfifo(pipe)
    shard = sorted(Path(numbered).glob("*.tar"))[2].read_bytes()

    def write():
        with pipe.open("wb") as file:
            file.write(shard)

    writer = threading.Thread(target=write)
    writer.start()
    loader = BestEffortLoader(pipe, batch_size=4, purpose="evaluate")
    assert _numbers(loader) == [[20, 21, 22, 23], [24, 25, 26, 27], [28, 29]]
    writer.join()


def _open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts in /proc")
def test_a_pass_leaves_no_file_open(numbered):
    loader = _loader(numbered, shuffle_buffer=1)
    before = _open_files()
    next(iter(loader))
    loader.close()
    del loader
    gc.collect()
    after = _open_files()
    assert after <= before


# in a Trainer


class Net(pl.LightningModule):
    """Records what it is given."""

    def __init__(self, stop_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        self.stop_at, self.seen, self.evaluated = stop_at, [], []

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.stop_at:
            raise KeyError("killed")
        image, target = (batch["image"], batch["target"]) if isinstance(batch, dict) else batch
        assert self.trainer.datamodule.batch_ids is None
        numbers = (image[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(numbers % 5, target)
        self.seen.append((self.current_epoch, batch_idx, numbers.tolist()))
        return nn.functional.cross_entropy(self.net(image), target)

    def validation_step(self, batch, batch_idx):
        self.evaluated.append((batch[0][:, 0, 0, 0] * 255).round().long().tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(path, **settings):
    defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=path, **(defaults | settings))


def _data(shards, **settings):
    defaults = {"train": shards, "batch_size": 4, "num_workers": 0, "unindexed": ("train", "val"), "epoch_batches": 5}
    return ShardDataModule(**(defaults | settings))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_fit_trains_and_validates(numbered, tmp_path, num_workers):
    data = _data(numbered, val=numbered, eval_batch_size=16, num_workers=num_workers)
    net = Net()
    _trainer(tmp_path).fit(net, data)
    assert [(epoch, number) for epoch, number, _ in net.seen] == [(e, b) for e in range(2) for b in range(5)]
    expected = _loader(numbered, num_workers=num_workers)
    for epoch in range(2):
        assert [numbers for e, _, numbers in net.seen if e == epoch] == _numbers(expected)
    assert len(net.evaluated) == 10
    assert _flat(net.evaluated) == [*range(70), *range(70)]
    assert not any(loader._workers for loader in data._loaders.values())
    assert not list(Path(numbered).glob("*.json"))
    expected.close()


def test_a_set_may_be_indexed_beside_one_that_is_not(numbered, shards, tmp_path):
    data = _data(numbered, val=shards, unindexed=("train",), batch_format="dict", eval_batch_size=35)

    class Both(Net):
        def validation_step(self, batch, batch_idx):
            self.evaluated.append(batch["index"].tolist())

        def training_step(self, batch, batch_idx):
            assert set(batch) == {"image", "target"}
            return super().training_step(batch, batch_idx)

    net = Both()
    _trainer(tmp_path, max_epochs=1).fit(net, data)
    assert sorted(_flat(net.evaluated)) == list(range(70))
    with pytest.raises(InputError, match="train shards have no index"):
        data.index("train")


def test_the_batch_transform_and_limits_work(numbered, tmp_path):
    class Same(nn.Module):
        calls = 0

        def forward(self, image):
            self.calls += 1
            assert image.dtype == torch.float32
            return image

    transform = Same()
    net = Net()
    trainer = _trainer(tmp_path, limit_train_batches=3, val_check_interval=1, limit_val_batches=2)
    trainer.fit(net, _data(numbered, val=numbered, batch_transform=transform))
    assert len(net.seen) == transform.calls == 6
    assert len(net.evaluated) == 12


def test_overfit_batches_take_the_first_ones_in_every_epoch(numbered, tmp_path):
    net = Net()
    _trainer(tmp_path, overfit_batches=2).fit(net, _data(numbered))
    assert [numbers for _, _, numbers in net.seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
def test_a_killed_run_ends_the_epoch_with_samples_drawn_anew_and_says_so(numbered, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    killed = Net(stop_at=7)
    with pytest.raises(KeyError, match="killed"):
        _trainer(tmp_path, callbacks=[saver], enable_checkpointing=True).fit(killed, _data(numbered))
    resumed = Net()
    with pytest.warns(RobustWarning, match="goes on in epoch 1 after 2 of 5 batches.* drawn anew"):
        _trainer(tmp_path, max_epochs=3).fit(resumed, _data(numbered), ckpt_path=tmp_path / "step=7.ckpt")
    assert [(epoch, number) for epoch, number, _ in resumed.seen] == [(1, b) for b in (2, 3, 4)] + [
        (2, b) for b in range(5)
    ]
    whole = Net()
    _trainer(tmp_path, max_epochs=3).fit(whole, _data(numbered))
    assert resumed.seen[3:] == whole.seen[10:]
    assert resumed.seen[:3] != whole.seen[7:10]

    at_the_end = Net()
    _trainer(tmp_path).fit(at_the_end, _data(numbered), ckpt_path=tmp_path / "step=5.ckpt")
    assert at_the_end.seen == whole.seen[5:10]


def test_states_are_plain_and_of_one_kind(numbered, shards):
    loader = _loader(f"{numbered}/*.tar")
    next(iter(loader))
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (0, 1)
    assert all(isinstance(value, int | str | None) for value in state.values())
    with pytest.raises(InputError, match=r"epoch_batches=5 .* and the run epoch_batches=6"):
        _loader(numbered, epoch_batches=6).load_state_dict(state)
    exact = ShardLoader(open_index(shards), batch_size=4)
    with pytest.raises(InputError, match=r"7 shards .* read without an index, and the run reads 70 samples"):
        exact.load_state_dict(state)
    with pytest.raises(InputError, match=r"70 samples .* counts samples, and the run reads shards without an index"):
        loader.load_state_dict(exact.state_dict())


def test_skipped_samples_are_counted_by_the_data_module(tmp_path):
    data = _data(_set_with_a_bad_image(tmp_path), on_error="skip", batch_size=5)
    csv = CSVLogger(tmp_path / "log", name="", version="")
    with pytest.warns(RobustWarning, match="A sample was skipped"):
        _trainer(tmp_path, logger=csv).fit(Net(), data)
    assert len(data.skipped) == 1
    logged = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    column = logged[0].split(",").index("data/skipped")
    assert [row.split(",")[column] for row in logged[1:] if row.split(",")[column]] == ["1.0"]


def test_the_data_module_refuses_what_means_nothing(numbered, tmp_path):
    with pytest.raises(InputError, match=r"unindexed=.*'valid'"):
        _data(numbered, unindexed=("train", "valid"))
    with pytest.raises(InputError, match="needs epoch_batches"):
        _data(numbered, epoch_batches=None)
    with pytest.raises(InputError, match="one with an index has its own length"):
        _data(numbered, unindexed=())


@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:.*use_distributed_sampler.*")
def test_two_processes_share_the_shards_and_do_not_evaluate(numbered, tmp_path):
    class RankNet(Net):
        def on_fit_end(self):
            Path(self.trainer.default_root_dir, f"rank-{self.global_rank}.txt").write_text(repr(self.seen))

    trainer = _trainer(tmp_path, max_epochs=1, strategy="ddp_fork", devices=2)
    trainer.fit(RankNet(), _data(numbered, num_workers=1))
    ranks = [eval((tmp_path / f"rank-{rank}.txt").read_text()) for rank in range(2)]
    assert [len(seen) for seen in ranks] == [5, 5]
    numbers = [{number // 10 for _, _, batch in seen for number in batch} for seen in ranks]
    assert not numbers[0] & numbers[1]

    data = _data(numbered, val=numbered)
    data.share = lambda: (0, 2)
    with pytest.raises(UnsupportedError, match="cannot be exact on 2 ranks"):
        data.val_dataloader()
