"""The tills of a shop's day: each follows the stream on a road of its own, and keeps what it was told."""

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
    """A till. `heard` are all events that it was told, `position` is where it is in the stream.

    `reached` waits until the database has its position: a till that leaves without naming it later
    goes on from there.
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
        """Be there, and go on from where it was."""
        self._connect()
        self.is_there = True

    def go(self) -> None:
        """Leave, with whatever is on its way unread."""
        if not self.names_position:
            self.reached(self.position)
        self.hang_up()

    def hang_up(self) -> None:
        """Be gone, as often as one likes."""
        if self.is_there:
            self.is_there = False
            self._hang_up()

    def follow(self, head: int) -> None:
        """Take what there is up to this position, and acknowledge it."""
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
        """What comes next, as it came."""

    @abstractmethod
    def _acknowledge(self) -> None: ...


@define(eq=False)
class SocketTill(Follower):
    """Over a WebSocket; it comes back without a word about where it was."""

    _socket: Socket = field(init=False)
    _read: int = field(init=False, default=0)

    def say(self, message: object) -> None:
        self._socket.send(message)

    def is_up_to_date(self) -> bool:
        """Whether nothing more is on its way."""
        return self._socket.next_is_pong(self.position)

    def _connect(self) -> None:
        self._socket = Socket.dial(self.posd, f"/ws/pos/{self.slug}", self.headers)
        # The first frame is posd's greeting.
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
    """By server-sent events; it says where it was when it comes back."""

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
    """By polls; the position that it names is its acknowledgement."""

    names_position: ClassVar[bool] = True

    def _connect(self) -> None:
        """There is nothing to hold on to."""

    def _hang_up(self) -> None:
        """Nor to let go."""

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
    """An answer that is read with its numbers as they are written."""

    def __init__(self, posd: Daemon, path: str, headers: dict[str, str]) -> None:
        self.response = Response.of(posd, path, headers)

    def close(self) -> None:
        self.response.hang_up()
