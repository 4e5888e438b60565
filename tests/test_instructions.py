"""The hot paths execute at most the number of instructions of this table.

If a count exceeds its budget, that is a regression or has a reason. If it is far below, the table should
keep the gain. In both cases change the table with the code, and give the reason in the commit.
Instructions of libraries are not counted, so a new release of a library changes nothing here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Final, cast

from attrs import frozen

from posd.publishing.publication import Publication, PublicationResult
from posd.publishing.sequencer import Sequencer
from posd.security.auth import Authenticator
from posd.values import KeyKind
from posd.web.admission import WebSocketAdmission
from posd.web.api.publishing import PublishingEndpoints
from posd.web.http.dispatch import Dispatcher
from posd.web.http.http_request import ListenerContext
from posd.web.http.request_turns import RequestTurns
from posd.web.http.router import RootResource, Routes
from tests.instructions import Work, count
from tests.socket_case import Socket, text
from tests.transports_case import TransportCase, reply

_PYTHON: Final = (3, 11)
"""Other versions of Python compile to other instructions."""
_TOLERANCE: Final = 0.06
_GAIN: Final = 0.15
_ROUNDING: Final = 0.5
"""Less than one, because the cheapest path makes one call, and a second one is a regression."""


@frozen
class Budget:
    """Instructions of posd, and calls from posd to other code, for one unit."""

    instructions: int
    calls: int


BUDGETS: Final = {
    "an event to one till more": Budget(28, 1),
    "one of eight events of a turn to one till more": Budget(4, 0),
    "an event that a till has missed": Budget(220, 8),
    "an acknowledgement": Budget(1031, 42),
    "a till that connects": Budget(3901, 191),
    "an event that is published by REST, up to the sequencer": Budget(3218, 165),
    "an event more in a batch that is published by REST, up to the sequencer": Budget(369, 29),
    "an order more in a batch that is published by REST, up to the sequencer": Budget(4724, 298),
}


_ORDER: Final = json.dumps(
    {
        "type": "new_order",
        "data": {
            "orderId": "A-1001",
            "customerName": "Ann Example",
            "customerPhone": "+44 7700 900123",
            "orderType": "delivery",
            "totalAmount": 21.4,
            "deliveryFee": 2.5,
            "paymentStatus": "paid",
            "deliveryAddress": "1 High Street, Leeds LS1 1AA",
            "createdAt": "2026-12-01T12:30:00Z",
            "items": [
                {
                    "menuItemId": "M-17",
                    "name": "Chicken Tikka",
                    "price": 8.95,
                    "quantity": 2,
                    "selectedAddons": [{"addon_id": "A-1", "name": "Rice", "price": 2.5}],
                }
            ],
        },
    }
).encode()


class Numbers:
    """A sequencer that gives out positions without a database."""

    event_bytes = 128 * 1024

    async def publish(self, publication: Publication) -> PublicationResult:
        return PublicationResult(tuple(range(1, len(publication.drafts) + 1)), 3)


def send(till: Socket, frames: Sequence[bytes]) -> None:
    for frame in frames:
        till.send(frame)


class InstructionTests(TransportCase):
    """The tills of a tenant by WebSocket, and its platform."""

    def setUp(self) -> None:
        super().setUp()
        if sys.version_info[:2] != _PYTHON:
            self.skipTest("The budgets are of Python {}.{}.".format(*_PYTHON))
        self.connections.per_tenant = 1000
        self.dispatcher = Dispatcher(
            cast(Authenticator, self.keys), self.clock.seconds, turns=RequestTurns(self.clock)
        )
        publisher = PublishingEndpoints(
            self.dispatcher, cast(Sequencer, Numbers()), 1_000_000, self.clock.seconds
        )
        gate = WebSocketAdmission(cast(Authenticator, self.keys), self.admission, self.factory)
        self.serve(
            RootResource(ListenerContext(), Routes(gate, self.dispatcher, publisher.operations))
        )

    def keeps(self, what: str, work: Work, share: int = 1) -> None:
        """Assert that `share` units cost at most the budget."""
        budget = BUDGETS[what]
        for unit, found, most in (
            ("instructions of posd", work.instructions / share, budget.instructions),
            ("calls to other code", work.calls / share, budget.calls),
        ):
            said = f"{what}: {found:.1f} {unit}, budget {most}\n{work.most()}"
            self.assertLessEqual(found, most * (1 + _TOLERANCE) + _ROUNDING, said)
            self.assertGreaterEqual(found, most * (1 - _GAIN) - 1, f"Write down the gain. {said}")

    def test_one_call_more_for_each_till_is_too_much(self) -> None:
        what = "an event to one till more"
        budget = BUDGETS[what]
        self.keeps(what, Work(20 * budget.instructions, 20 * budget.calls), 20)
        with self.assertRaises(self.failureException):
            self.keeps(what, Work(20 * budget.instructions, 20 * (budget.calls + 1)), 20)

    def tills(self, count: int) -> list[Socket]:
        return [self.websocket() for _ in range(count)]

    def published(self, tills: int, events: int) -> Work:
        """Return the cost of the events of one iteration of the reactor with so many connected tills."""
        sockets = self.tills(tills)
        self.commit(events)
        for socket in sockets:
            socket.clear()
        work = count(lambda: self.commit(events))
        for socket in sockets:
            self.assertEqual(socket.value().count(b'"type":"note"'), events)
            socket.hang_up()
        return work

    def test_fan_out(self) -> None:
        more = self.published(40, 1) - self.published(20, 1)
        self.keeps("an event to one till more", more, 20)

    def test_bursts(self) -> None:
        more = self.published(40, 8) - self.published(20, 8)
        self.keeps("one of eight events of a turn to one till more", more, 20 * 8)

    def test_catching_up(self) -> None:
        self.commit(400)

        def catch_up(missed: int) -> Work:
            self.stands(acked=self.log.last - missed)
            sockets: list[Socket] = []
            work = count(lambda: sockets.append(self.websocket(f"POS_{missed}")))
            self.assertEqual(sockets[0].value().count(b'"type":"note"'), missed)
            return work

        catch_up(300)
        self.keeps("an event that a till has missed", catch_up(90) - catch_up(10), 80)

    def test_acknowledgements(self) -> None:
        till = self.websocket("POS_1")
        self.commit(100)
        seqs = iter(range(self.log.last - 99, self.log.last))

        def acknowledge(times: int) -> Work:
            frames = [text(b'{"type":"ack","id":%d}' % next(seqs)) for _ in range(times)]
            return count(lambda: send(till, frames))

        acknowledge(5)
        self.keeps("an acknowledgement", acknowledge(30) - acknowledge(10), 20)

    def test_connecting(self) -> None:
        self.tills(5)
        more = count(lambda: self.tills(30)) - count(lambda: self.tills(10))
        self.keeps("a till that connects", more, 20)

    def publish(self, body: bytes, times: int) -> None:
        self.keys.kind = KeyKind.PLATFORM
        head = (
            b"POST /api/kitchen/events HTTP/1.1\r\nHost: posd.example\r\nX-API-Key: pos_good\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        socket = self.dial()
        for _ in range(times):
            socket.clear()
            socket.send(head % len(body) + body)
            for _ in range(5):
                self.clock.advance(0.001)
            self.assertEqual(reply(socket.value()).status, 201, socket.value())
        socket.hang_up()

    def test_publishing(self) -> None:
        body = b'{"type":"notice","data":{"text":"Table 4 waits","number":4}}'
        self.publish(body, 5)
        more = count(lambda: self.publish(body, 30)) - count(lambda: self.publish(body, 10))
        self.keeps("an event that is published by REST, up to the sequencer", more, 20)

    def one_more_in_a_batch(self, event: bytes) -> Work:
        """Return the cost of twenty more events of this kind in a batch."""

        def publish(events: int) -> Work:
            body = b'{"events":[%b]}' % b",".join([event] * events)
            return count(lambda: self.publish(body, 1))

        publish(5)
        return publish(25) - publish(5)

    def test_publishing_in_batches(self) -> None:
        self.keeps(
            "an event more in a batch that is published by REST, up to the sequencer",
            self.one_more_in_a_batch(
                b'{"type":"notice","data":{"text":"Table 4 waits","number":4}}'
            ),
            20,
        )

    def test_publishing_orders_in_batches(self) -> None:
        self.keeps(
            "an order more in a batch that is published by REST, up to the sequencer",
            self.one_more_in_a_batch(_ORDER),
            20,
        )
