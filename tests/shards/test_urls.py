from __future__ import annotations

import importlib
import sys

import pytest

from lightning_robust.errors import InputError, ShardError, UnsupportedError
from lightning_robust.shards.paths import expand_shards
from lightning_robust.shards.remote import RemoteOptions, open_object
from lightning_robust.shards.urls import base_name, folder_of, is_url, name_beside, shown


@pytest.mark.parametrize(
    "name",
    [
        "pipe:cat a.tar",
        "pipe://cat a.tar",
        "file:///etc/a.tar",
        "local:///etc/a.tar",
        "data:///a.tar",
        "simplecache::s3://bucket/a.tar",
        "zip://a.tar::https://host/b.zip",
        "https://host/a.tar::file:///etc/passwd",
        "git://repo:main@a.tar",
        "nosuchscheme://host/a.tar",
        "jupyter://host/a.tar",
    ],
)
def test_names_that_run_wrap_or_are_local_are_refused(name):
    assert is_url(name)
    with pytest.raises(UnsupportedError, match=r"not read|cannot be read"):
        [open_object(url, RemoteOptions()) for url in expand_shards(name)]


@pytest.mark.parametrize(
    ("scheme", "module", "said"),
    [("s3", "s3fs", r"\[s3\]"), ("gs", "gcsfs", r"\[gcs\]"), ("hf", "huggingface_hub", r"\[hf\]")],
)
def test_a_missing_driver_is_named_with_its_command(scheme, module, said, monkeypatch):
    importlib.import_module("fsspec.registry")
    monkeypatch.setitem(sys.modules, module, None)
    for name in (scheme, "s3a", "gcs"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    with pytest.raises(UnsupportedError, match=f"pip install 'lightning-robust{said}'"):
        expand_shards(f"{scheme}://bucket/s-*.tar")


def test_braces_of_urls_are_expanded_and_kept_in_order():
    assert expand_shards("https://host/s-{000..001}.tar?key=a/b") == [
        f"https://host/s-{number}.tar?key=a/b" for number in ("000", "001")
    ]
    assert expand_shards(["s3://bucket/{a,b}.tar"]) == ["s3://bucket/a.tar", "s3://bucket/b.tar"]
    with pytest.raises(InputError, match="named twice"):
        expand_shards("gs://bucket/{a,a}.tar")
    with pytest.raises(UnsupportedError, match="a web server cannot list"):
        expand_shards("https://host/s-*.tar")


def test_globs_and_folders_of_a_store_are_listed_in_natural_order():
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe({f"/listed/s-{number}.tar": b"x" for number in (10, 9, 100)} | {"/listed/index.json": b"{}"})
    expected = [f"memory://listed/s-{number}.tar" for number in (9, 10, 100)]
    assert expand_shards("memory://listed/s-*.tar") == expected
    assert expand_shards("memory://listed/") == expected
    assert expand_shards("memory://listed/s-[19]*.tar") == expected
    with pytest.raises(ShardError, match="No shard matches 'memory://listed/t-"):
        expand_shards("memory://listed/t-*.tar")


def test_parts_of_a_url():
    url = "https://user:secret@host:8/set/s%20-0.tar?X-Signature=secret/x#f"
    assert (base_name(url), folder_of(url)) == ("s%20-0.tar", "https://user:secret@host:8/set/")
    assert shown(url) == "https://host:8/set/s%20-0.tar"
    assert base_name("s3://bucket/a?b.tar") == "a?b.tar"
    assert base_name("/local/a.tar") == "a.tar"
    assert not is_url("/local/a.tar")
    assert not is_url("C:\\shards\\a.tar")


def test_names_in_an_index_stay_beside_it():
    folder = "https://host/set/"
    for url in ("a.tar", "./a.tar", "https://host/set/a.tar"):
        assert name_beside(folder, url) == "a.tar"
    for url in (
        "../a.tar",
        "..",
        "/etc/a.tar",
        "sub/a.tar",
        "%2e%2e%2fa.tar",
        "..%5ca.tar",
        "https://other/set/a.tar",
        "file:///a.tar",
        "pipe:cat",
        "a.tar?x",
        "",
        None,
        3,
    ):
        with pytest.raises(ShardError, match="expected a file beside the index"):
            name_beside(folder, url)


@pytest.mark.parametrize("wrong", [{"cache_bytes": 0}, {"timeout": 0}, {"attempts": 0}, {"connections": 0}])
def test_options_that_mean_nothing(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        RemoteOptions(**wrong)
