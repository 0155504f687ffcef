from __future__ import annotations

import json
import logging
import pickle
import shutil

import numpy as np
import pytest

from lightning_robust.cli.shards import main
from lightning_robust.errors import InputError, ShardError, UnsupportedError
from lightning_robust.shards import RemoteOptions, Sample, SampleReader, open_index, pack
from lightning_robust.shards.checksums import check_checksums
from lightning_robust.shards.remote import FetchError


@pytest.fixture
def folder(tmp_path, samples):
    pack(samples, tmp_path / "set", samples_per_shard=20)
    return tmp_path / "set"


@pytest.fixture
def remote(tmp_path):
    return RemoteOptions(cache_dir=str(tmp_path / "cache"), backoff=0, attempts=3, timeout=5)


def _same(found, folder):
    local = open_index(folder)
    assert found.fingerprint == local.fingerprint
    assert found.counts.tolist() == local.counts.tolist()
    assert found.table.tolist() == local.table.tolist()
    assert found.classes == local.classes
    for index in (found, pickle.loads(pickle.dumps(found))):
        with SampleReader(index) as far, SampleReader(local) as near:
            assert far.read(range(len(local))) == near.read(range(len(local)))


def _republish(web, **changes):
    document = json.loads(web.files["/a/index.json"])
    web.files["/a/index.json"] = json.dumps(document | changes).encode()
    return document


def test_a_published_index_is_used_and_shards_come_when_they_are_read(folder, web, remote):
    url = web.add_folder(folder, "a")
    braces = url + "shard-{000000..000003}.tar"
    index = open_index(braces, remote=remote)
    assert not any(path.endswith(".tar") for path in web.gets)
    assert index.paths == tuple(f"{url}shard-{number:06d}.tar" for number in range(4))
    _same(index, folder)
    assert all(web.gets[f"/a/shard-{number:06d}.tar"] == 1 for number in range(4))
    for same in (url, list(index.paths), index.paths[1]):
        open_index(same, remote=remote)
    assert len(open_index(index.paths[1], remote=remote)) == 20
    assert len(pickle.dumps(index)) < 4000
    # the samples file was fetched once, into the cache
    assert [count for path, count in web.gets.items() if path.endswith(".npy")] == [1]


def test_shards_without_an_index_are_indexed_once_in_the_cache(folder, web, remote, monkeypatch):
    url = web.add_folder(folder, "a")
    del web.files["/a/index.json"]
    braces = url + "shard-{000000..000003}.tar"
    index = open_index(braces, remote=remote)
    _same(index, folder)
    monkeypatch.setattr("lightning_robust.shards.places.scan_shard", None)
    again = open_index(braces, remote=remote)
    _same(again, folder)
    assert all(count == 1 for path, count in web.gets.items() if path.endswith(".tar"))
    # what was fetched once is checked when it is fetched again, although nobody published a checksum
    shutil.rmtree(folder.parent / "cache" / "shards")
    web.files["/a/shard-000001.tar"] = web.files["/a/shard-000001.tar"].replace(b"\x89PNG", b"\x89GNP", 1)
    with SampleReader(again) as reader, pytest.raises(ShardError, match="sha256"):
        reader.read([25])
    with pytest.raises(ShardError, match=r"has no index\.json, and a web server has no list"):
        open_index(url, remote=remote)


def test_a_shard_that_was_replaced_is_named(folder, web, remote):
    url = web.add_folder(folder, "a")
    del web.files["/a/index.json"]
    braces = url + "shard-{000000..000003}.tar"
    open_index(braces, remote=remote)
    web.files["/a/shard-000002.tar"] = web.files["/a/shard-000003.tar"]
    with pytest.raises(ShardError, match=r"a/shard-000002\.tar' has 10240 bytes; the index says"):
        open_index(braces, remote=remote)
    with pytest.raises(ShardError, match="key '00060' occurs again"):
        open_index(braces, remote=remote, rebuild=True)
    web.files["/a/shard-000003.tar"] = (folder / "shard-000002.tar").read_bytes()
    assert open_index(braces, remote=remote, rebuild=True).counts.tolist() == [20, 20, 4, 20]


def test_a_shard_that_differs_from_the_published_index(folder, web, remote):
    url = web.add_folder(folder, "a")
    index = open_index(url, remote=remote)
    whole = web.files["/a/shard-000000.tar"]
    for damaged, said in (
        (whole[:-512], "has 50688 bytes; the index says 51200"),
        (whole[:-1] + b"x", "has the sha256"),
    ):
        web.files["/a/shard-000000.tar"] = damaged
        with SampleReader(index) as reader, pytest.raises(ShardError, match=said):
            reader.read([0])
    del web.files["/a/shard-000000.tar"]
    with SampleReader(index) as reader, pytest.raises(FetchError, match="answers 404"):
        reader.read([0])
    web.files["/a/shard-000000.tar"] = whole
    with SampleReader(index) as reader:
        assert len(reader.read([0])) == 1
    assert check_checksums(index) == 4


