from __future__ import annotations

import pickle
import subprocess
import sys
from itertools import chain
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from lightning_robust.datamodules import LoaderOptions, ShardLoader
from lightning_robust.datamodules import ring as ring_module
from lightning_robust.errors import InputError, RobustWarning, ShardError, UnsupportedError
from lightning_robust.shards import Sample, open_index, pack


@pytest.fixture(scope="module")
def index(shards):
    return open_index(shards)


def _ids(loader):
    return [batch.ids.tolist() for batch in loader]


def _global_batches(index, batch_size, world, **settings):
    ranks = [_ids(ShardLoader(index, batch_size=batch_size, rank=r, world=world, **settings)) for r in range(world)]
    return [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_evaluation_sees_every_sample_once_with_its_own_pixels(index, images, num_workers):
    for world in (1, 2, 3):
        seen, lengths = [], set()
        for rank in range(world):
            loader = ShardLoader(
                index, batch_size=8, purpose="evaluate", rank=rank, world=world, num_workers=num_workers
            )
            batches = list(loader)
            assert len(batches) == len(loader)
            lengths.add(len(loader))
            for batch in batches:
                assert batch.image.dtype == torch.uint8
                np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1).numpy(), images[batch.ids])
                assert torch.equal(batch.target, batch.ids % 5)
                seen += batch.ids.tolist()
        assert sorted(seen) == list(range(70))
        assert len(lengths) == 1


def test_global_batches_do_not_depend_on_ranks_or_workers(index):
    reference = _global_batches(index, 12, 1)
    assert [len(batch) for batch in reference] == [12] * 5
    assert len(set(chain.from_iterable(reference))) == 60
    for batch_size, world in ((12, 1), (6, 2), (3, 4)):
        for num_workers in (0, 2) if world < 4 else (0,):
            assert _global_batches(index, batch_size, world, num_workers=num_workers) == reference


def test_epochs_differ_and_come_again(index):
    loader = ShardLoader(index, batch_size=7, seed=3)
    first, second = _ids(loader), _ids(loader)
    assert first != second
    loader.sampler.set_epoch(0)
    assert _ids(loader) == first
    assert _ids(ShardLoader(index, batch_size=7, seed=4)) != first
    # a pass that is left early is an epoch too
    next(iter(loader))
    assert _ids(loader) not in (first, second)


def test_start_method_changes_nothing(index):
    options = LoaderOptions(start_method="spawn", persistent_workers=False)
    transform = A.Compose([A.RandomBrightnessContrast(p=1)])
    settings = {"batch_size": 16, "sample_transform": transform}
    expected = list(ShardLoader(index, **settings))
    found = list(ShardLoader(index, num_workers=1, options=options, **settings))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.image, other.image)


def test_workers_start_after_opencv_has_used_its_threads(index):
    # the imports give OpenCV's threads time to fall asleep, which is when a forked process would wait for them
    job = f"""
import cv2, numpy as np
for _ in range(3):
    cv2.filter2D(np.random.rand(4000, 4000).astype(np.float32), -1, np.ones((3, 3), np.float32))
from lightning_robust.datamodules import LoaderOptions, ShardLoader
from lightning_robust.shards import open_index
options = LoaderOptions(start_method="fork")
loader = ShardLoader(open_index({index.paths[0]!r}), batch_size=4, num_workers=1, options=options)
print(sum(len(batch.ids) for batch in loader))
"""
    done = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, timeout=90, check=True)
    assert int(done.stdout) > 0


def test_sample_augmentation_depends_on_sample_and_epoch_alone(index):
    transform = A.Compose([A.RandomBrightnessContrast(p=1), A.HorizontalFlip(p=0.5)])

    def augmented(epoch, **settings):
        loader = ShardLoader(index, seed=1, sample_transform=transform, **settings)
        loader.sampler.set_epoch(epoch)
        return {int(i): image for batch in loader for i, image in zip(batch.ids, batch.image, strict=True)}

    whole = augmented(2, batch_size=12)
    halves = augmented(2, batch_size=6, world=2, num_workers=2) | augmented(2, batch_size=6, world=2, rank=1)
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[i], halves[i]) for i in whole)
    other = augmented(3, batch_size=12)
    assert sum(torch.equal(whole[i], other[i]) for i in whole.keys() & other.keys()) < 5


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 4, 5])
def test_a_state_goes_on_at_the_next_sample(index, taken, num_workers):
    settings = {"batch_size": 6, "world": 2, "num_workers": num_workers}
    reference = ShardLoader(index, **settings)
    reference.sampler.set_epoch(4)
    expected = _ids(reference)
    following = _ids(reference)

    loader = ShardLoader(index, **settings)
    loader.sampler.set_epoch(4)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    resumed = ShardLoader(index, **(settings | {"num_workers": 0}), rank=1)
    resumed.load_state_dict(state)
    assert len(resumed) == 5
    other_rank = ShardLoader(index, **(settings | {"num_workers": 0}), rank=1)
    other_rank.sampler.set_epoch(4)
    assert _ids(resumed) == _ids(other_rank)[taken:]
    again = ShardLoader(index, **settings)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert _ids(again) == expected[taken:]
    assert _ids(again) == following


