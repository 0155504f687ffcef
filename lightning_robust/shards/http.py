"""An object on a web server, read with Range and If-Range.

By urllib: fsspec's HTTP file system gives up at the first cut of a connection, and its event loop does not survive the
fork of a loader worker.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from lightning_robust.errors import InputError
from lightning_robust.shards.remote import FetchError, MissingError, ObjectInfo, RemoteOptions, Stream, TransientError
from lightning_robust.shards.urls import WEB, shown

_CHUNK = 1 << 20
_AGAIN = {408, 425, 429}
_MISSING = {401, 403, 404, 410}
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class HttpObject:
    """An object on a web server; ``storage_options["headers"]`` go to its host only, not along a redirect."""

    def __init__(self, url: str, options: RemoteOptions) -> None:
        if "@" in urlsplit(url).netloc:
            raise InputError(
                f"The URL {shown(url)!r} holds a user or password: give them as a header instead, "
                "RemoteOptions(storage_options={'headers': {'Authorization': ...}})."
            )
        self.url = url
        self._timeout = options.timeout
        self._headers = dict((options.storage_options or {}).get("headers", {}))

    def stat(self) -> ObjectInfo:
        """Ask for size and version."""
        # not HEAD: a URL that was signed for GET refuses it
        with self._request({"Range": "bytes=0-0"}) as response:
            return _info(response)

    @contextmanager
    def read(self, offset: int, version: str | None) -> Iterator[Stream]:
        """Read from an offset on."""
        asked = {} if offset == 0 else {"Range": f"bytes={offset}-"}
        if asked and version is not None:
            asked["If-Range"] = version
        with self._request(asked) as response:
            if (coding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise FetchError(
                    f"{shown(self.url)!r} is sent encoded ({coding}), although plain bytes were asked for."
                )
            # 416: it is shorter than what was read before, which is then given up
            chunks = _chunks(response) if response.status != 416 else iter(())
            yield Stream(_start(response), _info(response), chunks)

    @contextmanager
    def _request(self, headers: dict[str, str]) -> Iterator[Any]:
        # unredirected headers stay behind when a server sends us to another place
        request = urllib.request.Request(self.url, headers=headers | {"Accept-Encoding": "identity"})
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        response = self._answer(request)
        with response:
            yield response

    def _answer(self, request: urllib.request.Request) -> Any:
        try:
            return _OPENER.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return error
            with error:
                raise self._refusal(error) from error
        except FetchError:
            raise
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise FetchError(f"The certificate of {shown(self.url)!r} is not valid: {error.reason}.") from error
            if isinstance(error.reason, socket.gaierror) and error.reason.errno == socket.EAI_NONAME:
                raise FetchError(f"{shown(self.url)!r}: there is no such host. Check the URL.") from error
            raise TransientError(f"no connection ({error.reason})") from error
        except (http.client.InvalidURL, ValueError) as error:
            raise FetchError(f"{shown(self.url)!r} is no address: {error}.") from error
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"no answer ({error!r})") from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        said = f"{shown(self.url)!r}: the server answers {error.code} {error.reason}"
        if error.code in _AGAIN or error.code >= 500:
            wait = error.headers.get("Retry-After", "")
            return TransientError(
                f"the server answers {error.code} {error.reason}", wait=int(wait) if wait.isdigit() else 0
            )
        if error.code in _MISSING:
            return MissingError(f"{said}. Check the URL, and what it takes to be let in.")
        return FetchError(f"{said}, which another try will not change.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        target = urlsplit(newurl)
        if target.scheme not in WEB or (req.type == "https" and target.scheme == "http"):
            fp.close()
            raise FetchError(f"{shown(req.full_url)!r} redirects to {shown(newurl)!r}, which is not as safe.")
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and target.netloc == urlsplit(req.full_url).netloc:
            for name, value in req.unredirected_hdrs.items():
                if name != "Host":
                    new.add_unredirected_header(name, value)
        return new


# reads https_proxy and the like; no handler for file: or data:
_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler(),
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _Redirects(),
):
    _OPENER.add_handler(_handler)
_OPENER.addheaders = [("User-Agent", "lightning-robust")]


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            said = "the server sent nothing for too long" if isinstance(error, TimeoutError) else repr(error)
            raise TransientError(f"the connection broke ({said})") from error
        if not chunk:
            return
        yield chunk


def _start(response: Any) -> int:
    match = _RANGE.fullmatch(response.headers.get("Content-Range", "")) if response.status == 206 else None
    return int(match[1]) if match and match[1] else 0


def _info(response: Any) -> ObjectInfo:
    headers = response.headers
    if response.status == 200:
        length = headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else None
    else:
        match = _RANGE.fullmatch(headers.get("Content-Range", ""))
        size = int(match[2]) if match and match[2].isdigit() else None
    etag = headers.get("ETag")
    # a weak tag does not promise equal bytes
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    return ObjectInfo(size, version)
