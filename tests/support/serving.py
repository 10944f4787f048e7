"""A local HTTP server that tests script: what it serves, where it cuts the connection, and what it was asked for."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    range: str | None
    headers: dict[str, str]


@dataclass
class Site:
    """Routes may be changed while the server runs."""

    address: str = ""
    """`http://127.0.0.1:PORT`"""
    files: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    """Answered in place of the file."""
    error_codes: dict[str, str] = field(default_factory=dict)
    """What a hub says in `X-Error-Code` beside the status."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """For each further request of a path: how many bytes of the answer's body before the connection is closed."""
    without_ranges: set[str] = field(default_factory=set)
    """Paths whose Range header is ignored, as some servers do."""
    password: str = ""
    """`user:password` in base64; without it everything is open."""
    asked: list[Asked] = field(default_factory=list)

    def of(self, path: str) -> list[Asked]:
        return [a for a in self.asked if a.path == path and a.method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        site, path = self.site, self.path.partition("?")[0]
        asked_range = self.headers.get("Range")
        site.asked.append(Asked(self.command, path, asked_range, dict(self.headers)))
        if site.password and self.headers.get("Authorization") != f"Basic {site.password}":
            return self._empty(401)
        if path in site.statuses:
            return self._empty(site.statuses[path], {"X-Error-Code": site.error_codes.get(path, "")})
        if path not in site.files:
            return self._empty(404)
        data = site.files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start, partial = 0, False
        found = re.fullmatch(r"bytes=(\d+)-", asked_range or "")
        if found and path not in site.without_ranges and self.headers.get("If-Range") in (None, etag):
            start, partial = int(found[1]), True
            if start >= len(data):
                return self._empty(416, {"Content-Range": f"bytes */{len(data)}"})
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Type", site.types.get(path, "application/octet-stream"))
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", etag)
        self.end_headers()
        if not body:
            return None
        cuts = site.cuts.get(path, [])
        send = data[start:]
        if cuts:
            send = send[: cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(send)
        return None

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed or cancelled hang up: that is what the tests do."""


@contextmanager
def serving() -> Iterator[Site]:
    """A site on a free port of this machine, until the block ends."""
    site = Site()
    handler = type("Handler", (_Handler,), {"site": site})
    server = _Server(("127.0.0.1", 0), handler)
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
