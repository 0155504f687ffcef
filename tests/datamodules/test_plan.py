from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.datamodules.plan import (
    EpochOrder,
    count_evaluation_batches,
    count_train_batches,
    evaluation_batch,
    train_batch_positions,
)
from lightning_robust.errors import InputError

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0)


def _order(counts, epoch=0, window=3, seed=7):
    order = EpochOrder(np.array(counts), seed=seed, epoch=epoch, window=window)
    return order.ids(0, len(order))


@given(counts=sizes, epoch=st.integers(0, 3), window=st.integers(1, 9))
def test_order_is_a_permutation_that_mixes_only_inside_windows(counts, epoch, window):
    ids = _order(counts, epoch, window)
    assert sorted(ids.tolist()) == list(range(sum(counts)))
    shard_of = np.repeat(np.arange(len(counts)), counts)[ids]
    first_seen = list(dict.fromkeys(shard_of.tolist()))
    # with windows of one shard, a shard is read to its end before the next begins
    if window == 1:
        assert shard_of.tolist() == [s for s in first_seen for _ in range(counts[s])]


@given(counts=sizes, window=st.integers(1, 9), data=st.data())
def test_any_slice_equals_the_slice_of_the_whole_order(counts, window, data):
    total = sum(counts)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    order = EpochOrder(np.array(counts), seed=1, epoch=2, window=window)
    np.testing.assert_array_equal(order.ids(start, stop), _order(counts, 2, window, seed=1)[start:stop])


def test_window_holds_that_many_shards():
    counts = [5] * 6
    shards = np.repeat(np.arange(6), 5)[_order(counts, window=2)]
    for begin in range(0, 30, 10):
        assert len(set(shards[begin : begin + 10])) == 2


def test_epochs_and_seeds_have_their_own_order_and_repeat_it():
    counts = [40, 30, 30]
    orders = [_order(counts, epoch, seed=seed).tolist() for seed in (0, 1) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 6
    assert _order(counts, 1, seed=1).tolist() == orders[4]


def test_order_is_the_same_on_every_machine():
    # recorded once; a change here breaks the resumption of every run that is under way
    assert _order([3, 2, 4], epoch=1, window=2, seed=5).tolist() == RECORDED


RECORDED = [5, 7, 8, 6, 0, 1, 2, 3, 4]


def test_positions_are_evenly_mixed_inside_a_full_window():
    ranks = np.mean([np.argsort(_order([50, 50], epoch, window=2)) for epoch in range(300)], axis=0)
    # the mean position of a sample over 300 uniform permutations of 100: 49.5 with a standard error of 1.67
    assert np.abs(ranks - 49.5).max() < 5 * 1.67


@given(samples=st.integers(1, 130), batch_size=st.integers(1, 17), world=st.integers(1, 8))
def test_train_batches_partition_the_order_up_to_the_incomplete_last_one(samples, batch_size, world):
    if samples < batch_size * world:
        with pytest.raises(InputError, match="do not fill one global batch"):
            count_train_batches(samples, batch_size=batch_size, world=world)
        return
    batches = count_train_batches(samples, batch_size=batch_size, world=world)
    seen = [
        position
        for batch in range(batches)
        for rank in range(world)
        for position in range(*train_batch_positions(batch, batch_size=batch_size, rank=rank, world=world))
    ]
    assert seen == list(range(batches * batch_size * world))
    assert samples - len(seen) < batch_size * world


@settings(max_examples=200)
@given(samples=st.integers(0, 130), batch_size=st.integers(1, 17), world=st.integers(1, 8))
def test_evaluation_sees_every_sample_once_in_equally_many_batches(samples, batch_size, world):
    if samples < world or samples == 0 or (batch_size == 1 and samples % world):
        with pytest.raises(InputError, match="cannot be evaluated"):
            count_evaluation_batches(samples, batch_size=batch_size, world=world)
        return
    batches = count_evaluation_batches(samples, batch_size=batch_size, world=world)
    parts = [
        evaluation_batch(batch, samples=samples, batch_size=batch_size, rank=rank, world=world)
        for rank in range(world)
        for batch in range(batches)
    ]
    assert sorted(np.concatenate(parts).tolist()) == list(range(samples))
    assert all(1 <= len(part) <= batch_size for part in parts)


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="take batch_size at most 5"):
        count_train_batches(10, batch_size=8, world=2)
    with pytest.raises(InputError, match="at most 2 ranks"):
        count_evaluation_batches(2, batch_size=4, world=3)
    with pytest.raises(InputError, match="eval_batch_size=2"):
        count_evaluation_batches(7, batch_size=1, world=2)
    with pytest.raises(InputError, match="shuffle_window=0"):
        EpochOrder(np.array([3]), seed=0, epoch=0, window=0)
