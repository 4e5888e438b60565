"""A till of somebody else's making: PyPI's `websockets`, without its network part, on a TLS socket.

Everything that goes over the wire can be seen and steered here: each frame as it came, how much is
read and when, whether pings are answered. Blocking, with a deadline for all that is waited for.

Not the library's own blocking client: it reads in one thread and writes in another, which a TLS
connection of Python 3.11 does not always survive (of 864 that were opened, one after the other,
against posd on a busy machine, 6 failed; of 12,464 of its asyncio client none).
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
    """The answer to a handshake that was no upgrade; header names in lower case."""

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
    """The connection is over; `code` is what posd's Close frame said, 1006 if there was none."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


@define(eq=False)
class Till:
    """One connection. `connected` is posd's greeting, `frames` are all data frames as they came."""

    _socket: ssl.SSLSocket
    _protocol: ClientProtocol
    answering: bool = True
    """Whether what the protocol answers by itself, to pings and Close frames, is sent."""
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
        """Connect and read the greeting. Raises `Refused`, and `OSError` where nobody listens."""
        till = cls.knock(daemon, path, headers, extensions, receive_buffer, seconds)
        try:
            till.connected = till.receive(seconds)
        except BaseException:
            till.hang_up()
            raise
        return till

    @classmethod
    def knock(
        cls,
        daemon: Daemon,
        path: str,
        headers: Mapping[str, str] = {},
        extensions: Sequence[ClientExtensionFactory] = (),
        receive_buffer: int | None = None,
        seconds: float = WAIT,
    ) -> Self:
        """Connect, and read nothing after posd's answer to the handshake."""
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
        """The next message. Raises `Ended`, and `TimeoutError` when none comes."""
        message = json.loads(self.receive_text(seconds), parse_float=Decimal)
        assert isinstance(message, dict), message
        return message

    def receive_text(self, seconds: float = WAIT) -> bytes:
        """The next message as it came."""
        deadline = time.monotonic() + seconds
        while not self._inbox:
            if self._protocol.state is State.CLOSED:
                raise self._end()
            self._read(deadline)
        return bytes(self._inbox.popleft().data)

    def take(self, count: int, seconds: float = WAIT) -> list[Message]:
        """The next so many messages."""
        deadline = time.monotonic() + seconds
        return [self.receive(deadline - time.monotonic()) for _ in range(count)]

    def next_is_pong(self, mark: int) -> bool:
        """Whether nothing was on its way here before the answer to a ping that is sent now."""
        self.send({"type": "ping", "id": mark})
        answer = self.receive()
        return (answer["type"], answer.get("echo")) == ("pong", mark)

    def ended(self, seconds: float = WAIT) -> Ended:
        """How the connection ends; what is said before that is in `frames`."""
        deadline = time.monotonic() + seconds
        while self._protocol.state is not State.CLOSED:
            self._read(deadline)
        return self._end()

    def send(self, message: object) -> None:
        """Send a JSON message."""
        self.send_text(json.dumps(message, separators=(",", ":")).encode())

    def send_text(self, payload: bytes) -> None:
        """Send a text frame, whatever is in it. Raises `Ended` if posd has closed the connection."""
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
        """Close as RFC 6455 §7 wants it; what posd says to that."""
        ended = self.say_goodbye()
        self.hang_up()
        return ended

    def say_goodbye(self) -> Ended:
        """Close as in `leave`, but do not hang up."""
        self._protocol.send_close(1000)
        self._write()
        return self.ended()

    def hang_up(self) -> None:
        """Be gone without a word, as often as one likes."""
        self._socket.close()

    def read_some(self, size: int, seconds: float = WAIT) -> None:
        """Read no more than so many bytes off the connection, as a till does that has no time."""
        self._read(time.monotonic() + seconds, size)

    def _shake_hands(self, headers: Mapping[str, str], deadline: float) -> None:
        request = self._protocol.connect()
        for name, value in headers.items():
            # `websockets` sends ISO-8859-1; UTF-8 is what names are written in.
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
            # Where posd has hung up already, reading says so.
            with suppress(OSError):
                self._socket.sendall(data)

    def _end(self) -> Ended:
        said = self._protocol.close_rcvd
        return Ended(1006, "") if said is None else Ended(said.code, said.reason)
