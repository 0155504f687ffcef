from __future__ import annotations

import hashlib
import json
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_robust.errors import InputError
from lightning_robust.shards import SampleReader, open_index, pack, tablefile
from lightning_robust.shards.scan import SAMPLE_DTYPE

CLASSES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def whole(samples, tmp_path):
    """64 samples in shards of 10; the label is the id modulo 5."""
    return pack(samples, tmp_path, samples_per_shard=10, classes=CLASSES)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 63), min_size=1, unique=True), mask=st.booleans())
def test_a_selection_is_the_chosen_samples_in_the_order_of_the_set(whole, ids, mask):
    view = whole.select(np.isin(np.arange(64), ids) if mask else ids)
    kept = np.sort(ids)
    assert len(view) == len(kept)
    np.testing.assert_array_equal(view.labels, kept % 5)
    assert view.paths == tuple(dict.fromkeys(whole.paths[sample // 10] for sample in kept))
    shards, offsets, sizes = view.locate(range(len(kept)))
    _, expected_offsets, expected_sizes = whole.locate(kept)
    assert [view.paths[shard] for shard in shards] == [whole.paths[sample // 10] for sample in kept]
    np.testing.assert_array_equal(offsets, expected_offsets)
    np.testing.assert_array_equal(sizes, expected_sizes)


def test_a_view_reads_travels_and_names_like_a_set(whole, samples):
    view = whole.with_labels({4, 1})
    assert view.member(3) == "00009.png"
    for index in (view, pickle.loads(pickle.dumps(view))):
        with SampleReader(index) as reader:
            assert reader.read([0, 3, 24]) == [samples[number].image for number in (1, 9, 61)]
        assert (index.selection, index.fingerprint) == ("labels 1, 4", view.fingerprint)


def test_views_differ_in_their_fingerprint(whole):
    views = [whole, whole.with_labels([0]), whole.with_labels([1]), whole.with_labels([1], renumber=True)]
    assert len({view.fingerprint for view in views}) == 4
    assert whole.select(range(64)).fingerprint == whole.fingerprint


def test_opening_and_fingerprint_hold_little_of_the_table(whole, monkeypatch):
    rows = [
        [Path(path).name, int(n), int(size)]
        for path, n, size in zip(whole.paths, whole.counts, whole.sizes, strict=True)
    ]
    expected = hashlib.sha256(json.dumps(rows).encode() + whole.table.tobytes()).hexdigest()
    monkeypatch.setattr(tablefile, "_ROWS_AT_ONCE", 10)
    assert whole.fingerprint == expected
    monkeypatch.undo()
    table = np.zeros(1_000_000, SAMPLE_DTYPE)
    tracemalloc.start()
    large = replace(whole, table=table)
    large.fingerprint  # noqa: B018
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_labels_are_kept_or_numbered_anew(whole):
    kept = whole.with_labels([3, 0])
    assert set(kept.labels.tolist()) == {0, 3}
    assert kept.classes == CLASSES
    renumbered = whole.with_labels([3, 0], renumber=True)
    np.testing.assert_array_equal(renumbered.labels, np.where(kept.labels == 3, 1, 0))
    assert renumbered.classes == ("ant", "dog")
    assert whole.labels.tolist() == [number % 5 for number in range(64)]


def test_a_view_of_a_view(whole):
    view = whole.with_labels([1, 4]).select([0, 3])
    assert [view.member(sample) for sample in range(2)] == ["00001.png", "00009.png"]
    assert view.selection == "labels 1, 4, of these selected ones"


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda index: index.select([]), "No sample was chosen"),
        (lambda index: index.select(np.zeros(64, bool)), "No sample was chosen"),
        (lambda index: index.select([3, 64]), "Samples 3 to 64 were chosen; the set holds 0 to 63"),
        (lambda index: index.select([3, 5, 3]), "Sample 3 was chosen 2 times"),
        (lambda index: index.select([True] * 63), r"shape \(63,\): the set has 64 samples"),
        (lambda index: index.select([0.5]), "chosen by float64"),
        (lambda index: index.with_labels([]), "No sample was chosen"),
        (lambda index: index.with_labels([1, 7]), "has label 7: leave this out"),
    ],
)
def test_what_cannot_be_chosen_is_said(whole, choose, message):
    with pytest.raises(InputError, match=message):
        choose(whole)


def test_samples_without_labels_are_not_chosen_by_label(whole):
    index = open_index(list(whole.paths), label_key=None, write=False)
    assert len(index.select([1, 2])) == 2
    with pytest.raises(InputError, match="label_key=None"):
        index.with_labels([1])
