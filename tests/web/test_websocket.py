"""Tests of tills' WebSocket connections, in memory."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import Any, cast

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IPushProducer
from twisted.logger import LogEvent, capturedLogs
from twisted.web.server import Request

from posd import __version__
from posd.delivery.hub import Admitted
from posd.delivery.registry import TillTransport
from posd.delivery.session import Session
from posd.errors import StatementFailed
from posd.values import POLICY, SUPERSEDED, Position
from posd.web.opened_protocol import AutobahnOptions
from posd.web.websocket import TillProtocol
from tests.delivery_case import PING, PONG, TEXT, session_start, terminal
from tests.hub_case import wake
from tests.socket_case import Socket, SocketCase, masked, text

_IDLE_BYTES = 5500
"""With Python 3.11 an idle till takes 4,050 to 4,230 bytes. Two empty deques would add 1,520."""


class UpgradeTests(SocketCase):
    def test_the_answer_is_that_of_rfc_6455(self) -> None:
        head = self.open().value().partition(b"\r\n\r\n")[0].split(b"\r\n")
        self.assertEqual(head[0], b"HTTP/1.1 101 Switching Protocols")
        self.assertEqual(
            {*head[1:]},
            {
                b"Upgrade: WebSocket",
                b"Connection: Upgrade",
                # RFC 6455 §1.3 has this key and this answer.
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
                b"Server: posd/%b" % __version__.encode(),
            },
        )

    def test_a_till_gets_connected_first(self) -> None:
        socket = self.open(terminal("BAR"), acked=10)
        self.assertEqual([each["type"] for each in socket.messages], ["connected"])
        self.assertEqual(len(self.hub), 1)

    def test_offered_extensions_and_protocols_are_declined(self) -> None:
        socket = self.open(
            headers=b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
            b"Sec-WebSocket-Protocol: pos\r\nOrigin: https://elsewhere.example\r\n"
        )
        self.assertNotIn(b"Sec-WebSocket-Extensions", socket.value())
        self.assertNotIn(b"Sec-WebSocket-Protocol", socket.value())

    def test_autobahn_gets_only_the_websocket_key_of_the_request(self) -> None:
        socket = self.open(headers=b"X-API-Key: pos_secret\r\nCookie: a=b\r\n")
        kept = repr({name: repr(value) for name, value in vars(socket.protocol).items()})
        self.assertNotIn("pos_secret", kept)
        self.assertNotIn("Cookie", kept)

    def test_small_messages_are_not_delayed(self) -> None:
        self.assertTrue(self.open().no_delay)

    def test_a_transport_without_tcp_nodelay_works_too(self) -> None:
        self.patch(Socket, "setTcpNoDelay", None)
        del Socket.setTcpNoDelay
        self.addCleanup(setattr, Socket, "setTcpNoDelay", lambda self, enabled: None)
        self.assertEqual(len(self.open().messages), 1)

    def test_posd_sets_every_option_of_autobahn(self) -> None:
        missing = {*WebSocketServerProtocol.CONFIG_ATTRS} - {*vars(AutobahnOptions)}
        self.assertEqual(missing, set())
        self.assertFalse({*WebSocketServerProtocol.CONFIG_ATTRS} & {*vars(self.open().protocol)})

    def test_the_request_is_not_kept(self) -> None:
        kept: list[weakref.ref[Any]] = []
        render = self.upgrades.render

        def remember(request: Request) -> object:
            kept.extend([weakref.ref(request), weakref.ref(cast(Any, request.channel))])
            return render(request)

        self.patch(self.upgrades, "render", remember)
        gc.disable()
        self.addCleanup(gc.enable)
        socket = self.open()
        self.assertEqual([each() for each in kept], [None, None])
        self.assertEqual(len(socket.messages), 1)

    def test_a_lost_connection_is_freed_at_once(self) -> None:
        socket = self.open(terminal("BAR"), acked=10)
        session = self.session()
        kept = [weakref.ref(each) for each in (socket.protocol, session, session.send_queue)]
        # It must be freed without the garbage collector, which stops all other connections.
        gc.disable()
        self.addCleanup(gc.enable)
        socket.hang_up()
        socket.protocol = None
        del session, socket
        self.assertEqual([each() for each in kept], [None] * 3)

    def test_an_idle_till_takes_little_memory(self) -> None:
        # This does not include the transport; bench/ measures the sum.
        devices = [terminal(f"TILL_{number}") for number in range(40)]
        sockets = [self.open(each, acked=10) for each in devices[:20]]
        gc.collect()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        sockets += [self.open(each, acked=10) for each in devices[20:]]
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] / 20
        self.assertLess(each, _IDLE_BYTES)

    def test_the_deadline_of_http_ends_with_the_upgrade(self) -> None:
        idle = len(self.clock.getDelayedCalls())
        self.open()
        self.assertEqual(len(self.clock.getDelayedCalls()), idle)
        self.clock.advance(40)


class TrapTests(SocketCase):
    """Defects of Autobahn with twisted.web."""

    def test_the_send_queue_is_the_producer_of_the_transport(self) -> None:
        socket = self.open()
        self.assertTrue(IPushProducer.providedBy(socket.producer))
        self.assertIs(socket.producer, self.session().send_queue)
        self.assertTrue(socket.streaming)

    def test_a_paused_send_queue_writes_nothing_until_it_resumes(self) -> None:
        socket = self.open()
        socket.stall()
        wake(self.hub, 7, self.log.commit(3))
        self.assertEqual(socket.ids, [])
        socket.drain()
        self.assertEqual(socket.ids, [11, 12, 13])

    def test_a_connection_lost_before_its_opening_is_released_once(self) -> None:
        protocol = self.protocol()
        protocol.makeConnection(Socket())
        protocol.onClose(False, 1006, "gone")
        protocol.onClose(False, 1006, "gone")
        self.assertEqual(self.left, 1)

    def test_an_exception_at_the_opening_closes_with_1011_and_is_logged(self) -> None:
        def fail_to_open(*arguments: object) -> None:
            raise ZeroDivisionError

        self.patch(self.hub, "open", fail_to_open)
        socket = self.open()
        self.assertEqual(socket.close_code, 1011)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.clock.advance(2)
        self.assertTrue(socket.disconnected)

    def test_an_exception_at_a_message_closes_with_1011_and_is_logged(self) -> None:
        socket = self.open(terminal("BAR"), acked=10)
        self.progress_store.printing.append(fail(StatementFailed("no such column", "42703")))
        socket.send(text(b'{"type":"print","orderId":"A","status":"printed"}'))
        self.assertEqual(socket.close_code, 1011)
        self.assertEqual(len(self.flushLoggedErrors(StatementFailed)), 1)

    def test_an_exception_in_the_progress_store_closes_with_1011_and_is_logged(self) -> None:
        def fail_to_hear(session: Session) -> None:
            raise ZeroDivisionError

        self.patch(self.hub, "heard", fail_to_hear)
        for frame in (text(b'{"type":"pong"}'), masked(PING)):
            socket = self.open()
            socket.send(frame)
            self.assertEqual(socket.close_code, 1011)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_the_text_of_an_exception_is_not_sent(self) -> None:
        def fail_to_open(*arguments: object) -> None:
            raise ValueError("the key is pos_secret")

        self.patch(self.hub, "open", fail_to_open)
        socket = self.open()
        self.assertNotIn(b"secret", socket.value())
        self.flushLoggedErrors(ValueError)

    def protocol(self) -> TillProtocol:
        self.left = 0

        def leave() -> None:
            self.left += 1

        return self.factory.protocol_for(Admitted(terminal(), session_start(10), leave))

    def test_it_implements_till_transport(self) -> None:
        line: TillTransport = self.protocol()
        self.assertEqual(line.heard_at, self.clock.seconds())


class MessageTests(SocketCase):
    def setUp(self) -> None:
        super().setUp()
        self.socket = self.open(terminal("BAR"), acked=10)

    def test_messages_reach_the_session(self) -> None:
        self.socket.send(text(b'{"type":"ack","id":10}'))
        self.assertEqual(self.progress_store.acks, [10])

    def test_each_message_is_answered_in_its_own_frame(self) -> None:
        self.socket.send(text(b'{"type":"ping","id":1}') + text(b'{"type":"ping","id":2}'))
        self.assertEqual([each.get("echo") for each in self.socket.messages[1:]], [1, 2])

    def test_a_frame_may_come_byte_by_byte(self) -> None:
        for byte in text(b'{"type":"ping","id":1}'):
            self.socket.send(bytes([byte]))
        self.assertEqual(self.socket.messages[1]["echo"], 1)

    def test_a_message_may_come_in_fragments(self) -> None:
        self.socket.send(masked(TEXT, b'{"type":', final=False))
        self.socket.send(masked(PING, b"between"))
        self.socket.send(masked(0, b'"ping"}'))
        self.assertEqual(self.socket.frames[1], (PONG, b"between"))
        self.assertEqual(self.socket.messages[1]["type"], "pong")

    def test_a_character_may_be_split_between_frames_of_interleaved_connections(self) -> None:
        other = self.open(terminal("KITCHEN"), acked=10)
        self.socket.send(masked(TEXT, b'{"type":"ping","id":"\xe2\x82', final=False))
        other.send(text(b'{"type":"ping","id":1}'))
        self.socket.send(masked(0, b'\xac"}'))
        self.assertEqual(self.socket.messages[1]["echo"], "\u20ac")
        self.assertEqual(other.messages[1]["echo"], 1)

    def test_messages_are_processed_in_order(self) -> None:
        answer: Deferred[bool] = Deferred()
        self.progress_store.printing.append(answer)
        self.socket.send(text(b'{"type":"print","orderId":"A","status":"printed"}'))
        self.socket.send(text(b'{"type":"ack","id":10}'))
        self.assertEqual(self.progress_store.acks, [])
        answer.callback(True)
        self.assertEqual(self.progress_store.acks, [10])

    def test_reading_pauses_while_too_many_messages_wait(self) -> None:
        answer: Deferred[bool] = Deferred()
        self.progress_store.printing.append(answer)
        self.socket.send(text(b'{"type":"print","orderId":"A","status":"printed"}'))
        for _ in range(16):
            self.socket.send(text(b'{"type":"ping"}'))
        self.assertEqual(self.socket.producerState, "paused")
        answer.callback(True)
        self.assertEqual(self.socket.producerState, "producing")
        self.assertEqual(len(self.socket.messages), 17)

    def test_a_till_is_not_silent_while_reading_is_paused(self) -> None:
        self.progress_store.printing.append(Deferred())
        for _ in range(18):
            self.socket.send(text(b'{"type":"print","orderId":"A","status":"printed"}'))
        self.clock.pump([1.0] * 200)
        self.assertFalse(self.socket.disconnected)

    def test_messages_before_the_close_are_processed(self) -> None:
        answer: Deferred[bool] = Deferred()
        self.progress_store.printing.append(answer)
        for order in (b"A", b"B"):
            self.socket.send(text(b'{"type":"print","orderId":"%b","status":"printed"}' % order))
        self.socket.send(text(b'{"type":"ack","id":10}') + masked(8, b"\x03\xe8"))
        self.socket.hang_up()
        answer.callback(True)
        self.assertEqual([order for order, _, _ in self.progress_store.prints], ["A", "B"])
        self.assertEqual(self.progress_store.acks, [10])

    def test_a_ping_frame_is_answered_with_its_payload(self) -> None:
        self.socket.send(masked(PING, b"are you there"))
        self.assertEqual(self.socket.frames[-1], (PONG, b"are you there"))

    def test_messages_and_pings_claim_the_device(self) -> None:
        self.socket.send(masked(PING))
        self.assertEqual(len(self.progress_store.claims), 1)
        self.open(terminal("KITCHEN"), acked=10).send(text(b'{"type":"pong"}'))
        self.assertEqual(len(self.progress_store.claims), 2)

    def test_posd_sends_ping_frames(self) -> None:
        for _ in range(35):
            self.clock.advance(1)
        self.assertIn((PING, b""), self.socket.frames)


class LimitTests(SocketCase):
    """Invalid messages of tills, and the codes of the close frames for them."""

    def setUp(self) -> None:
        super().setUp()
        self.socket = self.open(terminal("BAR"), acked=10)

    def assert_closed(self, code: int) -> None:
        """Assert that the last frame is the close frame, and that the connection is aborted in time."""
        self.assertEqual(self.socket.close_code, code)
        before = self.socket.value()
        wake(self.hub, 7, self.log.commit())
        self.assertEqual(self.socket.value(), before)
        self.clock.advance(2)
        self.assertTrue(self.socket.disconnected)

    def test_a_binary_message_is_1003(self) -> None:
        self.socket.send(masked(2, b"{}"))
        self.assert_closed(1003)

    def test_a_message_of_64_kib_is_accepted(self) -> None:
        self.socket.send(text(b'{"type":"x","y":"%b"}' % (b"y" * (64 * 1024 - 20))))
        self.assertEqual(len(self.progress_store.words), 1)

    def test_a_larger_message_closes_with_1009(self) -> None:
        self.socket.send(text(b"x" * (64 * 1024 + 1)))
        self.assert_closed(1009)

    def test_a_larger_message_in_fragments_closes_with_1009(self) -> None:
        for opcode in (TEXT, 0, 0):
            self.socket.send(masked(opcode, b"x" * 30_000, final=False))
        self.assert_closed(1009)

    def test_a_frame_is_refused_by_its_length_before_its_payload(self) -> None:
        self.socket.send(text(b"x" * (1 << 20))[:14])
        self.assert_closed(1009)

    def test_a_frame_without_a_mask_is_1002(self) -> None:
        self.socket.send(masked(TEXT, b"{}", mask=False))
        self.assert_closed(1002)

    def test_text_that_is_not_utf_8_is_1007(self) -> None:
        self.socket.send(text(b'{"type":"\xff"}'))
        self.assert_closed(1007)

    def test_the_tenth_mistake_in_a_minute_is_1008(self) -> None:
        for _ in range(10):
            self.socket.send(text(b"{"))
        self.assert_closed(1008)

    def test_endless_fragments_of_one_message_are_1009(self) -> None:
        self.socket.send(masked(TEXT, b"", final=False))
        self.socket.send(masked(0, b"", final=False) * 600)
        self.assert_closed(1009)

    def test_a_flood_of_empty_frames_closes_with_1008_and_the_rest_is_ignored(self) -> None:
        self.socket.send(masked(PONG) * 5000)
        self.socket.send(text(b'{"type":"ack","id":10}'))
        self.assert_closed(1008)
        self.assertEqual(self.progress_store.acks, [])

    def test_a_till_that_acknowledges_a_long_replay_one_by_one_is_read_more_slowly(self) -> None:
        wake(self.hub, 7, self.log.commit(3000))
        for seq in range(11, 2011):
            self.socket.send(text(b'{"type":"ack","id":%d}' % seq))
        self.assertEqual(self.socket.producerState, "producing")
        for seq in range(2011, 3011):
            self.socket.send(text(b'{"type":"ack","id":%d}' % seq))
        self.assertEqual(self.progress_store.acks[-1], 3010)
        self.assertEqual(self.socket.producerState, "paused")
        for _ in range(5):
            self.clock.advance(1.001)
        self.assertEqual(self.socket.producerState, "producing")
        self.assertIsNone(self.socket.close_code)

    def test_frames_of_every_kind_are_charged_by_their_bytes(self) -> None:
        """The rate permits ten mebibytes at once, and then one a second."""
        large = text(b'{"type":"ping","id":"%b"}' % (b"x" * 60_000))
        for _ in range(170):
            self.socket.send(large)
        self.assertEqual(self.socket.producerState, "producing")
        for _ in range(10):
            self.socket.send(large)
        self.assertEqual(self.socket.producerState, "paused")
        self.assertEqual(
            len([each for each in self.socket.messages if each["type"] == "pong"]), 180
        )
        self.clock.advance(1)
        self.assertEqual(self.socket.producerState, "producing")

    def test_a_ping_an_empty_frame_and_part_of_a_message_are_charged_too(self) -> None:
        for frames in (masked(PING), masked(0xA), masked(TEXT, final=False) + masked(0)):
            with self.subTest(frames=frames):
                self.socket = self.open(terminal("GRILL"), acked=10)
                self.rates.requests_per_credential *= 2
                self.socket.send(frames * 10_000)
                self.assertEqual(self.socket.producerState, "paused")
                self.assertEqual(self.socket.close_code, 1008)

    def test_two_connections_of_a_terminal_share_its_rate(self) -> None:
        first, second = (self.open(terminal("GRILL"), acked=10) for _ in range(2))
        first.send(masked(PING) * 2000)
        second.send(masked(PING))
        self.assertEqual((first.producerState, second.producerState), ("producing", "paused"))
        self.open(terminal("PASS"), acked=10).send(masked(PING))
        self.assertEqual(self.socket.producerState, "producing")


class EndingTests(SocketCase):
    def setUp(self) -> None:
        super().setUp()
        self.logged = self.enterContext(capturedLogs())
        self.socket = self.open(terminal("BAR"), acked=10)

    def end(self) -> LogEvent:
        """Assert that a lost connection leaves nothing. Return the line that was logged."""
        self.socket.hang_up()
        self.assertEqual((len(self.hub), self.progress_store.here), (0, []))
        self.assertEqual(len(self.upgrades.left), 1)
        self.assertEqual(self.timers(), 0)
        (line,) = (each for each in self.logged if "till gone" in (each["log_format"] or ""))
        return line

    def timers(self) -> int:
        """Return the number of delayed calls of connections, without the registry's own."""
        return len(self.clock.getDelayedCalls()) - 1

    def test_a_till_that_is_lost(self) -> None:
        self.clock.advance(12.5)
        line = self.end()
        self.assertEqual((line["by"], line["code"], line["reason"]), ("till", 1006, ""))
        self.assertEqual(
            (line["tenant"], line["device"], line["seconds"]), ("kitchen", "BAR", 12.5)
        )

    def test_a_till_that_closes(self) -> None:
        self.socket.send(masked(8, b"\x03\xe8whatever it may say"))
        self.assertEqual(self.socket.close_code, 1000)
        self.assertTrue(self.socket.disconnecting)
        line = self.end()
        self.assertEqual((line["by"], line["code"], line["reason"]), ("till", 1000, ""))

    def test_a_till_that_closes_without_disconnecting_is_aborted(self) -> None:
        self.socket.send(masked(8, b"\x03\xe8"))
        self.assertFalse(self.socket.disconnected)
        self.clock.advance(2)
        self.assertTrue(self.socket.disconnected)
        self.assertEqual(self.end()["by"], "till")

    def test_a_till_that_closes_and_does_not_read_gets_nothing_more(self) -> None:
        self.socket.send(masked(8, b"\x03\xe8"))
        wake(self.hub, 7, self.log.commit())
        self.assertEqual(self.socket.ids, [])

    def test_a_till_that_answers_the_close_frame_is_not_aborted(self) -> None:
        self.session().end(SUPERSEDED)
        self.assertEqual(self.socket.close_code, 4009)
        self.socket.send(masked(8, b"\x0f\xa9"))
        self.assertTrue(self.socket.disconnecting)
        self.assertFalse(self.socket.disconnected)
        line = self.end()
        self.assertEqual((line["by"], line["code"], line["reason"]), ("posd", 4009, "superseded"))

    def test_a_till_that_does_not_answer_the_close_frame_is_aborted(self) -> None:
        self.session().end(POLICY)
        self.clock.advance(1.9)
        self.assertFalse(self.socket.disconnected)
        self.clock.advance(0.1)
        self.assertTrue(self.socket.disconnected)

    def test_a_till_that_stalls_is_aborted_after_the_same_time(self) -> None:
        self.socket.stall()
        self.session().end(POLICY)
        self.clock.advance(2)
        self.assertTrue(self.socket.disconnected)

    def test_a_silent_till_is_aborted_at_once(self) -> None:
        for _ in range(71):
            self.clock.advance(1)
        self.assertTrue(self.socket.disconnected)
        line = self.end()
        self.assertEqual((line["by"], line["code"], line["reason"]), ("posd", 1006, "not heard of"))

    def test_an_older_till_is_dropped_without_a_close_frame_at_shutdown(self) -> None:
        deployed = self.open()
        Deferred.fromCoroutine(self.hub.drain(5))
        self.clock.pump([0.1] * 10)
        self.assertTrue(deployed.disconnecting)
        self.assertIsNone(deployed.close_code)
        self.assertEqual(self.socket.close_code, 1001)

    def test_a_violation_that_autobahn_detects_is_logged_as_closed_by_posd(self) -> None:
        self.socket.send(text(b"x" * (64 * 1024 + 1)))
        line = self.end()
        self.assertEqual((line["by"], line["code"]), ("posd", 1009))
        self.assertIn("65537", line["reason"])

    def test_the_log_line_has_the_position_of_the_till(self) -> None:
        wake(self.hub, 7, self.log.commit(2))
        self.socket.send(text(b'{"type":"ack","id":11}'))
        self.socket.stall()
        wake(self.hub, 7, self.log.commit(3))
        line = self.end()
        kept = {name: line[name] for name in ("sent", "position", "acked", "behind")}
        self.assertEqual(kept, {"sent": 2, "position": 12, "acked": 11, "behind": 3})

    def test_no_text_from_a_till_is_logged(self) -> None:
        self.socket.send(text(b"pos_secret") + text(b'{"type":"\xff"}'))
        self.socket.send(masked(8, b"\x03\xe8pos_secret"))
        line = self.end()
        self.assertNotIn("pos_secret", repr(line))

    def test_a_till_that_went_back_to_catch_up_is_where_it_was_written_to(self) -> None:
        late = self.open(terminal(position=Position(4)))
        self.assertEqual(late.ids, [5, 6, 7, 8, 9, 10])
