from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from lightning_robust.errors import ShardError
from lightning_robust.shards.cache import RemoteShard, ShardCache, default_cache
from lightning_robust.shards.remote import FetchError, RemoteOptions

SIZE = 40_000
BODIES = {number: np.random.default_rng(number).bytes(SIZE) for number in range(6)}

# counts as ready once it has imported everything; tells of each chunk that reached the disk
FETCH = """
import sys
from lightning_robust.shards import http
from lightning_robust.shards.cache import RemoteShard, ShardCache
from lightning_robust.shards.remote import RemoteOptions

original = http._chunks

def chunks(response):
    for chunk in original(response):
        yield chunk
        print("written", flush=True)

http._chunks = chunks
cache = ShardCache(RemoteOptions(cache_dir=sys.argv[1], backoff=0, timeout=30))
print("ready", flush=True)
sys.stdin.readline()
for url in sys.argv[2:]:
    print(cache.fetch(RemoteShard(url, 40_000)).read_bytes().hex()[:16], flush=True)
"""


@pytest.fixture
def cache(tmp_path):
    return ShardCache(RemoteOptions(cache_dir=str(tmp_path / "cache"), backoff=0, attempts=3, timeout=5))


@pytest.fixture
def served(web):
    web.files.update({f"/set/{number}.tar": body for number, body in BODIES.items()})
    return [RemoteShard(f"{web.url}/set/{number}.tar", SIZE) for number in BODIES]


def _limited(cache, shards):
    return ShardCache(RemoteOptions(cache_dir=str(cache.folder), cache_bytes=shards * SIZE, backoff=0, attempts=3))


def _held(cache):
    return {path.name.partition("-")[2] for path in (cache.folder / "shards").iterdir()}


def _start(cache, shards):
    urls = [shard.url for shard in shards]
    command = [sys.executable, "-c", FETCH, str(cache.folder), *urls]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_shard_is_fetched_once_and_read_from_the_cache(cache, served, web):
    for _ in range(2):
        path = cache.fetch(served[0])
        assert path.read_bytes() == BODIES[0]
    descriptor = pickle.loads(pickle.dumps(cache)).open(served[0])
    assert os.pread(descriptor, SIZE, 0) == BODIES[0]
    os.close(descriptor)
    assert web.gets == {"/set/0.tar": 1}


