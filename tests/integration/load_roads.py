"""Tills of `load` without WebSocket: one with server-sent events, and one that polls."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from decimal import Decimal
from http.client import HTTPException
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

from attrs import define, field

from tests.integration.load import Connection, Rover
from tests.integration.roads import Response
from tests.integration.wire import Ended
from tests.server_sent import ServerSent

CONFIGURATION: Final = '[delivery]\nheartbeat = "2s"'
"""A till that follows a stream checks whether to leave when data arrives, at least a comment."""

_POLL_SECONDS: Final = 1


@define(eq=False)
class StreamRover(Rover):
    """A till with server-sent events."""

    transport: ClassVar[str] = "SSE"
    _unread: list[ServerSent] = field(init=False, factory=list)

    def _connect(self) -> Connection:
        query, by_cursor = self._wish()
        path = f"/api/{self.slug}/events/stream{query}"
        try:
            stream = Response.of(self.dice.choice(self.nodes), path, {"X-API-Key": self.key})
        except HTTPException as error:
            raise ConnectionError("no answer") from error
        try:
            if stream.status != 200:
                raise ConnectionError(f"{stream.status} {stream.text}")
            self._unread = []
            self._greeted(_content(self._next(stream)), by_cursor)
        except BaseException:
            stream.hang_up()
            raise
        return stream

    def _stay(self, till: Any) -> None:
        until = time.monotonic() + self.dice.random() * self.stays
        while time.monotonic() < until or self.over.is_set():
            if self._has_all:
                return
            if not self._unread:
                self._read(till)
                continue
            event = self._unread.pop(0)
            if event.type == "pos_closing":
                said = event.message
                raise Ended(said["code"], said["reason"])
            self._received(_content(event))

    def _next(self, stream: Response) -> ServerSent:
        while not self._unread:
            self._read(stream)
        return self._unread.pop(0)

    def _read(self, stream: Response) -> None:
        try:
            if not stream.read_some():
                raise Ended(1006, "the stream has ended")
        except HTTPException as error:
            raise ConnectionError("the stream was cut off") from error
        self._unread += stream.take_all()


@define(eq=False)
class PollRover(Rover):
    """A till that polls. A visit lasts until it pauses, or is told to reload."""

    transport: ClassVar[str] = "poll"

    def _connect(self) -> Connection:
        answer = self._ask(0)
        position = None if answer["resync"] is not None else self.position
        said = {**answer, "resumedFrom": position}
        self._greeted(said, by_cursor=False)
        self._take(answer)
        return _Nothing()

    def _stay(self, till: Any) -> None:
        until = time.monotonic() + self.dice.random() * self.stays
        while time.monotonic() < until or self.over.is_set():
            if self._has_all:
                return
            answer = self._ask(_POLL_SECONDS)
            if answer["resync"] is not None:
                # The next visit begins with the same request.
                raise Ended(1006, answer["resync"])
            self._take(answer)

    def _ask(self, wait: int) -> Any:
        query: dict[str, object] = {"after": self.position, "wait": wait}
        if self.stream is not None:
            query["stream_id"] = self.stream
        with suppress(HTTPException):
            reply = self.dice.choice(self.nodes).request(
                "GET", f"/api/{self.slug}/events?{urlencode(query)}", key=self.key
            )
            if reply.status == 200:
                return json.loads(reply.content, parse_float=Decimal)
        raise ConnectionError("the poll was not answered")

    def _take(self, answer: Any) -> None:
        for event in answer["events"]:
            self._received(event)
        self.stream = answer["streamId"]


class _Nothing:
    """A poll leaves no connection open."""

    def hang_up(self) -> None:
        pass


def _content(event: ServerSent) -> Any:
    return json.loads(event.data, parse_float=Decimal)


ALL_KINDS: Final = (Rover, StreamRover, PollRover)