def test_an_index_of_another_tool_is_checked_and_completed(folder, web, remote):
    url = web.add_folder(folder, "a")
    shards = json.loads(web.files["/a/index.json"])["shardlist"]
    foreign = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [{"url": url + entry["url"], "nsamples": entry["nsamples"]} for entry in shards],
    }
    web.files["/a/index.json"] = json.dumps(foreign).encode()
    _same(open_index(url, remote=remote), folder)
    foreign["shardlist"][1]["nsamples"] = 21
    web.files["/a/index.json"] = json.dumps(foreign).encode()
    with pytest.raises(ShardError, match=r"shard-000001\.tar' holds 20 samples; the index says 21"):
        open_index(url, remote=remote)
    foreign["shardlist"][1] |= {"nsamples": 20, "md5sum": "0" * 32}
    web.files["/a/index.json"] = json.dumps(foreign).encode()
    shutil.rmtree(folder.parent / "cache")
    with pytest.raises(ShardError, match="has the md5"):
        open_index(url, remote=remote)


@pytest.mark.parametrize(
    "name", ["../b/shard-000000.tar", "https://elsewhere/shard-000000.tar", "/etc/passwd", "%2e%2e%2fx.tar", 7, None]
)
def test_an_index_may_not_name_shards_elsewhere(folder, web, remote, name):
    url = web.add_folder(folder, "a")
    shards = json.loads(web.files["/a/index.json"])["shardlist"]
    _republish(web, shardlist=[*shards[:3], shards[3] | {"url": name}])
    for shard in (url, url + "shard-000000.tar"):
        with pytest.raises(ShardError, match="expected a file beside the index"):
            open_index(shard, remote=remote)


@pytest.mark.parametrize("name", ["../x.npy", "/etc/x.npy", "x.pkl", "https://elsewhere/x.npy", 3])
def test_an_index_may_not_name_a_samples_file_elsewhere(folder, web, remote, name):
    url = web.add_folder(folder, "a")
    _republish(web, samples_file=name)
    with pytest.raises(ShardError, match="samples file"):
        open_index(url, remote=remote)


@pytest.mark.parametrize("change", [{"classes": 5}, {"members": {"seg.png": "../x.npy"}}, {"members": 3}])
def test_a_published_index_of_other_types(folder, web, remote, change):
    url = web.add_folder(folder, "a")
    _republish(web, **change)
    for shards in (url, url + "shard-000000.tar"):
        with pytest.raises(ShardError, match=r"/a/index\.json' "):
            open_index(shards, remote=remote)


def test_a_samples_file_that_is_damaged_or_too_large(folder, web, remote):
    url = web.add_folder(folder, "a")
    (name,) = [path for path in web.files if path.endswith(".npy")]
    whole = web.files[name]
    web.files[name] = whole[:-1] + b"x"
    with pytest.raises(ShardError, match="holds other bytes than its name says"):
        open_index(url, remote=remote)
    web.files[name] = whole + bytes(10_000)
    with pytest.raises(ShardError, match="more than"):
        open_index(url, remote=remote)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>not found</html>",
        b"[]",
        b"[" * 200_000,
        b'{"__kind__": "other"}',
        b'{"__kind__": "x", "shardlist": []}',
    ],
    ids=range(5),
)
def test_what_is_no_index_is_left_aside_and_said(folder, web, remote, body, caplog):
    url = web.add_folder(folder, "a")
    web.files["/a/index.json"] = body
    with caplog.at_level(logging.WARNING):
        assert len(open_index(url + "shard-000003.tar", remote=remote)) == 4
    assert "is not a shard index" in caplog.text


def test_what_is_no_shard_does_not_stay_in_the_cache(web, remote, folder):
    web.etags = False  # nothing tells the two apart but their bytes
    sound = (folder / "shard-000003.tar").read_bytes()
    web.files["/a/s.tar"] = b"<html>try later</html>".ljust(len(sound))
    with pytest.raises(ShardError, match=r"^Shard 'http://127.0.0.1:\d+/a/s\.tar' is not a tar file") as error:
        open_index(f"{web.url}/a/s.tar", remote=remote)
    assert "slash" not in str(error.value)
    web.files["/a/s.tar"] = sound
    assert len(open_index(f"{web.url}/a/s.tar", remote=remote)) == 4


def test_a_folder_without_its_slash_is_told(web, remote):
    web.files["/sets/cars"] = b"<!DOCTYPE HTML><title>Directory listing</title>".ljust(700)
    with pytest.raises(ShardError, match=r"^Shard 'http://127.0.0.1:\d+/sets/cars' is not.* end the URL in a slash\.$"):
        open_index(f"{web.url}/sets/cars", remote=remote)
    with pytest.raises(InputError, match=r"'http://127.0.0.1:\d+' names no file.* end the URL in a slash\.$"):
        open_index(web.url, remote=remote)


