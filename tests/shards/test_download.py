from __future__ import annotations

import errno
import hashlib
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import download as module
from lightning_robust.shards.download import Expected, StoppedError, download
from lightning_robust.shards.remote import FetchError, MissingError, RemoteOptions, open_object

DATA = np.random.default_rng(0).bytes(40_000)
OTHER = np.random.default_rng(1).bytes(40_000)
SHA = ("sha256", hashlib.sha256(DATA).hexdigest())
ANY = Expected()
QUICK = RemoteOptions(timeout=5, attempts=3, backoff=0)


@pytest.fixture
def get(web, tmp_path):
    web.files["/a.tar"] = DATA

    def run(expected=ANY, options=QUICK, path="/a.tar", **settings):
        target = tmp_path / "a.tar"
        target.unlink(missing_ok=True)
        download(open_object(web.url + path, options), target, expected, options, **settings)
        assert not (tmp_path / "a.tar.part").exists()
        return target.read_bytes()

    return run


def _ranges(web):
    return [headers.get("Range") for headers in web.headers]


@pytest.mark.parametrize("expected", [Expected(), Expected(len(DATA), SHA)])
@pytest.mark.parametrize(
    "faults",
    [
        [],
        [("cut", 10_000), ("cut", 5_000), ("cut", 1), ("cut", 7_000)],
        [("cut", 0), ("cut", 0)],
        [500, 503],
        [429, ("cut", 20_000), 408, 502],
        [("cut", 39_999)],
    ],
)
def test_a_cut_or_a_busy_server_is_overcome(web, get, faults, expected):
    web.faults["/a.tar"] = list(faults)
    assert get(expected) == DATA
    assert web.gets["/a.tar"] == len(faults) + 1
    assert web.sent["/a.tar"] == len(DATA)  # no byte twice


def test_a_server_without_ranges_begins_anew(web, get):
    web.ranges = False
    web.faults["/a.tar"] = [("cut", 10_000), ("cut", 30_000)]
    assert get() == DATA
    assert web.sent["/a.tar"] == 10_000 + 30_000 + len(DATA)


def test_without_a_version_or_checksum_nothing_is_spliced(web, get):
    web.etags = False
    web.faults["/a.tar"] = [("cut", 10_000)]
    assert get() == DATA
    assert _ranges(web) == [None, None]
    web.faults["/a.tar"] = [("cut", 10_000)]
    assert get(Expected(checksum=SHA)) == DATA
    assert _ranges(web)[2:] == [None, "bytes=10000-"]


@pytest.mark.parametrize("heeds", [True, False])
def test_an_object_that_changes_between_two_reads_is_not_spliced(web, get, heeds):
    web.heeds_if_range = heeds
    web.faults["/a.tar"] = [("cut", 10_000)]
    web.after_body = lambda path: web.files.update({path: OTHER})
    assert get() == OTHER


def test_a_splice_that_only_the_checksum_sees_is_read_again(web, get, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(OTHER[:15_000])
    assert get(Expected(len(DATA), SHA)) == DATA
    assert _ranges(web) == ["bytes=15000-", None]


@pytest.mark.parametrize("left", [0, 15_000, len(DATA), len(DATA) + 1])
def test_what_a_killed_process_left_is_gone_on_from(web, get, tmp_path, left):
    (tmp_path / "a.tar.part").write_bytes((DATA + b"x")[:left])
    assert get(Expected(len(DATA), SHA)) == DATA
    assert web.sent["/a.tar"] == (len(DATA) - left if left <= len(DATA) else len(DATA))
    version = open_object(web.url + "/a.tar", QUICK).stat().version
    (tmp_path / "a.tar.part").write_bytes(DATA[:left])
    assert get(Expected(version=version)) == DATA
    (tmp_path / "a.tar.part").write_bytes(OTHER[:left])
    assert get(Expected(version='"of another state"')) == DATA
    (tmp_path / "a.tar.part").write_bytes(OTHER[:left])
    assert get() == DATA


def test_a_stalled_server_is_left_after_the_time_out(web, get):
    web.faults["/a.tar"] = [("stall", 12_000), ("stall", 0)]
    assert get(options=RemoteOptions(timeout=0.2, attempts=3, backoff=0)) == DATA
    assert web.gets["/a.tar"] == 3


@pytest.mark.parametrize("fault", [401, 403, 404, 410, 400])
def test_what_another_try_does_not_change_stops_at_once(web, get, fault):
    web.faults["/a.tar"] = [fault] * 5
    with pytest.raises(FetchError, match=rf"a\.tar': the server answers {fault}"):
        get()
    assert web.gets["/a.tar"] == 1


@pytest.mark.parametrize(("fault", "said"), [(503, "answers 503"), (("cut", 0), "0 of 40000 bytes came")])
def test_tries_in_a_row_that_bring_nothing_are_counted(web, get, fault, said):
    web.faults["/a.tar"] = [fault, ("cut", 5_000)] + [fault] * 9
    with pytest.raises(FetchError, match=rf"{'5000 of' if said[0] == '0' else said}.*after 3 tries in a row"):
        get()
    # one, then one that brought bytes, then three in vain
    assert web.gets["/a.tar"] == 5


def test_a_server_that_always_cuts_at_one_place_and_has_no_ranges_is_left(web, get):
    web.ranges = False
    web.faults["/a.tar"] = [("cut", 20_000)] * 99
    with pytest.raises(FetchError, match="20000 of 40000"):
        get()
    assert web.gets["/a.tar"] == 4


def test_the_first_failure_is_said_aloud(web, get, caplog):
    web.faults["/a.tar"] = [503, 503]
    with caplog.at_level("INFO", module.__name__):
        get()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[0] == f"{web.url}/a.tar: the server answers 503 Service Unavailable; trying again."


def test_no_server(get, web):
    with pytest.raises(FetchError, match=r"no connection .*after 3 tries"):
        download(open_object("http://127.0.0.1:1/a.tar", QUICK), Path("none"), Expected(), QUICK)


def test_a_host_that_does_not_exist_is_not_asked_again(monkeypatch):
    asked = []

    def resolve(host, *_args, **_settings):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(FetchError, match="no such host"):
        download(open_object("https://nowhere.example/a.tar", QUICK), Path("none"), Expected(), QUICK)
    assert asked == ["nowhere.example"]


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (Expected(size=39_999), "has 40000 bytes; the index says 39999"),
        (Expected(checksum=("sha256", "0" * 64)), "has the sha256 .*; the index says 0000"),
        (Expected(checksum=("md5", "0" * 32)), "has the md5"),
        (Expected(most=100), "more than 100 bytes"),
    ],
)
def test_other_bytes_than_expected(web, get, tmp_path, expected, said):
    with pytest.raises(ShardError, match=said) as caught:
        get(expected)
    assert not isinstance(caught.value, FetchError)
    assert not (tmp_path / "a.tar").exists()
    assert web.gets["/a.tar"] == 1


