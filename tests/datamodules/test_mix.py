from __future__ import annotations

import pickle
from itertools import chain

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.datamodules import ShardDataModule, ShardLoader
from lightning_robust.datamodules.mix import MixedOrder, Sources
from lightning_robust.datamodules.tasks import LoaderPlan
from lightning_robust.errors import InputError
from lightning_robust.shards import Sample, open_index, pack

MIX = {"cars": 0.7, "bikes": 0.3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """30 cars in shards of 4 (target 0), 9 bikes in shards of 5 (target 1); every image has its id as its pixels."""
    root = tmp_path_factory.mktemp("mixed")
    for name, target, ids, size in (("cars", 0, range(30), 4), ("bikes", 1, range(30, 39), 5)):
        samples = [Sample(f"{i:03d}", np.full((8, 8, 3), i, np.uint8), target) for i in ids]
        pack(samples, root / name, samples_per_shard=size)
    return [str(root / "cars"), str(root / "bikes")]


@pytest.fixture(scope="module")
def index(folders):
    return open_index(folders)


sets = st.lists(
    st.tuples(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0.05, 1)), min_size=2, max_size=4
)


def _sources(found):
    """Sources named 0, 1, ... with the given shard sizes and weights, and the source of each sample."""
    paths = [f"/{name}/{shard}.tar" for name, (counts, _) in enumerate(found) for shard in range(len(counts))]
    counts = np.array(list(chain.from_iterable(counts for counts, _ in found)))
    source_of = np.repeat(np.arange(len(found)), [sum(counts) for counts, _ in found])
    return Sources({str(name): weight for name, (_, weight) in enumerate(found)}, paths, counts), source_of


def _order(sources, epoch=0, length=50, seed=1, window=2):
    return MixedOrder(sources, seed=seed, epoch=epoch, length=length, window=window)


@given(found=sets, epoch=st.integers(0, 5), length=st.integers(1, 60))
def test_every_source_has_its_share_of_any_run_of_draws(found, epoch, length):
    sources, source_of = _sources(found)
    drawn = source_of[_order(sources, epoch, length).draws(0, length).ids]
    shares = np.array([weight for _, weight in found])
    shares /= shares.sum()
    for stop in range(1, length + 1):
        counts = np.bincount(drawn[:stop], minlength=len(found))
        assert np.abs(counts - shares * stop).max() < 0.5 + len(found) / 2


