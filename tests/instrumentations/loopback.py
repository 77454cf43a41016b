"""A small HTTP server on this machine, for the stand-ins beside."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self


class Loopback:
    """A server on a free port of 127.0.0.1, which runs while it is entered."""

    def __init__(self, handler: type[LoopbackHandler]) -> None:
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """One thread a request, and every one of them ended at the close."""

    daemon_threads = False
    owner: Any

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away amid a stream: that is what some tests do."""


class LoopbackHandler(BaseHTTPRequestHandler):
    """One request; the connection closes after it, so that no thread waits for a second one."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def read_body(self) -> bytes:
        """Read the request's body."""
        self.close_connection = True
        body = self.rfile.read(int(self.headers["Content-Length"]))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def send(self, status: int, content_type: str, content: bytes) -> None:
        """Answer in one piece."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the standard library's name)
        """Write no line a request."""