def test_waits_grow_up_to_a_limit_and_heed_the_server(monkeypatch):
    waits, tries = [], iter([0.0] * 12 + [7.0, 1e6])
    monkeypatch.setattr("tenacity.nap.sleep_using_event", lambda _: waits.append)

    def act():
        if (wait := next(tries, None)) is None:
            return "done"
        raise module.TransientError("busy", wait=wait)

    assert module.persist(act, "http://x/", RemoteOptions(attempts=99, backoff=0.01)) == "done"
    for number, found in enumerate(waits[:12]):
        longest = min(60, 0.01 * 2 ** (number + 1))
        assert longest / 4 <= found <= longest
    assert waits[12] >= 7
    assert waits[13] == 60


def test_a_download_can_be_stopped_and_keeps_what_came(web, get, tmp_path):
    stop = threading.Event()
    web.faults["/a.tar"] = [("cut", 10_000)]
    web.after_body = lambda path: stop.set()
    with pytest.raises(StoppedError):
        get(stop=stop)
    assert (tmp_path / "a.tar.part").is_file()


def test_a_full_disk_is_not_taken_for_the_network(get, monkeypatch, tmp_path):
    def full(self, *_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ShardError, match=r"No space left.*cache_bytes"):
        get()


def test_headers_go_to_the_named_host_only(web, get):
    from support.web import web_server

    options = RemoteOptions(storage_options={"headers": {"Authorization": "Bearer secret"}}, backoff=0)
    web.redirects = {"/here": web.url + "/a.tar"}
    assert get(options=options, path="/here") == DATA
    assert [headers.get("Authorization") for headers in web.headers] == ["Bearer secret"] * 2
    with web_server() as other:
        other.files["/a.tar"] = DATA
        web.redirects = {"/there": other.url + "/a.tar"}
        assert get(options=options, path="/there") == DATA
        assert other.headers[0].get("Authorization") is None
    web.redirects = {"/ftp": "ftp://host/a.tar", "/file": "file:///etc/passwd"}
    for path in ("/ftp", "/file"):
        with pytest.raises(FetchError):
            get(path=path)


def test_secrets_are_not_shown(web, get):
    with pytest.raises(MissingError) as caught:
        get(path="/none.tar?signature=secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="as a header") as refused:
        open_object("https://me:secret@host/a.tar", QUICK)
    assert "secret" not in str(refused.value)


def test_a_store_is_read_in_blocks_and_watched_for_changes(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setattr("lightning_robust.shards.remote._BLOCK", 7_000)
    store = fsspec.filesystem("memory")
    store.pipe("/blocks/a.tar", DATA)
    target = tmp_path / "a.tar"
    source = open_object("memory://blocks/a.tar", QUICK)
    real, failures = source._store.cat_file, [OSError("reset"), TimeoutError(), None, OSError("reset")]

    def unsteady(path, start, end):
        if start and failures and (error := failures.pop(0)):
            raise error
        return real(path, start=start, end=end)

    monkeypatch.setattr(source._store, "cat_file", unsteady, raising=False)
    download(source, target, Expected(checksum=SHA), QUICK)
    assert target.read_bytes() == DATA
    assert not failures

    changes = [True]

    def changing(path, start, end):
        data = real(path, start=start, end=end)
        if start and changes:
            changes.pop()
            store.pipe("/blocks/a.tar", OTHER)
        return data

    monkeypatch.setattr(source._store, "cat_file", changing, raising=False)
    download(source, target, Expected(), QUICK)
    assert target.read_bytes() == OTHER
    with pytest.raises(MissingError, match="does not exist"):
        download(open_object("memory://blocks/none.tar", QUICK), target, Expected(), QUICK)


class NoCredentialsError(Exception):
    """As botocore has it."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("denied"), "may not be read.*storage_options"),
        (NoCredentialsError(), "may not be read"),
        (ValueError("bad endpoint"), "driver .* failed.*bad endpoint"),
        (RuntimeError("odd"), "after 3 tries"),
    ],
)
def test_errors_of_drivers(error, said, monkeypatch, tmp_path):
    source = open_object("memory://bucket/a.tar", QUICK)

    def fail(*_args, **_settings):
        raise error

    monkeypatch.setattr(source._store, "info", fail, raising=False)
    with pytest.raises(FetchError, match=said):
        download(source, tmp_path / "a.tar", Expected(), QUICK)
