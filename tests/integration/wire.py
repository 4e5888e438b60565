"""A till on PyPI's `websockets`, without its network part, on a TLS socket.

A test sees and controls everything: each received frame, how much is read and when, and whether pings are
answered. All calls block, with a deadline.

The library's own blocking client is not used: it reads in one thread and writes in another, which a TLS
connection of Python 3.11 does not always survive (of 864 that were opened, one after the other, against
posd on a busy machine, 6 failed; of 12,464 of its asyncio client none).
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, Final, Self

from attrs import define, field
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState, InvalidStatus
from websockets.extensions import ClientExtensionFactory
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from tests.integration.harness import Daemon

Message = dict[str, Any]

WAIT: Final = 300.0
"""Seconds for what comes at once; so many because the machine may be busy with something else."""

_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class Refused(Exception):
    """The answer to a refused handshake. Names of headers are in lower case."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"{status} {body!r}")
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Message:
        answer = json.loads(self.body)
        assert isinstance(answer, dict)
        return answer


class Ended(Exception):
    """The connection has ended. `code` is that of posd's Close frame, or 1006 without one."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


@define(eq=False)
class Till:
    """A connection. `connected` is posd's first message, `frames` are all received data frames."""

    _socket: ssl.SSLSocket
    _protocol: ClientProtocol
    answering: bool = True
    """Whether automatic answers to pings and Close frames are sent."""
    connected: Message = field(init=False, factory=dict)
    frames: list[Frame] = field(init=False, factory=list)
    pings: int = field(init=False, default=0)
    pongs: list[bytes] = field(init=False, factory=list)
    _inbox: deque[Frame] = field(init=False, factory=deque)

    @classmethod
    def dial(
        cls,
        daemon: Daemon,
        path: str,
        headers: Mapping[str, str] = {},
        *,
        extensions: Sequence[ClientExtensionFactory] = (),
        receive_buffer: int | None = None,
        seconds: float = WAIT,
    ) -> Self:
        """Connect and read `connected`. Raises `Refused`, and `OSError` if no server listens."""
        till = cls.try_handshake(daemon, path, headers, extensions, receive_buffer, seconds)
        try:
            till.connected = till.receive(seconds)
        except BaseException:
            till.hang_up()
            raise
        return till

    @classmethod
    def try_handshake(
        cls,
        daemon: Daemon,
        path: str,
        headers: Mapping[str, str] = {},
        extensions: Sequence[ClientExtensionFactory] = (),
        receive_buffer: int | None = None,
        seconds: float = WAIT,
    ) -> Self:
        """Connect, and read nothing after the answer to the handshake."""
        plain = socket.socket()
        try:
            if receive_buffer is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            plain.settimeout(seconds)
            plain.connect(("127.0.0.1", daemon.port))
            secure = daemon.tls().wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise
        uri = parse_uri(f"wss://localhost:{daemon.port}{path}")
        till = cls(secure, ClientProtocol(uri, extensions=list(extensions), max_size=None))
        try:
            till._shake_hands(headers, time.monotonic() + seconds)
        except BaseException:
            till.hang_up()
            raise
        return till

    def receive(self, seconds: float = WAIT) -> Message:
        """Return the next message. Raises `Ended`, and `TimeoutError` if there is none."""
        message = json.loads(self.receive_text(seconds), parse_float=Decimal)
        assert isinstance(message, dict), message
        return message

    def receive_text(self, seconds: float = WAIT) -> bytes:
        """Return the next message as it was received."""
        deadline = time.monotonic() + seconds
        while not self._inbox:
            if self._protocol.state is State.CLOSED:
                raise self._end()
            self._read(deadline)
        return bytes(self._inbox.popleft().data)

    def take(self, count: int, seconds: float = WAIT) -> list[Message]:
        """Return the next so many messages."""
        deadline = time.monotonic() + seconds
        return [self.receive(deadline - time.monotonic()) for _ in range(count)]

    def next_is_pong(self, mark: int) -> bool:
        """Return whether no data arrived before the answer to a ping that is sent now."""
        self.send({"type": "ping", "id": mark})
        answer = self.receive()
        return (answer["type"], answer.get("echo")) == ("pong", mark)

    def ended(self, seconds: float = WAIT) -> Ended:
        """Return how the connection ends. Earlier messages are in `frames`."""
        deadline = time.monotonic() + seconds
        while self._protocol.state is not State.CLOSED:
            self._read(deadline)
        return self._end()

    def send(self, message: object) -> None:
        """Send a JSON message."""
        self.send_text(json.dumps(message, separators=(",", ":")).encode())

    def send_text(self, payload: bytes) -> None:
        """Send a text frame with any content. Raises `Ended` if posd has closed the connection."""
        try:
            self._protocol.send_text(payload)
        except InvalidState as error:
            raise self._end() from error
        self._write()

    def send_fragments(self, *parts: bytes) -> None:
        """Send one text message in several frames."""
        first, *others = parts
        self._protocol.send_text(first, fin=False)
        for number, part in enumerate(others, 1):
            self._protocol.send_continuation(part, fin=number == len(others))
        self._write()

    def send_binary(self, payload: bytes) -> None:
        self._protocol.send_binary(payload)
        self._write()

    def send_ping(self, payload: bytes) -> bytes:
        """Send a protocol ping and wait for its answer."""
        self._protocol.send_ping(payload)
        self._write()
        deadline = time.monotonic() + WAIT
        while not self.pongs:
            self._read(deadline)
        return self.pongs.pop()

    def leave(self) -> Ended:
        """Close as RFC 6455 §7 requires. Return posd's answer."""
        ended = self.say_goodbye()
        self.hang_up()
        return ended

    def say_goodbye(self) -> Ended:
        """Close as in `leave`, but keep the TCP connection."""
        self._protocol.send_close(1000)
        self._write()
        return self.ended()

    def hang_up(self) -> None:
        """Close the TCP connection. May be called repeatedly."""
        self._socket.close()

    def read_some(self, size: int, seconds: float = WAIT) -> None:
        """Read at most so many bytes, like a slow till."""
        self._read(time.monotonic() + seconds, size)

    def _shake_hands(self, headers: Mapping[str, str], deadline: float) -> None:
        request = self._protocol.connect()
        for name, value in headers.items():
            # `websockets` sends ISO-8859-1, but names are written in UTF-8.
            request.headers[name] = value.encode().decode("latin-1")
        self._protocol.send_request(request)
        self._write()
        while self._protocol.state is State.CONNECTING:
            failure = self._protocol.handshake_exc
            if isinstance(failure, InvalidStatus):
                answer = failure.response
                named = {name.lower(): value for name, value in answer.headers.raw_items()}
                body = bytes(answer.body or b"")
                raise Refused(answer.status_code, answer.reason_phrase, named, body)
            if failure is not None:
                raise ConnectionError("no answer to the handshake") from failure
            self._read(deadline)

    def _read(self, deadline: float, size: int = 65536) -> None:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError(f"nothing came; so far there were {len(self.frames)} frames")
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(size)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._sort(event)
        if self.answering:
            self._write()

    def _sort(self, frame: Frame) -> None:
        if frame.opcode in _DATA:
            self.frames.append(frame)
            self._inbox.append(frame)
        elif frame.opcode is Opcode.PING:
            self.pings += 1
        elif frame.opcode is Opcode.PONG:
            self.pongs.append(bytes(frame.data))

    def _write(self) -> None:
        self._socket.settimeout(WAIT)
        for data in self._protocol.data_to_send():
            # If posd has closed the connection already, reading reports it.
            with suppress(OSError):
                self._socket.sendall(data)

    def _end(self) -> Ended:
        said = self._protocol.close_rcvd
        return Ended(1006, "") if said is None else Ended(said.code, said.reason)
