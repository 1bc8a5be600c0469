"""The HTTP server of the runner: ``/health``, ``/ready`` and ``/metrics``, each request within a deadline.

A connection carries one request. At most `MOST` are served at once; any further one is closed at once.
"""

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import attrs

from ailf.logs import Log

__all__ = ["DEADLINE", "Page", "PageServer"]

log = Log("ailf.runner")

DEADLINE = 5.0
"""Seconds for one request, from the connection to the end of the response."""

MOST = 16
"""The most requests at once."""

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of Prometheus text."""


@attrs.frozen
class Page:
    """A response.

    Attributes:
        status: The HTTP status.
        body: The body.
        content_type: The content type.
    """

    status: int
    body: bytes
    content_type: str = "application/json"

    @classmethod
    def of(cls, status: int, /, **content: Any) -> "Page":
        """Return a page of JSON."""
        return cls(status, json.dumps(content).encode() + b"\n")

    @classmethod
    def text(cls, body: str, status: int = 200) -> "Page":
        """Return a page of Prometheus text."""
        return cls(status, body.encode("utf-8", "backslashreplace"), PLAIN)


class _Request(BaseHTTPRequestHandler):
    server_version = "ailf"
    sys_version = ""
    timeout = DEADLINE
    server: "PageServer"

    def do_GET(self) -> None:
        """Send the page."""
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        """Send the head of the page."""
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        page = self.server.page(self.path.partition("?")[0])
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log a request at the level DEBUG: probes come every few seconds."""
        log.debug(None, "http %s: %r", self.address_string(), format % args)


class PageServer(HTTPServer):
    """Serves pages in threads of its own.

    Arguments:
        host: The address.
        port: The port; 0 for any free one.
        pages: Returns the page of each path.

    Raises:
        OSError: The address can't be bound.
    """

    request_queue_size = 64

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._pages = pages
        self._slots = threading.BoundedSemaphore(MOST)
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), _Request)
        self._thread = threading.Thread(target=self.serve_forever, name="ailf-http", daemon=True)

    @property
    def port(self) -> int:
        """The port at which it listens."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind, without the look-up of the host's name that the base class makes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def page(self, path: str) -> Page:
        """Return the page of a path."""
        make = self._pages.get(path)
        if make is None:
            return Page.of(404, error=f"there is {' and '.join(sorted(self._pages))}")
        return make()

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """End serving."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a request in a thread, if not too many are served."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(target=self._serve, args=(request, client_address), name="ailf-request", daemon=True).start()

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        """Serve a request. A timer ends the connection: a client that sends byte by byte never exceeds a timeout."""
        timer = threading.Timer(DEADLINE, self._cut, [request])
        timer.daemon = True
        timer.start()
        try:
            self.finish_request(request, client_address)
        except OSError as error:
            log.debug(None, "http: a request was cut off: %s", error)
        except Exception as error:  # noqa: BLE001 - a page that fails ends its own request
            log.failure(logging.ERROR, None, "http: a request failed", error=error)
        finally:
            timer.cancel()
            self.shutdown_request(request)
            self._slots.release()

    @staticmethod
    def _cut(request: socket.socket) -> None:
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)