@given(found=sets, epochs=st.integers(1, 4), length=st.integers(1, 60), window=st.integers(1, 4))
def test_a_source_is_gone_through_window_by_window_before_it_is_begun_again(found, epochs, length, window):
    sources, source_of = _sources(found)
    draws = [_order(sources, epoch, length, window=window).draws(0, length) for epoch in range(epochs)]
    ids, rounds = (np.concatenate(part) for part in zip(*draws, strict=True))
    shard_of = np.repeat(np.arange(len(sources.counts)), sources.counts)
    for source, size in enumerate(np.bincount(source_of)):
        own = ids[source_of[ids] == source]
        np.testing.assert_array_equal(rounds[source_of[ids] == source], np.arange(len(own)) // size)
        for begin in range(0, len(own), size):
            part = own[begin : begin + size]
            assert len(set(part.tolist())) == len(part)
            if window == 1:  # a shard is read to its end before the next begins
                assert (np.diff(shard_of[part]) != 0).sum() == len(set(shard_of[part].tolist())) - 1


@settings(max_examples=50)
@given(found=sets, length=st.integers(1, 60), data=st.data())
def test_any_slice_equals_the_slice_of_the_whole_epoch(found, length, data):
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    sources, _ = _sources(found)
    whole = _order(sources, 3, length).draws(0, length)
    part = _order(sources, 3, length).draws(start, stop)
    np.testing.assert_array_equal(part.ids, whole.ids[start:stop])
    np.testing.assert_array_equal(part.rounds, whole.rounds[start:stop])


def test_long_runs_keep_the_weights_and_the_passes():
    sources, source_of = _sources([([500, 400], 3), ([300], 1)])
    draws = _order(sources, 1, 12_000).draws(0, 12_000)
    drawn = source_of[draws.ids]
    assert np.bincount(drawn).tolist() == [9000, 3000]
    # the epoch before took as many
    assert draws.rounds[drawn == 0].tolist() == [(9000 + i) // 900 for i in range(9000)]
    assert np.unique(draws.ids[(drawn == 0) & (draws.rounds == 12)], return_counts=True)[1].tolist() == [1] * 900


def test_passes_and_seeds_have_their_own_order_and_repeat_it():
    sources, _ = _sources([([20, 20], 1), ([9], 1)])
    ids, rounds = _order(sources, 0, 160, window=2).draws(0, 160)
    passes = [ids[(ids < 40) & (rounds == number)].tolist() for number in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(40))
    assert passes[0] != passes[1]
    assert _order(sources, 0, 160, seed=2).draws(0, 160).ids.tolist() != ids.tolist()
    assert _order(sources, 0, 160).draws(0, 160).ids.tolist() == ids.tolist()


def _batches(index, batch_size, world, **settings):
    settings = {"mix": MIX, "batch_size": batch_size, "world": world} | settings
    ranks = [[batch.ids.tolist() for batch in ShardLoader(index, rank=rank, **settings)] for rank in range(world)]
    return [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]


def test_an_epoch_keeps_its_length_and_takes_its_shares(index):
    loader = ShardLoader(index, batch_size=10, mix=MIX)
    assert len(loader) == len(ShardLoader(index, batch_size=10)) == 3
    for _ in range(3):
        for batch in loader:
            assert torch.bincount(batch.target).tolist() == [7, 3]
            assert (batch.image[:, 0, 0, 0] == batch.ids).all()
            assert (batch.target == (batch.ids >= 30)).all()


@settings(max_examples=20)
@given(world=st.integers(1, 4), share=st.integers(1, 9), window=st.integers(1, 3), taken=st.integers(0, 4))
def test_global_batches_and_resumption_do_not_depend_on_ranks(index, world, share, window, taken):
    reference = _batches(index, share * world, 1, shuffle_window=window)
    assert _batches(index, share, world, shuffle_window=window) == reference
    taken = min(taken, len(reference) - 1)
    loader = ShardLoader(index, batch_size=share * world, mix=MIX, shuffle_window=window)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    resumed = ShardLoader(
        index, batch_size=share, world=world, rank=world - 1, mix=dict(reversed(MIX.items())), shuffle_window=window
    )
    resumed.load_state_dict(state)
    assert [batch.ids.tolist() for batch in resumed] == [ids[-share:] for ids in reference[taken:]]


def test_workers_change_nothing(index):
    assert _batches(index, 6, 1, num_workers=2) == _batches(index, 6, 1)


def test_each_draw_of_a_sample_is_augmented_anew(index):
    transform = A.Compose([A.GaussNoise(std_range=(0.2, 0.3), p=1)])
    (batch,) = ShardLoader(index, mix={"cars": 0.1, "bikes": 0.9}, batch_size=39, sample_transform=transform)
    assert len(set(batch.ids.tolist())) < 39
    assert len({image.numpy().tobytes() for image in batch.image}) == 39


def test_a_state_of_another_mix_is_refused(index):
    mixed, plain = ShardLoader(index, batch_size=6, mix=MIX), ShardLoader(index, batch_size=6)
    with pytest.raises(InputError, match=r"mix=\{'bikes': 0.3, 'cars': 0.7\} there and None here"):
        plain.load_state_dict(mixed.state_dict())
    with pytest.raises(InputError, match="another order of batches"):
        ShardLoader(index, batch_size=6, mix=MIX | {"cars": 0.5}).load_state_dict(mixed.state_dict())


def test_the_shards_of_each_batch_are_among_those_needed(index):
    plan = LoaderPlan(
        index.counts,
        3,
        1,
        2,
        train=True,
        shuffle=True,
        seed=0,
        window=1,
        scheme=Sources(MIX, index.paths, index.counts),
    )
    needs, batches = plan.needs(1), list(plan.tasks(1, 0, (8, 8, 3), None))
    for number in range(len(batches)):
        last = min(number + 1, len(batches) - 1)
        needed = needs.needed(*plan.span(number, last))
        used = {int(shard) for task in batches[number : last + 1] for shard in index.locate(task.ids)[0]}
        assert used <= set(needed)
        assert len(needed) == len(set(needed)) < len(index.paths)


def test_a_source_that_is_not_drawn_from_just_now_keeps_its_shards():
    sources, _ = _sources([([5, 5], 99), ([5, 5], 1)])
    needed = _order(sources, 0, 100, window=1).needed(0, 3)
    assert set(needed) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "mix",
    [
        {"cars/*.tar": 7, "bikes/shard-{000000..000001}.tar": 3},
        {"*/cars": 70, "bikes": 30},
        {"bikes": 3e-3, "ca?s": 7e-3},
    ],
)
def test_patterns_name_shards_or_folders(index, mix):
    found = [batch.target.tolist() for batch in ShardLoader(index, batch_size=10, mix=mix)]
    assert [targets.count(1) for targets in found] == [3, 3, 3]


def test_a_mix_of_a_part_of_a_set(index):
    part = index.select([*range(9), 31])
    (batch,) = ShardLoader(part, batch_size=10, mix=MIX)
    assert torch.bincount(batch.target).tolist() == [7, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": {"cars": 1}}, "names 1 sources"),
        ({"mix": {"cars": 1, "bikes": 0}}, "weight of 'bikes' in mix is 0.0"),
        ({"mix": {"cars": 1, "bikes": float("nan")}}, "weight of 'bikes' in mix is nan"),
        ({"mix": {"cars": 1, "bikes": 1e-6}}, "'bikes' in mix is below 1 in 10000"),
        ({"mix": {"cars": 1, "boats": 1}}, r"'shard-000000.tar' matches no pattern of mix: .* 'boats', 'cars'"),
        ({"mix": MIX | {"boats": 1}}, "No training shard matches 'boats'"),
        ({"mix": MIX | {"*.tar": 1}}, r"matches '\*.tar' and 'cars' of mix"),
        ({"mix": MIX, "balance": "class"}, "give one of them"),
        ({"mix": MIX, "purpose": "evaluate"}, "is for shuffled training"),
        ({"mix": MIX, "shuffle": False}, "shuffle=False"),
    ],
)
def test_a_mix_that_means_nothing_is_refused(index, settings, message):
    with pytest.raises(InputError, match=message):
        ShardLoader(index, batch_size=4, **settings)


def test_the_data_module_mixes_training_as_yaml_says(folders):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardDataModule, "data")
    words = ["--data.train", str(folders).replace("'", '"'), "--data.val", folders[1], "--data.batch_size", "10"]
    words += ["--data.mix", "{cars: 0.7, bikes/*.tar: 0.3}", "--data.num_workers", "0"]
    data = parser.instantiate_classes(parser.parse_args(words)).data
    assert [batch.target.tolist().count(1) for batch in data.train_dataloader()] == [3, 3, 3]
    assert len(torch.cat([batch.ids for batch in data.val_dataloader()])) == 9
    with pytest.raises(InputError, match="needs an index to be chosen"):
        ShardDataModule(train=folders, unindexed=("train",), epoch_batches=3, mix=MIX)
