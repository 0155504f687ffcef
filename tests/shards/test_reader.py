from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

from lightning_robust.errors import ShardError
from lightning_robust.shards import SampleReader, open_index, pack


@pytest.fixture
def index(tmp_path, samples):
    return pack(samples, tmp_path, samples_per_shard=10)


def _open_shards() -> int:
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    return sum(os.path.exists(link) and os.readlink(link).endswith(".tar") for link in links)  # noqa: PTH110, PTH115


def test_reads_in_any_order_with_repeats(index, samples):
    ids = np.random.default_rng(0).integers(0, 64, 200)
    with SampleReader(index) as reader:
        assert reader.read(ids) == [samples[sample].image for sample in ids]
        assert reader.read([]) == []


def test_descriptors_are_few_and_closed(index, samples, monkeypatch):
    monkeypatch.setattr("lightning_robust.shards.reader._OPEN_SHARDS", 3)
    reader = SampleReader(index)
    assert _open_shards() == 0
    assert reader.read(range(64)) == [sample.image for sample in samples]
    assert _open_shards() == 3
    assert reader.read([63, 0, 63]) == [samples[63].image, samples[0].image, samples[63].image]
    reader.close()
    assert _open_shards() == 0
    assert reader.read([1]) == [samples[1].image]
    del reader
    gc.collect()
    assert _open_shards() == 0


def test_no_warning_when_dropped_open(index):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SampleReader(index).read([0])
        gc.collect()


def test_pickling_drops_descriptors(index, samples):
    with SampleReader(index, max_bytes=1 << 20) as reader:
        reader.read(range(64))
        data = pickle.dumps(reader)
    assert len(data) < 3000
    with pickle.loads(data) as copy:
        assert copy.max_bytes == 1 << 20
        assert copy.read([5]) == [samples[5].image]


def _child(reader, queue):
    queue.put(reader.read([7, 60]))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_reader_and_its_parent(index, samples):
    expected = [samples[7].image, samples[60].image]
    with SampleReader(index) as reader:
        reader.read([7, 60])
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_child, args=(reader, queue))
        child.start()
        assert queue.get(timeout=60) == expected
        child.join()
        queue.close()
        queue.join_thread()
        assert reader.read([7, 60]) == expected


def test_a_shard_replaced_after_the_index_was_opened(index):
    with open(index.paths[2], "ab") as file:  # noqa: PTH123
        file.write(b"\0" * 512)
    with SampleReader(index) as reader:
        for _ in range(2):  # the descriptor must not be kept for the second try
            with pytest.raises(ShardError, match=r"shard-000002\.tar.*the index says \d+ bytes with 10 samples"):
                reader.read([20])


def test_a_shard_cut_while_open(index):
    with SampleReader(index) as reader:
        reader.read([20])
        os.truncate(index.paths[2], 1000)
        with pytest.raises(ShardError, match=r"Read 0 of the \d+ bytes of sample 29.*shard-000002\.tar"):
            reader.read([20 + 9])


def test_a_lost_shard(index):
    os.unlink(index.paths[0])  # noqa: PTH108
    with (
        SampleReader(index) as reader,
        pytest.raises(ShardError, match=r"shard-000000\.tar' cannot be opened: No such"),
    ):
        reader.read([0])


def test_size_limit(index):
    with SampleReader(index, max_bytes=10) as reader, pytest.raises(ShardError, match="expected 1 to 10 bytes"):
        reader.read([0])


def test_damaged_offsets_in_the_index(index):
    # under a name without a hash, which would show the damage at once
    file = Path(index.table_file)
    document = file.with_name("index.json")
    document.write_text(document.read_text().replace(file.name, "table.npy"))
    table = np.lib.format.open_memmap(file.rename(file.with_name("table.npy")), mode="r+")
    for field, value in (("size", 1 << 60), ("size", -1), ("offset", -5), ("offset", 2**63 - 1)):
        whole = table[3].copy()
        table[field][3] = value
        table.flush()
        with SampleReader(open_index(index.paths)) as reader, pytest.raises(ShardError, match="sample 3"):
            reader.read([3])
        table[3] = whole