def test_another_epoch_than_the_saved_one_starts_at_its_beginning(index):
    loader = ShardLoader(index, batch_size=12)
    next(iter(loader))
    state = loader.state_dict()
    resumed = ShardLoader(index, batch_size=12)
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(1)
    assert _ids(resumed) == _ids(loader)


def test_state_of_other_shards_or_another_order_is_refused(index, tmp_path):
    state = ShardLoader(index, batch_size=12).state_dict()
    for settings in ({"batch_size": 6}, {"batch_size": 12, "seed": 1}, {"batch_size": 12, "shuffle_window": 1}):
        with pytest.raises(InputError, match="another order of batches"):
            ShardLoader(index, **settings).load_state_dict(state)
    other = pack([Sample(str(i), np.zeros((8, 8, 3), np.uint8), 0) for i in range(20)], tmp_path)
    with pytest.raises(InputError, match=r"made on 70 samples in 6 shards .* reads 20 samples in 1 shards") as error:
        ShardLoader(other, batch_size=12).load_state_dict(state)
    assert str(tmp_path) in str(error.value)


def test_buffers_are_filled_again_only_when_nobody_looks(index, images):
    loader = ShardLoader(index, batch_size=5, num_workers=1, shuffle=False)
    kept = [batch.image for _ in range(3) for batch in loader]  # far more than there are buffers
    for number, image in enumerate(kept):
        start = number % 14 * 5
        np.testing.assert_array_equal(image.permute(0, 2, 3, 1).numpy(), images[start : start + 5])
    addresses = set()
    view = None
    for batch in loader:
        view = batch.image[:, :1, :2] if view is None else view
        addresses.add(batch.image.data_ptr())
    assert len(addresses) <= 2 + 2 + 1
    np.testing.assert_array_equal(view.numpy(), images[:5, :2, :, :1].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("persistent", [True, False])
def test_a_pass_that_is_left_early_spoils_nothing(index, images, persistent):
    options = LoaderOptions(persistent_workers=persistent)
    loader = ShardLoader(index, batch_size=5, num_workers=2, options=options)
    for _ in range(4):
        old = iter(loader)
        next(old)
    for batch in loader:
        np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1).numpy(), images[batch.ids])
    with pytest.raises(UnsupportedError, match="one at a time"):
        next(old)


def test_closed_and_forgotten_loaders_leave_no_worker(index):
    loader = ShardLoader(index, batch_size=5, num_workers=1)
    next(iter(loader))
    workers = list(loader._pool._workers._iterator._workers)
    assert workers[0].is_alive()
    del loader
    workers[0].join(10)
    assert not workers[0].is_alive()


def test_too_little_shared_memory_is_said_at_once(index, monkeypatch):
    monkeypatch.setattr(ring_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UnsupportedError, match="shm-size"):
        next(iter(ShardLoader(index, batch_size=12, num_workers=1)))
    assert len(_ids(ShardLoader(index, batch_size=12))) == 5


def _mixed_sizes(folder):
    sizes = [(8, 8), (8, 8), (8, 10), (16, 8)]
    return pack([Sample(str(i), np.full((*size, 3), i, np.uint8), 0) for i, size in enumerate(sizes)], folder)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unequal_images_need_a_size(tmp_path, num_workers):
    index = _mixed_sizes(tmp_path)
    with pytest.raises(InputError, match=r"sample 2 .* \(8, 10, 3\) .* give image_size") as error:
        list(ShardLoader(index, batch_size=4, num_workers=num_workers, shuffle=False))
    assert "Traceback" not in str(error.value)
    (batch,) = ShardLoader(index, batch_size=4, num_workers=num_workers, image_size=(6, 4), shuffle=False)
    assert batch.image.shape == (4, 3, 6, 4)
    assert [int(image.unique()) for image in batch.image] == [0, 1, 2, 3]
    (batch,) = ShardLoader(index, batch_size=4, sample_transform=A.Resize(4, 5))
    assert batch.image.shape == (4, 3, 4, 5)