def test_equal_file_names_and_other_states_of_one_url_do_not_meet(cache, web):
    web.files |= {"/train/0.tar": b"train", "/val/0.tar": b"val"}
    shards = [RemoteShard(f"{web.url}/{name}/0.tar") for name in ("train", "val")]
    assert [cache.fetch(shard).read_bytes() for shard in shards] == [b"train", b"val"]
    url = shards[0].url
    states = [
        RemoteShard(url),
        RemoteShard(url, 5),
        RemoteShard(url, 5, ("sha256", "ab")),
        RemoteShard(url, 5, None, "v"),
    ]
    assert len({shard.cache_name for shard in states}) == 4
    assert all(shard.cache_name.endswith("-0.tar") for shard in states)
    odd = RemoteShard("https://host/" + "../" * 40 + "a b%2f\\ö.tar?secret")
    assert set(odd.cache_name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert "secret" not in odd.cache_name


def test_a_damaged_copy_is_fetched_again(cache, served):
    cache.fetch(served[0]).write_bytes(b"cut")
    assert cache.fetch(served[0]).read_bytes() == BODIES[0]


def test_four_processes_fetch_each_shard_once(cache, served, web):
    # the first to come is held in mid-shard until all are at it
    web.faults = {f"/set/{number}.tar": [("pause", 10_000)] for number in range(3)}
    processes = [_start(cache, served[:3]) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    web.resume.set()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        found = [line for line in out.split() if line != "written"]
        assert found == [BODIES[number].hex()[:16] for number in range(3)]
    assert web.gets == {f"/set/{number}.tar": 1 for number in range(3)}
    assert len(list((cache.folder / "shards").iterdir())) == 3


@pytest.mark.parametrize("known", ["checksum", "nothing"])
def test_a_killed_download_is_completed_by_the_next_process(cache, served, web, known):
    web.faults["/set/0.tar"] = [("stall", 15_000)]
    process = _start(cache, served[:1])
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.communicate()
    assert not cache.path(served[0]).exists()
    (part,) = (cache.folder / "shards").glob("*.part")
    kept = part.stat().st_size
    assert 0 < kept <= 15_000
    checksum = ("sha256", hashlib.sha256(BODIES[0]).hexdigest())
    shard = RemoteShard(served[0].url, SIZE, checksum if known == "checksum" else None)
    if known == "checksum":
        part.rename(part.with_name(f"{shard.cache_name}.part"))
    assert cache.fetch(shard).read_bytes() == BODIES[0]
    assert web.headers[-1].get("Range") == (f"bytes={kept}-" if known == "checksum" else None)


def test_a_download_that_another_thread_does_is_left_to_it(cache, served, web):
    web.faults["/set/0.tar"] = [("pause", 10_000)]
    first = threading.Thread(target=cache.fetch, args=(served[0],))
    entered = threading.Event()
    original = web.next_fault
    web.next_fault = lambda path: (entered.set(), original(path))[1]
    first.start()
    assert entered.wait(30)
    cache.fetch_ahead(served[0], threading.Event())  # comes back at once
    assert first.is_alive()
    web.resume.set()
    assert cache.fetch(served[0]).read_bytes() == BODIES[0]
    first.join()
    assert web.gets == {"/set/0.tar": 1}


def test_the_least_recently_used_shards_go_first(cache, served):
    small = _limited(cache, 3)
    for number in (0, 1, 2):
        small.fetch(served[number])
        os.utime(small.path(served[number]), (number + 1, number + 1))
    small.fetch(served[0])  # used again
    small.fetch(served[3])
    assert _held(cache) == {"0.tar", "2.tar", "3.tar"}
    assert _limited(cache, 1).fetch(served[4]).read_bytes() == BODIES[4]
    assert _held(cache) == {"4.tar"}


def test_an_evicted_shard_stays_readable_for_who_has_it_open(cache, served):
    small = _limited(cache, 1)
    descriptor = small.open(served[0])
    small.fetch(served[1])
    assert _held(cache) == {"1.tar"}
    assert os.pread(descriptor, SIZE, 0) == BODIES[0]
    os.close(descriptor)


def test_pinned_shards_are_never_evicted(cache, served, caplog):
    small = _limited(cache, 2)
    with cache.pins() as pins:
        pins.hold(served[:2])
        for number in (0, 1, 2, 3):
            small.fetch(served[number])
            os.utime(small.path(served[number]), (number + 1, number + 1))
        assert _held(cache) == {"0.tar", "1.tar", "3.tar"}
        assert "more than cache_bytes" in caplog.text
        pins.hold(served[1:2])
        small.fetch(served[4])
        assert _held(cache) == {"1.tar", "4.tar"}
    small.fetch(served[5])
    assert "1.tar" not in _held(cache)
    assert not list((cache.folder / "pins").iterdir())


HOLD = """
import sys
from lightning_robust.shards.cache import RemoteShard, ShardCache
from lightning_robust.shards.remote import RemoteOptions

with ShardCache(RemoteOptions(cache_dir=sys.argv[1])).pins() as pins:
    pins.hold([RemoteShard(sys.argv[2], 40_000)])
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_pins_of_a_killed_process_are_gone_with_it(cache, served):
    small = _limited(cache, 1)
    command = [sys.executable, "-c", HOLD, str(cache.folder), served[0].url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    small.fetch(served[0])
    small.fetch(served[1])
    assert _held(cache) == {"0.tar", "1.tar"}
    process.kill()
    process.communicate()
    small.fetch(served[2])
    assert _held(cache) == {"2.tar"}
    assert not list((cache.folder / "pins").iterdir())


# of the server's threads, from Python 3.12 on
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_does_not_let_go_of_the_pins(cache, served):
    small = _limited(cache, 1)
    with cache.pins() as pins:
        pins.hold(served[:1])
        if (child := os.fork()) == 0:
            pins.release()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        small.fetch(served[0])
        small.fetch(served[1])
        assert "0.tar" in _held(cache)


def test_parts_of_killed_downloads_are_evicted_too(cache, served, web):
    web.files["/set/0.tar"] = b""
    with pytest.raises(ShardError):
        cache.fetch(served[0])
    part = cache.path(served[1]).with_name(f"{served[1].cache_name}.part")
    part.write_bytes(BODIES[1][:100])
    _limited(cache, 1).fetch(served[2])
    assert _held(cache) == {"2.tar"}


def test_a_cache_that_cannot_be_made(tmp_path, served):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"cannot be made.*cache_dir"):
        ShardCache(RemoteOptions(cache_dir=str(tmp_path / "file"))).fetch(served[0])


def test_a_cache_that_is_emptied_again_and_again_says_so(cache, served, monkeypatch):
    fetch = cache.fetch

    def fetch_and_lose(shard):
        path = fetch(shard)
        path.unlink()
        return path

    monkeypatch.setattr(cache, "fetch", fetch_and_lose)
    with pytest.raises(FetchError, match="raise cache_bytes"):
        cache.open(served[0])


def test_small_objects_are_fetched_and_not_kept(cache, web):
    web.files["/index.json"] = b"{}"
    assert cache.fetch_bytes(f"{web.url}/index.json", most=2) == b"{}"
    with pytest.raises(ShardError, match="more than 1 bytes"):
        cache.fetch_bytes(f"{web.url}/index.json", most=1)
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "lightning-robust" / "shards"
    assert ShardCache(RemoteOptions()).folder == default_cache()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "lightning-robust" / "shards"
