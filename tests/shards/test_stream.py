"""Shards that are read forwards only, from files, pipes and servers that misbehave."""

from __future__ import annotations

import os

import pytest

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import FetchError, RemoteOptions
from lightning_robust.shards.stream import expand_streams, read_members


@pytest.fixture
def shard(tmp_path, write_tar):
    return write_tar(tmp_path / "a.tar", [(f"{i:03d}.bin", bytes([i]) * 4000) for i in range(30)])


@pytest.fixture
def far(web, shard):
    web.files["/a.tar"] = shard.read_bytes()
    return f"{web.url}/a.tar"


def _options(**settings):
    return RemoteOptions(**({"backoff": 0, "attempts": 3, "timeout": 5, "cache_dir": "/no/cache"} | settings))


def _members(name, **settings):
    return list(read_members(str(name), _options(**settings)))


def test_a_file_gives_its_members(shard):
    assert _members(shard) == [(f"{i:03d}.bin", bytes([i]) * 4000) for i in range(30)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_is_cut_is_taken_up_again(web, far, shard, ranges):
    web.ranges = ranges
    web.faults["/a.tar"] = [503, ("cut", 0), ("cut", 70_000), ("cut", 100), 500, ("cut", 90_000)]
    assert _members(far) == _members(shard)
    if ranges:
        assert web.sent["/a.tar"] == len(web.files["/a.tar"])


def test_tries_without_a_byte_come_to_an_end(web, far):
    web.faults["/a.tar"] = [("cut", 3_000)] + [503] * 9
    with pytest.raises(FetchError, match=r"a\.tar' cannot be fetched: .*503"):
        _members(far)
    assert web.gets["/a.tar"] == 4


@pytest.mark.parametrize("heeds", [True, False])
def test_parts_of_two_objects_are_not_joined(web, far, heeds):
    web.heeds_if_range = heeds

    def replace(path):
        web.files[path] = web.files[path][::-1]

    web.after_body = replace
    web.faults["/a.tar"] = [("cut", 70_000)]
    with pytest.raises(FetchError, match=r"cut after 70000 bytes, and the server does not tell"):
        _members(far)


def test_a_server_without_versions_cannot_be_taken_up_again(web, far, shard):
    web.etags = False
    assert _members(far) == _members(shard)
    web.faults["/a.tar"] = [("cut", 70_000)]
    with pytest.raises(FetchError, match="through the cache"):
        _members(far)


@pytest.mark.parametrize("kept", [0, 100, 512, 5_120, 60_000, 137_700])
def test_a_shard_that_was_cut_before_it_was_served_is_an_error(web, far, kept):
    web.files["/a.tar"] = web.files["/a.tar"][:kept]
    with pytest.raises(ShardError, match=r"a\.tar"):
        _members(far)


def test_a_reader_that_stops_leaves_no_connection(web, far):
    members = read_members(far, _options())
    next(members)
    members.close()


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"none\.tar' cannot be opened: No such file"):
        _members(tmp_path / "none.tar")


def test_named_pipes_stand_beside_files(tmp_path, shard):
    os.mkfifo(tmp_path / "pipe")
    assert expand_streams([str(tmp_path / "*.tar"), tmp_path / "pipe"], _options()) == [
        str(tmp_path / "pipe"),
        str(shard),
    ]
    assert expand_streams(tmp_path / "pipe", _options()) == [str(tmp_path / "pipe")]
    with pytest.raises(InputError, match="No shards were named"):
        expand_streams([], _options())
