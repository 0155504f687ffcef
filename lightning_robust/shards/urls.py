"""Shards that are named by a URL: which schemes are read, and the parts of such a name. Pure text."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from lightning_robust.errors import ShardError, UnsupportedError

WEB = ("http", "https")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)|^(pipe):")
# these run a program, read the local machine, or unwrap another name; a shard list must not be able to do that
_REFUSED = frozenset(
    {
        "pipe",
        "file",
        "local",
        "asynclocal",
        "data",
        "dir",
        "git",
        "jupyter",
        "jlab",
        "dask",
        "generic",
        "reference",
        "cached",
        "filecache",
        "blockcache",
        "simplecache",
        "zip",
        "tar",
        "libarchive",
        "asyncwrapper",
        "async_wrapper",
        "pyscript",
    }
)


def is_url(name: str) -> bool:
    """Tell a URL (or ``pipe:``, which is refused later) from a local path."""
    return _SCHEME.match(name) is not None


def scheme_of(url: str) -> str:
    """Scheme of a URL.

    Raises:
        UnsupportedError: the scheme runs a program, wraps another URL or reads local files.
    """
    match = _SCHEME.match(url)
    scheme = (match[1] or match[2]).lower() if match else ""
    if scheme in _REFUSED or "::" in url:
        raise UnsupportedError(
            f"Shards at {shown(url)!r} are not read: {scheme or 'this'!r} is no remote store. Give a local path, or a "
            "URL of http, https, s3, gs, hf or another store that fsspec knows."
        )
    return scheme


def folder_of(url: str) -> str:
    """URL of the folder of a shard, with its slash and without a query."""
    return _without_query(url).rpartition("/")[0] + "/"


def base_name(path: str) -> str:
    """File name of a shard, given by path or URL."""
    return (_without_query(path) if is_url(path) else path).rpartition("/")[2]


def shown(url: str) -> str:
    """Form of a URL for messages and logs: without user, password, query and fragment, which may be secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.netloc else url


def name_beside(folder: str, url: object) -> str:
    """File name of a shard that an index lists, which must lie in the folder of that index.

    Args:
        folder: URL of the index's folder, with its slash.
        url: as the index has it: relative, or absolute and in this folder.

    Raises:
        ShardError: the shard lies elsewhere.
    """
    name = url.removeprefix(folder).removeprefix("./") if isinstance(url, str) else ""
    plain = unquote(name)
    if not name or plain in {".", ".."} or any(sign in plain for sign in "/\\?#:\0"):
        raise ShardError(
            f"The index of {shown(folder)!r} lists the shard {url!r}; expected a file beside the index. "
            "An index may not name shards elsewhere: name those by their own URLs."
        )
    return name


def _without_query(url: str) -> str:
    return url.partition("?")[0].partition("#")[0] if url.lower().startswith(WEB) else url
