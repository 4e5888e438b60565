"""Tests of server-sent events over real sockets, with and without TLS: a slow till has a bounded cost."""

from __future__ import annotations

import socket
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from posd.delivery.hub import Admitted
from posd.delivery.session import SessionState
from posd.values import GOING_AWAY
from posd.web.http import channel
from posd.web.sse import EventStream
from tests.delivery_case import session_start, terminal
from tests.hub_case import wake
from tests.server_sent import events_in
from tests.transports_case import reply
from tests.web.test_websocket_network import (
    _EVENT_BYTES,
    _MOST_ON_ITS_WAY,
    _OUTBOX_BYTES,
    NetworkCase,
)

reactor: Any = global_reactor


class Streams(Resource):
    """Answers all requests with an event stream."""

    isLeaf = True

    def __init__(self, hub: Any) -> None:
        Resource.__init__(self)
        self.hub = hub

    def render(self, request: Request) -> int:
        admitted = Admitted(terminal(), session_start(10), lambda: None)
        EventStream(admitted, self.hub, reactor).begin(request)
        return NOT_DONE_YET


class TCPTests(NetworkCase):
    request = b"GET / HTTP/1.1\r\nHost: posd.example\r\n\r\n"

    def door(self) -> Resource:
        return Streams(self.hub)

    @property
    def positions(self) -> list[int]:
        events = events_in(reply(bytes(self.till.received)).body)
        return [int(each.id) for each in events if each.id is not None]

    async def test_a_till_that_stops_reading_costs_its_outbox_and_misses_nothing(self) -> None:
        await self.stall()
        for _ in range(50):
            wake(self.hub, 7, self.log.commit(size=_EVENT_BYTES))
            await deferLater(reactor, 0)
        self.assertLessEqual(self.session.send_queue.held, _OUTBOX_BYTES)
        self.assertLess(self.session.send_queue.written, _MOST_ON_ITS_WAY)
        self.assertIsNotNone(self.session.send_queue.stalled_since)
        self.till.socket.resumeProducing()
        await self.until(lambda: self.session.state is SessionState.LIVE)
        wake(self.hub, 7, self.log.commit())
        last = b"id: %d\n" % self.log.last
        await self.until(lambda: last in self.till.received[-10_000:])
        self.assertEqual(self.positions, list(range(11, self.log.last + 1)))

    async def test_one_that_stalls_when_it_is_closed_is_aborted(self) -> None:
        self.patch(channel, "_HANG_UP_SECONDS", 0.1)
        await self.stall()
        self.session.end(GOING_AWAY)
        await self.until(lambda: len(self.hub) == 0)

    async def test_one_that_is_silent_is_aborted_at_once(self) -> None:
        await self.stall()
        self.transport.drop(abort=True)
        await self.until(lambda: len(self.hub) == 0)

    async def test_one_that_reads_sees_a_clean_end(self) -> None:
        self.session.end(GOING_AWAY)
        self.assertIsInstance(await self.till.lost, ConnectionDone)
        self.assertTrue(self.till.received.endswith(b"\r\n0\r\n\r\n"))

    async def test_the_socket_has_tcp_user_timeout(self) -> None:
        transport: Any = self.transport._channel.transport
        while not isinstance(transport.getHandle(), socket.socket):
            transport = transport.transport
        handle = cast(socket.socket, transport.getHandle())
        option = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        self.assertEqual(option, 65_000)
        self.assertTrue(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


class TLSTests(TCPTests):
    """The same with TLS, whose transport has buffers of its own."""

    tls = True
