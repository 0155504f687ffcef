"""A web server on loopback that serves bytes, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Web:
    """Serves ``files`` by path; ``faults`` holds, by path, what happens to the next requests for a body.

    A fault is a status code, ``("cut", n)`` to close after n bytes of the body, ``("stall", n)`` to send nothing more
    after n bytes until the server stops, or ``("pause", n)`` to send the rest when ``resume`` is set. None is no fault.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Any]] = {}
        self.ranges = True
        self.etags = True
        self.heeds_if_range = True
        self.gets: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.redirects: dict[str, str] = {}
        self.after_body: Callable[[str], None] = lambda path: None
        self.stopping, self.resume, self.stalled = threading.Event(), threading.Event(), threading.Event()
        self.url = ""
        self._lock = threading.Lock()

    def add_folder(self, folder: Path, prefix: str) -> str:
        """Serve the files of a folder; returns its URL with a slash."""
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("."):
                self.files[f"/{prefix}/{path.name}"] = path.read_bytes()
        return f"{self.url}/{prefix}/"

    def next_fault(self, path: str) -> Any:
        with self._lock:
            faults = self.faults.get(path, [])
            return faults.pop(0) if faults else None


@contextmanager
def web_server() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            web.headers.append(dict(self.headers))
            if path in web.redirects:
                self._empty(302, {"Location": web.redirects[path]})
                return
            data = web.files.get(path)
            if data is None:
                self._empty(404, {})
                return
            asked = self.headers.get("Range", "")
            probe = asked == "bytes=0-0"
            fault = None if probe else web.next_fault(path)
            if not probe:
                web.gets[path] += 1
            if isinstance(fault, int):
                self._empty(fault, {"Retry-After": "0"})
                return
            self._body(path, data, asked, fault)

        def _body(self, path: str, data: bytes, asked: str, fault: Any) -> None:
            etag = f'"{hashlib.md5(data).hexdigest()}"'
            start, status, headers = 0, 200, {}
            if web.etags:
                headers["ETag"] = etag
            unchanged = not web.heeds_if_range or self.headers.get("If-Range", etag) == etag
            if web.ranges and asked and unchanged:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last or len(data)), len(data) - 1)
                if start >= len(data):
                    self._empty(416, {"Content-Range": f"bytes */{len(data)}"})
                    return
                status, headers["Content-Range"] = 206, f"bytes {start}-{end}/{len(data)}"
                body = data[start : end + 1]
            else:
                body = data
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            kind, count = fault or ("", len(body))
            # counted first: a client that has all bytes may look before this thread goes on
            web.sent[path] += len(body[:count])
            self.wfile.write(body[:count])
            if kind == "pause":
                web.resume.wait(60)
                self.wfile.write(body[count:])
            elif kind == "stall":
                web.stalled.set()
                web.stopping.wait(60)
            self.close_connection = kind in {"cut", "stall"}
            if asked != "bytes=0-0":
                web.after_body(path)

        def _empty(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": "0"}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = True

        def handle_error(self, *_: object) -> None:
            """A client that was killed is no error of the server."""

    server = Server(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        web.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