def test_missing_shards_and_lists_of_local_and_remote_ones(folder, web, remote, tmp_path, samples):
    url = web.add_folder(folder, "a")
    del web.files["/a/index.json"]
    with pytest.raises(FetchError, match=r"shard-000009\.tar': the server answers 404"):
        open_index([url + "shard-000000.tar", url + "shard-000009.tar"], remote=remote)
    pack([Sample(f"n{number}", sample.image, 7) for number, sample in enumerate(samples[:3])], tmp_path / "near")
    mixed = open_index([url + "shard-000003.tar", str(tmp_path / "near")], remote=remote)
    assert mixed.labels.tolist() == [0, 1, 2, 3, 7, 7, 7]
    with SampleReader(mixed) as reader:
        assert reader.read(range(7)) == [sample.image for sample in [*samples[60:], *samples[:3]]]
    with pytest.raises(InputError, match="only their queries differ"):
        open_index([url + "shard-000003.tar?a", url + "shard-000003.tar?b"], remote=remote)


def test_a_store_that_lists_tells_of_lost_shards(folder, remote, samples):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        store.pipe(f"/lost/{path.name}", path.read_bytes())
    _same(open_index("memory://lost/", remote=remote), folder)
    _same(open_index("memory://lost/shard-*.tar", remote=remote), folder)
    store.rm("/lost/shard-000002.tar")
    with pytest.raises(ShardError, match=r"lost/shard-000002\.tar' is missing: the index lists it with 20 samples"):
        open_index("memory://lost/shard-*.tar", remote=remote)
    assert open_index("memory://lost/", remote=remote, rebuild=True).counts.tolist() == [20, 20, 4]
    assert len(open_index("memory://lost/shard-*.tar", remote=remote)) == 44


def test_messages_name_the_sample_and_hide_the_query(folder, web, remote):
    url = web.add_folder(folder, "a")
    index = open_index(f"{url}shard-000000.tar?secret", remote=remote)
    assert index.describe(3) == f"sample 3 of shard '{url}shard-000000.tar'"
    with SampleReader(index) as reader:
        reader.read([3])
    assert index.describe(3) == f"sample 3 ('00003.png') of shard '{url}shard-000000.tar'"


def test_the_cache_may_be_smaller_than_the_set(folder, web, tmp_path):
    url = web.add_folder(folder, "a")
    del web.files["/a/index.json"]
    small = RemoteOptions(cache_dir=str(tmp_path / "small"), cache_bytes=31_000, backoff=0, connections=1)
    index = open_index(url + "shard-{000000..000003}.tar", remote=small)
    _same(index, folder)
    held = sum(path.stat().st_size for path in (tmp_path / "small" / "shards").iterdir())
    assert 0 < held <= 31_000


def test_a_reader_closes_what_was_evicted(folder, web, tmp_path):
    index = open_index(web.add_folder(folder, "a"), remote=RemoteOptions(cache_dir=str(tmp_path), cache_bytes=1))
    with SampleReader(index) as reader:
        for sample in (0, 20, 40, 60):
            reader.read([sample])
        assert len(reader._descriptors) == 1
        assert len(reader.read([0, 63])) == 2


def test_command_line(folder, web, tmp_path, capsys):
    url = web.add_folder(folder, "a")
    cache = ["--cache-dir", str(tmp_path / "c")]
    assert main(["index", url + "shard-{000000..000003}.tar", *cache]) == 0
    assert "64 samples in 4 shards" in capsys.readouterr().out
    assert main(["info", url, "--checksums", *cache]) == 0
    said = capsys.readouterr().out
    assert "SHA-256 of 4 of 4 shards" in said
    assert "  shard-000003.tar" in said
    assert main(["info", "pipe:cat a.tar", *cache]) == 1
    assert "are not read" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bucket():
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3fs = pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    store = s3fs.S3FileSystem(**options)
    store.mkdir("shards")
    yield store, options
    server.stop()


def test_s3(folder, bucket, tmp_path):
    store, storage = bucket
    for path in folder.iterdir():
        if not path.name.startswith("."):
            store.pipe(f"shards/with/{path.name}", path.read_bytes())
            if path.suffix == ".tar":
                store.pipe(f"shards/without/{path.name}", path.read_bytes())
    remote = RemoteOptions(cache_dir=str(tmp_path / "s3"), storage_options=storage, backoff=0, attempts=2)
    for name in ("with/", "with/shard-*.tar", "without/shard-{000000..000003}.tar", "without/"):
        index = open_index(f"s3://shards/{name}", remote=remote)
        assert index.paths[0] == f"s3://shards/{name.partition('/')[0]}/shard-000000.tar"
        _same(index, folder)
    store.pipe("shards/without/shard-000003.tar", np.random.default_rng(0).bytes(10_240))
    shutil.rmtree(tmp_path / "s3" / "shards")
    with SampleReader(index) as reader, pytest.raises(ShardError, match="sha256"):
        reader.read([63])
    with pytest.raises(FetchError, match=r"s3://shards/without/none\.tar' does not exist"):
        open_index("s3://shards/without/none.tar", remote=remote)
    with pytest.raises(UnsupportedError, match=r"max_concurrency must be.*Check the scheme and options"):
        open_index(
            "s3://shards/with/",
            remote=RemoteOptions(storage_options={"nonsense": 1, "session": object(), "max_concurrency": 0}),
        )