def test_image_size_covers_and_crops_the_center(tmp_path):
    wide = np.repeat(np.arange(12, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    index = pack([Sample("0", wide, 0)], tmp_path)
    (batch,) = ShardLoader(index, batch_size=1, image_size=4)
    assert batch.image[0, 0, 0].tolist() == [4, 5, 6, 7]
    (batch,) = ShardLoader(index, batch_size=1, image_size=2)
    # halved by area: 0.5, 2.5, ... rounds to even; the middle two of six
    np.testing.assert_allclose(batch.image[0, 0, 0].float(), [4.5, 6.5], atol=0.5)


@pytest.fixture
def copied(shards, tmp_path):
    for path in Path(shards).glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return open_index(str(tmp_path))


@pytest.fixture
def damaged(copied):
    """The shards with one image (sample 20) made undecodable, its size unchanged."""
    index = copied
    (shard,), (offset,), (size,) = index.locate([20])
    with Path(index.paths[shard]).open("r+b") as file:
        file.seek(offset)
        file.write(b"x" * size)
    return index


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_raises_and_names_itself(damaged, num_workers):
    with pytest.raises(ShardError, match=r"sample 20 .*shard-000001.tar.* cannot be decoded"):
        list(ShardLoader(damaged, batch_size=10, num_workers=num_workers))


def test_a_bad_image_is_replaced_by_the_next_where_asked(damaged, images):
    with pytest.warns(RobustWarning, match="sample 20"):
        found = _global_batches(damaged, 5, 2, on_error="skip")
    reference = [[21 if i == 20 else i for i in batch] for batch in _reference_batches(70, 10)]
    assert found == reference
    loader = ShardLoader(damaged, batch_size=10, on_error="skip", num_workers=1)
    with pytest.warns(RobustWarning, match="next good one"):
        batches = list(loader)
    for batch in batches:
        np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1).numpy(), images[batch.ids])
    assert list(loader.skipped) == [20]
    assert "cannot be decoded" in loader.skipped[20]
    list(loader)  # told once


def _reference_batches(samples, batch_size):
    from lightning_robust.datamodules.plan import EpochOrder

    order = EpochOrder(np.array([13] * 5 + [5]), seed=0, epoch=0, window=16)
    return [order.ids(i, i + batch_size).tolist() for i in range(0, samples, batch_size)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_skipping_ends_at_its_limit(damaged, num_workers):
    with Path(damaged.paths[0]).open("r+b") as file:
        _, (offset,), (size,) = damaged.locate([3])
        file.seek(offset)
        file.write(b"x" * size)
    with pytest.warns(RobustWarning, match="A sample was skipped"):
        list(ShardLoader(damaged, batch_size=10, on_error=2, num_workers=num_workers))
    with (
        pytest.warns(RobustWarning, match="A sample was skipped"),
        pytest.raises(ShardError, match=r"2 samples cannot be read and on_error=1 .* shards verify"),
    ):
        list(ShardLoader(damaged, batch_size=10, on_error=1, num_workers=num_workers))


@pytest.mark.parametrize("on_error", ["ignore", 0, -1, True])
def test_on_error_is_a_choice_or_a_limit(index, on_error):
    with pytest.raises(InputError, match=r"'raise', 'skip', or the number"):
        ShardLoader(index, batch_size=10, on_error=on_error)


def test_hopeless_shards_end_even_where_skipping_is_asked(damaged, monkeypatch):
    monkeypatch.setattr("lightning_robust.datamodules.worker.MOST_SKIPPED_IN_A_ROW", 1)
    with pytest.raises(ShardError, match="in a row"):
        list(ShardLoader(damaged, batch_size=10, on_error="skip"))


def test_a_shard_that_changed_after_indexing_raises(copied):
    with Path(copied.paths[3]).open("r+b") as file:
        file.truncate(512)
    with pytest.raises(ShardError, match=r"shard-000003\.tar.*has 512 bytes"):
        list(ShardLoader(copied, batch_size=10, purpose="evaluate", num_workers=1))


def test_random_transform_output_is_checked(index):
    with pytest.raises(InputError, match="must return uint8"):
        list(ShardLoader(index, batch_size=10, sample_transform=A.Normalize()))
    with pytest.raises(InputError, match="no set_random_seed"):
        ShardLoader(index, batch_size=10, sample_transform=lambda image: image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "num_workers": -1}, "num_workers=-1"),
        ({"batch_size": 4, "rank": 2, "world": 2}, "rank=2"),
        ({"batch_size": 4, "purpose": "test"}, "purpose='test'"),
        ({"batch_size": 4, "on_error": "ignore"}, "on_error='ignore'"),
        ({"batch_size": 4, "on_error": "skip", "purpose": "evaluate"}, "out of the evaluation"),
        ({"batch_size": 4, "image_size": (3, 4, 5)}, "image_size"),
        ({"batch_size": 71}, "do not fill"),
        ({"batch_size": 4, "purpose": "evaluate", "world": 71}, "at most 70 ranks"),
        ({"batch_size": 4, "shuffle_window": 0}, "shuffle_window=0"),
    ],
)
def test_arguments_are_checked_at_once(index, settings, message):
    with pytest.raises(InputError, match=message):
        ShardLoader(index, **settings)


def test_loader_options_are_checked():
    with pytest.raises(InputError, match="prefetch_factor=0"):
        LoaderOptions(prefetch_factor=0)
