"""The other end of a connection to posd, under full control of a test: any bytes, order and timing.

It can send data that a well-behaved library would not send. All calls block, with a deadline.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, Self

from attrs import define, field, frozen

from tests.integration.harness import Daemon
from tests.integration.wire import WAIT

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0
_FINAL: Final = 0x80
_MASKED: Final = 0x80


@frozen
class Answer:
    """An HTTP answer. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        answer = json.loads(self.body)
        assert isinstance(answer, dict), answer
        return answer


@frozen
class Frame:
    """A WebSocket frame of posd."""

    opcode: int
    payload: bytes

    @property
    def json(self) -> dict[str, Any]:
        message = json.loads(self.payload)
        assert isinstance(message, dict), message
        return message


class HungUp(Exception):
    """posd ended the connection. `rest` is the data that was not read before."""

    def __init__(self, rest: bytes) -> None:
        super().__init__(f"after {rest[:200]!r}")
        self.rest = rest


@define(eq=False)
class Peer:
    """A connection to a daemon, with TLS unless it is `bare`."""

    socket: socket.socket
    _read: bytearray = field(init=False, factory=bytearray)

    @classmethod
    def dial(
        cls,
        daemon: Daemon,
        *,
        bare: bool = False,
        context: ssl.SSLContext | None = None,
        source: str | None = None,
        receive_buffer: int | None = None,
    ) -> Self:
        """Connect from an address of this machine; `bare` without TLS."""
        plain = socket.socket()
        try:
            if receive_buffer is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                plain.bind((source, 0))
            plain.settimeout(WAIT)
            plain.connect(("127.0.0.1", daemon.port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if bare:
                return cls(plain)
            context = context or daemon.tls()
            # A peer that sends no close_notify does not report a missing one either.
            return cls(context.wrap_socket(plain, server_hostname="localhost"))
        except BaseException:
            plain.close()
            raise

    def send(self, data: bytes, seconds: float = WAIT) -> None:
        """Send all data, unless posd ends the connection before. Then reading raises `HungUp`."""
        self.socket.settimeout(seconds)
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.socket.sendall(data)

    def send_endlessly(self, chunks: Iterable[bytes], seconds: float, stalled: float = 1.0) -> int:
        """Send until posd ends the connection or reads no more. Return the number of bytes that were sent."""
        taken, deadline = 0, time.monotonic() + seconds
        self.socket.settimeout(stalled)
        with suppress(OSError):
            for chunk in chunks:
                if time.monotonic() > deadline:
                    break
                self.socket.sendall(chunk)
                taken += len(chunk)
        return taken

    def receive(self, size: int, seconds: float = WAIT) -> bytes:
        """Receive exactly so many bytes. Raises `HungUp` and `TimeoutError`."""
        self._fill(lambda: len(self._read) >= size, seconds)
        data = bytes(self._read[:size])
        del self._read[:size]
        return data

    def rest(self, seconds: float = WAIT) -> bytes:
        """Receive everything until posd ends the connection. Raises `TimeoutError`."""
        try:
            self._fill(lambda: False, seconds)
        except HungUp as end:
            return end.rest
        raise AssertionError

    def head(self, seconds: float = WAIT) -> bytes:
        """Receive the head of an HTTP answer."""
        self._fill(lambda: b"\r\n\r\n" in self._read, seconds)
        return bytes(self._read).partition(b"\r\n\r\n")[0]

    def said_until(self, mark: bytes, seconds: float = WAIT) -> bytes:
        """Receive everything up to some bytes, or until posd ends the connection."""
        try:
            self._fill(lambda: mark in self._read, seconds)
        except HungUp as end:
            return end.rest
        return bytes(self._read)

    def close(self) -> None:
        """Close the connection. May be called repeatedly."""
        self.socket.close()

    def is_cut_off(self) -> bool:
        """Return whether the TCP connection has ended. TLS may have ended before."""
        plain = socket.fromfd(self.socket.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        with plain:
            plain.setblocking(False)
            try:
                while plain.recv(65536):
                    pass
            except BlockingIOError:
                return False
            except OSError:
                pass
        return True

    def end(self) -> None:
        """Send a FIN, below TLS, and keep reading."""
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- HTTP --------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> Answer:
        """Send a request and read its answer."""
        self.send(request(method, path, headers, body))
        return self.answer()

    def answer(self, seconds: float = WAIT) -> Answer:
        """Return the next HTTP answer. Raises `HungUp` and `TimeoutError`."""
        self._fill(lambda: b"\r\n\r\n" in self._read, seconds)
        head, _, rest = bytes(self._read).partition(b"\r\n\r\n")
        self._read[:] = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        status = int(first.split(" ")[1])
        body = self.receive(int(headers.get("content-length", 0)), seconds)
        return Answer(status, headers, body)

    # -- WebSocket -------------------------------------------------------------------------

    def upgrade(
        self, path: str, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """Request a WebSocket. Return the answer, which is 101 on success."""
        self.send_upgrade(path, headers)
        return self.answer()

    def send_upgrade(
        self, path: str, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> None:
        """Request a WebSocket and do not wait for the answer."""
        self.send(request("GET", path, [*handshake(), *_pairs(headers)]))

    def frame(self, seconds: float = WAIT) -> Frame:
        """Return the next frame. Raises `HungUp` and `TimeoutError`."""
        deadline = time.monotonic() + seconds
        first, length = self.receive(2, seconds)
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self.receive(size, deadline - time.monotonic()), "big")
        return Frame(first & 0x0F, self.receive(length, deadline - time.monotonic()))

    def message(self, seconds: float = WAIT) -> dict[str, Any]:
        """Return the next text message, and skip pings and pongs before it."""
        deadline = time.monotonic() + seconds
        while True:
            frame = self.frame(deadline - time.monotonic())
            if frame.opcode == TEXT:
                return frame.json
            assert frame.opcode in (PING, PONG), frame

    def close_code(self, seconds: float = WAIT) -> int:
        """Return the code of posd's Close frame, and skip data before it; 1006 without a Close frame."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                frame = self.frame(deadline - time.monotonic())
            except HungUp:
                return 1006
            if frame.opcode == CLOSE:
                return int.from_bytes(frame.payload[:2], "big")

    def _fill(self, enough: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not enough():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {seconds:.1f} s, after {bytes(self._read[:200])!r}")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                rest = bytes(self._read)
                self._read.clear()
                raise HungUp(rest)
            self._read += data


def request(
    method: str,
    path: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
) -> bytes:
    """Return an HTTP/1.1 request, with Content-Length if there is a body."""
    lines = [("Host", "localhost"), *_pairs(headers)]
    if body is not None:
        lines.append(("Content-Length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b"")


def handshake() -> list[tuple[str, str]]:
    """Return the headers of a WebSocket handshake (RFC 6455 §4.1)."""
    return [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
    ]


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    masked: bool = True,
    reserved: int = 0,
    length: int | None = None,
) -> bytes:
    """Return a frame of a client (RFC 6455 §5.2), which may be invalid.

    `reserved` are the three reserved bits. `length` replaces the length of the payload in the header. The
    mask is zero, which is allowed.
    """
    size = len(payload) if length is None else length
    flag = _MASKED if masked else 0
    head = bytes(((_FINAL if final else 0) | reserved << 4 | opcode,))
    if size <= 125:
        head += bytes((flag | size,))
    elif size < 1 << 16:
        head += bytes((flag | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((flag | 127,)) + size.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + payload


def _pairs(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(headers.items() if isinstance(headers, Mapping) else headers)
