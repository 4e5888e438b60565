"""The tills of a shop's day: each follows the stream with its own transport, and records the events."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from typing import Any, ClassVar

from attrs import define, field

from posd.protocol import jsontext
from tests.integration.harness import Daemon
from tests.integration.roads import Response
from tests.integration.wire import Till as Socket


@define(eq=False)
class Follower(ABC):
    """A till. `heard` has all its events, and `position` is its position.

    `reached` waits until the database has its position: a till that leaves and does not name it later
    resumes there.
    """

    posd: Daemon
    slug: str
    key: str
    reached: Callable[[int], object]
    heard: list[bytes] = field(factory=list)
    position: int = 0
    is_there: bool = False
    names_position: ClassVar[bool] = False

    def come(self) -> None:
        """Connect, and resume."""
        self._connect()
        self.is_there = True

    def go(self) -> None:
        """Leave. Data under way is not read."""
        if not self.names_position:
            self.reached(self.position)
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connection. May be called repeatedly."""
        if self.is_there:
            self.is_there = False
            self._hang_up()

    def follow(self, head: int) -> None:
        """Receive the events up to this position, and acknowledge."""
        if self.position >= head:
            return
        while self.position < head:
            for message in self._next():
                self.heard.append(message)
                self.position = json.loads(message)["id"]
        self._acknowledge()

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key}

    @abstractmethod
    def _connect(self) -> None: ...

    @abstractmethod
    def _hang_up(self) -> None: ...

    @abstractmethod
    def _next(self) -> list[bytes]:
        """Return the next event as it was received."""

    @abstractmethod
    def _acknowledge(self) -> None: ...


@define(eq=False)
class SocketTill(Follower):
    """A till with WebSocket, which does not name its position."""

    _socket: Socket = field(init=False)
    _read: int = field(init=False, default=0)

    def say(self, message: object) -> None:
        self._socket.send(message)

    def is_up_to_date(self) -> bool:
        """Return whether no more data is under way."""
        return self._socket.next_is_pong(self.position)

    def _connect(self) -> None:
        self._socket = Socket.dial(self.posd, f"/ws/pos/{self.slug}", self.headers)
        # The first frame is `connected`.
        self._read = 0

    def _hang_up(self) -> None:
        self._socket.hang_up()

    def _next(self) -> list[bytes]:
        self._socket.receive()
        self._read += 1
        return [bytes(self._socket.frames[self._read].data)]

    def _acknowledge(self) -> None:
        self._socket.send({"type": "ack", "id": self.position})


@define(eq=False)
class StreamTill(Follower):
    """A till with server-sent events, which names its position."""

    names_position: ClassVar[bool] = True
    _stream: Response = field(init=False)

    def _connect(self) -> None:
        path = f"/api/{self.slug}/events/stream"
        named = {"Last-Event-ID": str(self.position)} if self.position else {}
        self._stream = Response.of(self.posd, path, {**self.headers, **named})
        assert self._stream.status == 200, self._stream.text
        (greeting,) = self._stream.take(1)
        assert greeting.type == "connected", greeting

    def _hang_up(self) -> None:
        self._stream.hang_up()

    def _next(self) -> list[bytes]:
        (event,) = self._stream.take(1)
        assert str(event.message["id"]) == event.id, event
        return [event.data.encode()]

    def _acknowledge(self) -> None:
        reply = self.posd.request(
            "POST", f"/api/{self.slug}/events/ack", {"id": self.position}, key=self.key
        )
        assert reply.status == 200, reply.content


@define(eq=False)
class PollTill(Follower):
    """A till with polls. The position that it names is its acknowledgement."""

    names_position: ClassVar[bool] = True

    def _connect(self) -> None:
        """Do nothing: there is no connection."""

    def _hang_up(self) -> None:
        """Do nothing: there is no connection."""

    def _next(self) -> list[bytes]:
        return [jsontext.encode(each) for each in self._poll(wait=10)["events"]]

    def _acknowledge(self) -> None:
        assert not self._poll(wait=0)["events"]

    def _poll(self, *, wait: int) -> Any:
        path = f"/api/{self.slug}/events?after={self.position}&limit=500&wait={wait}"
        with closing(_Answer(self.posd, path, self.headers)) as answer:
            assert answer.response.status == 200, answer.response.text
            return json.loads(answer.response.text, parse_float=Decimal)


class _Answer:
    """An answer with its numbers as they are written."""

    def __init__(self, posd: Daemon, path: str, headers: dict[str, str]) -> None:
        self.response = Response.of(posd, path, headers)

    def close(self) -> None:
        self.response.hang_up()
