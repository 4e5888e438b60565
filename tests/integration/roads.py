"""Tills without WebSocket, on a TLS socket: server-sent events and polls."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPResponse
from typing import Any, Self

from attrs import define, field

from tests.integration.harness import Daemon
from tests.integration.wire import WAIT
from tests.server_sent import ServerSent, events_in


@define(eq=False)
class Response:
    """An HTTP answer that is read in parts. `status` is known at once."""

    _socket: socket.socket
    _answer: HTTPResponse
    _events: list[ServerSent] = field(init=False, factory=list)
    _unfinished: bytes = field(init=False, default=b"")

    @classmethod
    def of(
        cls,
        daemon: Daemon,
        path: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        body: bytes = b"",
        receive_buffer: int | None = None,
    ) -> Self:
        """Send a request, and wait for the head of the answer."""
        asking = ask(daemon, path, headers, method=method, body=body, receive_buffer=receive_buffer)
        answer = HTTPResponse(asking, method=method)
        answer.begin()
        return cls(asking, answer)

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields, with names in lower case."""
        return {name.lower(): value for name, value in self._answer.getheaders()}

    @property
    def text(self) -> str:
        """Return the whole body of an answer that ends."""
        return self._answer.read().decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def take(self, count: int) -> list[ServerSent]:
        """Return the next so many events."""
        deadline = time.monotonic() + WAIT
        while len(self._events) < count:
            if time.monotonic() > deadline or not self.read_some():
                raise AssertionError(f"only {len(self._events)} of {count} events")
        taken, self._events = self._events[:count], self._events[count:]
        return taken

    def take_all(self) -> list[ServerSent]:
        """Return the events that have arrived so far."""
        taken, self._events = self._events, []
        return taken

    def read_some(self, size: int = 65536) -> bool:
        """Read available data. Return False at the end, which must be a clean one."""
        some = self._answer.read1(size)
        whole, end, self._unfinished = (self._unfinished + some).rpartition(b"\n\n")
        self._events += events_in(whole + end)
        return bool(some)

    def read_to_the_end(self) -> list[ServerSent]:
        """Return all remaining events."""
        while self.read_some():
            pass
        return self._events

    def hang_up(self) -> None:
        self._answer.close()
        self._socket.close()


def ask(
    daemon: Daemon,
    path: str,
    headers: Mapping[str, str],
    *,
    method: str = "GET",
    body: bytes = b"",
    receive_buffer: int | None = None,
) -> ssl.SSLSocket:
    """Return a socket on which a request was sent and nothing was read."""
    plain = socket.socket()
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.settimeout(WAIT)
    try:
        plain.connect(("127.0.0.1", daemon.port))
        secured = daemon.tls().wrap_socket(plain, server_hostname="localhost")
    except BaseException:
        plain.close()
        raise
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    secured.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return secured


def once(daemon: Daemon, path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
    """Return status and JSON of one answer."""
    response = Response.of(daemon, path, headers)
    with closing(response._socket):
        return response.status, response.json
