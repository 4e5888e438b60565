"""`posctl listen` as a process, against a server in the test."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from posd.cli.event_lines import event_line
from posd.client import ReceivedEvent
from tests.cli_runner import posctl
from tests.till_case import KEY, Curt, Desk, refusal

PATIENCE = 300.0
"""Seconds after which a test gives up on a process."""


class Listener(ProcessProtocol):
    """`posctl listen` as a process: its output lines and its exit code."""

    def __init__(self) -> None:
        self.lines: DeferredQueue[str] = DeferredQueue()
        self.err = ""
        self.ended: Deferred[int] = Deferred()
        self._rest = ""

    def outReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data.decode()).split("\n")
        for line in lines:
            self.lines.put(line)

    def errReceived(self, data: bytes) -> None:
        self.err += data.decode()

    def processEnded(self, reason: Failure) -> None:
        assert isinstance(reason.value, ProcessTerminated | ProcessDone)
        self.ended.callback(reason.value.exitCode)


class ProcessTests(TestCase):
    """The command, connected to a server in the test."""

    timeout = 600

    def setUp(self) -> None:
        self.desks: DeferredQueue[Desk] = DeferredQueue()
        factory = WebSocketServerFactory()
        factory.protocol = self._desk
        factory.setProtocolOptions(openHandshakeTimeout=0)
        self.serve(factory)

    def serve(self, factory: Any) -> None:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        where = port.getHost()
        assert isinstance(where, IPv4Address)
        self.url = f"ws://127.0.0.1:{where.port}"

    def _desk(self) -> Desk:
        desks = self.desks

        class Announced(Desk):
            def onOpen(self) -> None:
                desks.put(self)

        return Announced()

    def listen(self, *options: str, environ: dict[str, str] | None = None) -> Listener:
        listener = Listener()
        arguments = ("listen", "--url", self.url, "--tenant", "kitchen", *options)
        process = reactor.spawnProcess(
            listener,
            sys.executable,
            [sys.executable, "-m", "posd.cli", *arguments],
            env={**os.environ, "POSD_KEY": KEY, **(environ or {})},
        )
        listener.ended.addTimeout(PATIENCE, reactor)

        def kill() -> None:
            if process.pid:
                process.signalProcess("KILL")

        self.addCleanup(kill)
        return listener

    async def test_events_are_printed_and_acknowledged(self) -> None:
        listener = self.listen("--device", "front", "--count", "2")
        desk = await self.desks.get()
        self.assertEqual(desk.path, "/ws/pos/kitchen")
        self.assertEqual((desk.headers["x-api-key"], desk.headers["x-device-id"]), (KEY, "front"))
        desk.greet(40)
        desk.push(41)
        self.assertRegex(await listener.lines.get(), r"\A\d\d:\d\d:\d\d +41  new_order ")
        desk.push(42)
        self.assertRegex(await listener.lines.get(), r"\A\d\d:\d\d:\d\d +42  new_order ")
        self.assertEqual(await listener.ended, 0)
        self.assertEqual(desk.messages[-1], {"type": "ack", "id": 42})
        self.assertIn("connected as front: the last event is 40\n", listener.err)
        self.assertIn("2 received, 2 printed, acknowledged up to 42\n", listener.err)

    async def test_with_json_each_event_is_printed_as_it_was_sent(self) -> None:
        listener = self.listen("--json", "--count", "1")
        desk = await self.desks.get()
        desk.greet(40)
        desk.push(41)
        event = json.loads(await listener.lines.get())
        self.assertEqual((event["id"], event["data"]["orderId"]), (41, "A-41"))
        self.assertEqual(await listener.ended, 0)

    async def test_after_requests_a_position_and_no_ack_acknowledges_nothing(self) -> None:
        listener = self.listen("--after", "7", "--no-ack", "--count", "1")
        desk = await self.desks.get()
        self.assertEqual(desk.params["last_event_id"], ["7"])
        desk.greet(8, resumed=7)
        desk.push(8)
        self.assertEqual(await listener.ended, 0)
        self.assertEqual(desk.messages, [])
        self.assertIn("the events after 7 follow", listener.err)

    async def test_it_reconnects_and_prints_no_event_twice(self) -> None:
        listener = self.listen("--device", "front", "--count", "2")
        first = await self.desks.get()
        first.greet(40)
        first.push(41)
        await listener.lines.get()
        first.transport.abortConnection()
        second = await self.desks.get()
        self.assertEqual(second.params["last_event_id"], ["41"])
        second.greet(42, resumed=41)
        second.push(42)
        self.assertRegex(await listener.lines.get(), " 42 ")
        self.assertEqual(await listener.ended, 0)
        self.assertIn("disconnected, trying again: ", listener.err)
        self.assertIn(", reconnected once\n", listener.err)

    async def test_ctrl_c_ends_it_with_a_summary(self) -> None:
        listener = self.listen("--device", "front")
        desk = await self.desks.get()
        desk.greet(40)
        desk.push(41)
        await listener.lines.get()
        assert listener.transport is not None
        os.kill(listener.transport.pid, signal.SIGINT)
        self.assertEqual(await listener.ended, 0)
        self.assertTrue(desk.closed)
        self.assertEqual(desk.messages[-1], {"type": "ack", "id": 41})
        self.assertIn("1 received, 1 printed, acknowledged up to 41\n", listener.err)
        self.assertNotIn("Traceback", listener.err)

    async def test_a_resync_is_reported(self) -> None:
        listener = self.listen("--after", "7", "--count", "1")
        desk = await self.desks.get()
        desk.greet(40, resync="retention")
        desk.push(41)
        self.assertEqual(await listener.ended, 0)
        self.assertIn("because they are too old; the stream continues after 40\n", listener.err)

    async def test_a_revoked_key_ends_it_with_permission_denied(self) -> None:
        listener = self.listen()
        desk = await self.desks.get()
        desk.greet(40)
        desk.hang_up(4001)
        self.assertEqual(await listener.ended, os.EX_NOPERM)
        self.assertIn("posctl: closed with 4001", listener.err)

    async def test_another_till_with_the_same_device_id_ends_it(self) -> None:
        listener = self.listen("--device", "front")
        desk = await self.desks.get()
        desk.greet(40)
        desk.hang_up(4009)
        self.assertEqual(await listener.ended, os.EX_UNAVAILABLE)

    async def test_a_wrong_key_ends_it_with_the_servers_message(self) -> None:
        body = b'{"success":false,"error":"A valid API key is required.","code":"unauthorized"}'
        Curt.answers = [refusal("401 Unauthorized", body)]
        self.serve(Factory.forProtocol(Curt))
        listener = self.listen()
        self.assertEqual(await listener.ended, os.EX_NOPERM)
        self.assertIn("A valid API key is required.", listener.err)

    async def test_a_missing_certificate_is_named(self) -> None:
        self.url = "wss://localhost:9010"
        listener = self.listen("--client-cert", "/nowhere/a.pem", "--client-key", "/nowhere/b.pem")
        self.assertEqual(await listener.ended, os.EX_NOINPUT)
        self.assertIn("/nowhere/a.pem cannot be read", listener.err)

    async def test_without_a_reader_of_its_output_it_ends_and_does_not_acknowledge(self) -> None:
        listener = self.listen("--device", "front")
        desk = await self.desks.get()
        desk.greet(40)
        assert listener.transport is not None
        listener.transport.closeStdout()
        desk.push(41)
        self.assertEqual(await listener.ended, 1)
        self.assertEqual([m for m in desk.messages if m["type"] == "ack"], [])
        self.assertNotIn("Traceback", listener.err)


class OptionTests(SynchronousTestCase):
    """Errors that are found before a connection."""

    def listen(self, *options: str, **more: Any) -> Any:
        return posctl("listen", "--tenant", "kitchen", *options, **more)

    def test_a_key_is_needed(self) -> None:
        ran = self.listen("--url", "wss://pos.example.com")
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn("--key-file, --key or $POSD_KEY", ran.err)

    def test_one_key_is_enough(self) -> None:
        path = Path(self.mktemp())
        path.write_text(KEY)
        ran = self.listen("--url", "wss://x", "--key", KEY, "--key-file", str(path))
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn("not both", ran.err)

    def test_a_certificate_goes_with_its_key(self) -> None:
        ran = self.listen("--url", "wss://x", "--key", KEY, "--client-cert", "a.pem")
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn("--client-cert and --client-key", ran.err)

    def test_a_key_file_that_is_not_there_is_named(self) -> None:
        ran = self.listen("--url", "wss://x", "--key-file", "/nowhere/till.key")
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn("/nowhere/till.key", ran.err)


class EventLineTests(SynchronousTestCase):
    """Events as lines of text."""

    def line(self, kind: str, data: dict[str, object], *, replay: bool = False) -> str:
        moment = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
        return event_line(ReceivedEvent(42, kind, moment, data, replay, {}, b""))[10:]

    def test_an_order_shows_its_number_its_size_and_its_price(self) -> None:
        order: dict[str, object] = {
            "orderNumber": "A-17",
            "status": "confirmed",
            "orderType": "pickup",
            "items": [{}, {}],
            "totalAmount": Decimal("45.90"),
            "currency": "GBP",
            "customerName": "Somebody",
        }
        self.assertEqual(
            self.line("new_order", order),
            "      42  new_order            A-17  confirmed  pickup  2 lines  45.90 GBP",
        )

    def test_a_changed_order_shows_its_previous_status(self) -> None:
        order: dict[str, object] = {
            "orderNumber": "A-17",
            "status": "ready",
            "previousStatus": "confirmed",
        }
        self.assertIn("confirmed → ready", self.line("order_updated", order))

    def test_card_and_telephone_numbers_are_shortened(self) -> None:
        card: dict[str, object] = {
            "cardNumber": "GIFT-1234-5678",
            "change": Decimal("-5.00"),
            "balance": 20,
        }
        shown = self.line("gift_card_updated", card)
        self.assertIn("…5678  -5.00 → 20", shown)
        self.assertNotIn("1234", shown)
        points: dict[str, object] = {
            "customerPhone": "+442079460123",
            "pointsChange": 5,
            "newBalance": 25,
        }
        shown = self.line("loyalty_updated", points)
        self.assertIn("…123  5 → 25 points", shown)
        self.assertNotIn("7946", shown)

    def test_other_types_show_only_their_type(self) -> None:
        self.assertEqual(
            self.line("table_reserved", {"name": "Somebody"}), "      42  table_reserved"
        )

    def test_a_replayed_event_is_marked(self) -> None:
        self.assertTrue(self.line("table_reserved", {}, replay=True).endswith("  (replayed)"))

    def test_control_characters_of_events_are_replaced(self) -> None:
        self.assertNotIn("\x1b", self.line("new_order", {"orderNumber": "\x1b[2J"}))
