"""Tests of event streams by server-sent events, in memory."""

from __future__ import annotations

import socket as sockets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, capturedLogs

from posd.delivery.registry import TillTransport
from posd.delivery.session import Session
from posd.errors import StatementFailed
from posd.web.http.sockets import set_low_latency
from posd.web.sse import EventStream
from tests.delivery_case import NOON, OTHER_STREAM, STREAM
from tests.hub_case import wake
from tests.socket_case import Socket, text
from tests.transports_case import TransportCase, positions, reply, sent_to

STREAMED = "/api/kitchen/events/stream"


class StreamCase(TransportCase):
    def follow(self, query: str = "", **headers: Any) -> Socket:
        socket = self.send(f"{STREAMED}{query}", **headers)
        self.assertEqual(reply(socket.value()).status, 200, socket.value())
        return socket

    def greeting(self, socket: Socket) -> Any:
        first = sent_to(socket)[0]
        self.assertEqual((first.type, first.id), ("connected", None))
        return first.message

    def last(self, socket: Socket) -> tuple[int, str, int | None]:
        """Assert that the response has ended and the connection is closed. Return the last message."""
        last = sent_to(socket)[-1]
        self.assertEqual((last.type, last.id), ("pos_closing", None))
        self.assertTrue(socket.value().endswith(b"\r\n0\r\n\r\n"))
        self.assertTrue(socket.disconnecting)
        return last.message["code"], last.message["reason"], last.retry


class BeginningTests(StreamCase):
    def test_it_is_an_event_stream_that_is_not_cached(self) -> None:
        head = reply(self.follow().value()).headers
        self.assertEqual(head["content-type"], "text/event-stream")
        self.assertEqual(
            (head["cache-control"], head["x-accel-buffering"]), ("no-store, no-transform", "no")
        )

    def test_the_first_event_is_connected(self) -> None:
        by_websocket = self.websocket()
        greeting = self.greeting(self.follow())
        expected = by_websocket.messages[0]
        self.assertEqual(greeting.keys(), expected.keys())
        self.assertEqual(greeting["lastEventId"], 10)
        self.assertEqual(greeting["heartbeatSeconds"], 15)

    def test_the_stream_has_a_retry_time(self) -> None:
        self.assertEqual(sent_to(self.follow())[0].retry, 2000)

    def test_events_have_their_position_and_type_and_the_message_of_a_websocket(self) -> None:
        by_websocket, socket = self.websocket(), self.follow()
        self.commit()
        event = sent_to(socket)[-1]
        self.assertEqual((event.id, event.type), ("11", "note"))
        self.assertEqual(event.message, by_websocket.messages[-1])

    def test_it_resumes_from_the_given_position(self) -> None:
        for query, header in (
            ("?last_event_id=7", None),
            ("", "7"),
            ("?last_event_id=3", "7"),
            ("?lastEventId=3", "7"),
            ("?lastEventId=7", ""),
            (f"?last_event_id=7&stream_id={STREAM}", None),
        ):
            with self.subTest(query=query, header=header):
                socket = self.follow(query, Last_Event_ID=header)
                self.assertEqual(self.greeting(socket)["resumedFrom"], 7)
                self.assertEqual(positions(socket), [8, 9, 10])
                socket.hang_up()

    def test_the_header_can_be_combined_with_a_stream_id(self) -> None:
        socket = self.follow(f"?stream_id={OTHER_STREAM}", Last_Event_ID="7")
        self.assertEqual(self.greeting(socket)["resync"], "reset")
        self.assertEqual(positions(socket), [])

    def test_replayed_events_are_marked(self) -> None:
        socket = self.follow("?last_event_id=9")
        self.commit()
        replay = [each.message.get("replay") for each in sent_to(socket)[1:]]
        self.assertEqual(replay, [True, None])

    def test_a_terminal_resumes_from_its_cursor(self) -> None:
        self.stands(acked=8)
        socket = self.follow(X_Device_ID="BAR")
        self.assertEqual(self.greeting(socket)["deviceId"], "BAR")
        self.assertEqual(positions(socket), [9, 10])

    def test_a_position_acknowledges_the_events_up_to_it(self) -> None:
        self.stands(acked=2)
        self.follow("?last_event_id=8", X_Device_ID="BAR")
        self.assertEqual(self.progress_store.acks, [8])

    def test_an_invalid_header_is_refused(self) -> None:
        self.assertEqual(self.refusal(STREAMED, Last_Event_ID="x"), (400, "invalid_position"))
        self.assertEqual(self.refusal(f"{STREAMED}?last_event_id=x"), (400, "invalid_field"))

    def test_head_gets_only_the_head(self) -> None:
        socket = self.send(STREAMED, method="HEAD")
        answer = reply(socket.value())
        self.assertEqual((answer.headers["content-type"], answer.body), ("text/event-stream", b""))
        self.assertEqual(len(self.hub), 0)
        socket.hang_up()
        self.assertEqual(self.connections.open, 0)

    def test_with_http_1_0_the_stream_ends_with_the_connection(self) -> None:
        socket = self.follow(version="HTTP/1.0")
        self.commit()
        self.assertNotIn("transfer-encoding", reply(socket.value()).headers)
        self.assertEqual(positions(socket), [11])

    def test_an_event_of_two_lines_is_one(self) -> None:
        socket = self.follow()
        self.log.events.append(self.odd(b'{"n":1,\n"text":"x"}'))
        wake(self.hub, 7, 11)
        self.assertEqual(sent_to(socket)[-1].message["data"], {"n": 1, "text": "x"})

    def odd(self, data: bytes) -> Any:
        self.log.commit()
        event = self.log.events.pop()
        return type(event)(event.seq, event.type, data, event.created_at)

    def test_it_implements_till_transport(self) -> None:
        transport: TillTransport = EventStream(None, self.hub, self.clock)  # type: ignore[arg-type]
        self.assertEqual(transport.heard_at, 0.0)


class LastingTests(StreamCase):
    """Tests of a connection on which the till sends nothing."""

    def test_it_counts_for_its_tenant_and_not_for_the_site(self) -> None:
        socket = self.follow(X_Device_ID="BAR")
        self.assertEqual((self.connections.open, self.site.open_channels), (1, 0))
        self.assertEqual((len(self.hub), len(self.progress_store.here)), (1, 1))
        socket.hang_up()
        self.assertEqual((self.connections.open, len(self.hub)), (0, 0))
        self.assertEqual((self.progress_store.here, self.hub.channels.tenants), ([], []))

    def test_the_number_of_streams_is_limited(self) -> None:
        for _ in range(3):
            self.follow()
        self.assertEqual(self.ask(STREAMED).json["code"], "too_many_connections")

    def test_a_stream_without_events_stays_open(self) -> None:
        socket = self.follow()
        self.clock.pump([1.0] * 3600)
        self.assertFalse(socket.disconnecting or socket.disconnected)
        self.commit()
        self.assertEqual(positions(socket), [11])

    def test_it_is_never_silent_for_more_than_fifteen_seconds(self) -> None:
        socket = self.follow()
        lengths = []
        for _ in range(300):
            lengths.append(len(socket.value()))
            self.clock.advance(1)
        self.assertTrue(all(lengths[n] < lengths[n + 15] for n in range(285)))
        self.assertIn(b"\r\n:\n\n\r\n", socket.value())
        self.assertEqual([each.type for each in sent_to(socket)], ["connected"])

    def test_a_till_that_reads_the_comment_is_alive(self) -> None:
        self.follow()
        transport = self.transport()
        self.clock.pump([1.0] * 60)
        self.assertGreaterEqual(transport.heard_at, 45)

    def transport(self) -> Any:
        (connection,) = self.hub._registry
        return connection.transport

    def test_a_till_that_does_not_read_the_comment_is_not_alive(self) -> None:
        socket = self.follow()
        socket.stall()
        before = len(socket.value())
        self.clock.pump([1.0] * 58)
        self.assertEqual((self.transport().heard_at, len(socket.value())), (0.0, before))

    def test_a_till_that_reads_nothing_for_a_minute_is_too_slow(self) -> None:
        socket = self.follow()
        socket.stall()
        self.clock.pump([1.0] * 66)
        self.assertEqual(self.last(socket)[:2], (1013, "too far behind"))

    def test_a_till_that_was_quick_before_has_the_same_minute(self) -> None:
        socket = self.follow()
        self.clock.pump([1.0] * 44)
        socket.stall()
        self.clock.pump([1.0] * 59)
        self.assertFalse(socket.disconnecting or socket.disconnected)
        self.clock.pump([1.0] * 6)
        self.assertEqual(self.last(socket)[:2], (1013, "too far behind"))

    def test_a_till_that_does_not_read_the_last_message_is_aborted(self) -> None:
        socket = self.follow()
        socket.stall()
        self.clock.pump([1.0] * 90)
        self.assertTrue(socket.disconnected)

    def test_a_slow_till_costs_a_bounded_buffer_and_gets_all_events(self) -> None:
        socket = self.follow()
        socket.stall()
        before = len(socket.value())
        self.commit(30, size=200)
        self.assertLessEqual(self.session().send_queue.held, 1000)
        self.assertEqual(len(socket.value()), before)
        socket.drain()
        self.assertEqual(positions(socket), list(range(11, 41)))

    def test_the_socket_has_tcp_user_timeout(self) -> None:
        class Inner:
            """A transport below TLS."""

            def __init__(self) -> None:
                self.socket = sockets.socket()

            def setTcpNoDelay(self, enabled: bool) -> None:
                self.socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, enabled)

            def getHandle(self) -> sockets.socket:
                return self.socket

        class Outer:
            transport = Inner()

        self.addCleanup(Outer.transport.socket.close)
        set_low_latency(Outer(), 65_000)
        option = Outer.transport.socket.getsockopt
        self.assertTrue(option(sockets.IPPROTO_TCP, sockets.TCP_NODELAY))
        self.assertEqual(option(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT), 65_000)


class EndingTests(StreamCase):
    def setUp(self) -> None:
        super().setUp()
        captured = capturedLogs()
        self.logged: Sequence[LogEvent] = captured.__enter__()
        self.addCleanup(captured.__exit__, None, None, None)

    def is_disconnected(self) -> LogEvent:
        (transport,) = (each for each in self.logged if "till gone" in (each["log_format"] or ""))
        return transport

    def test_a_shutdown_ends_the_stream_with_a_last_message(self) -> None:
        socket = self.follow()
        drained = Deferred.fromCoroutine(self.hub.drain(5))
        code, reason, retry = self.last(socket)
        self.assertEqual((code, reason), (1001, "posd is restarting"))
        assert retry is not None
        self.assertLess(retry, 1000)
        self.assertNoResult(drained)
        socket.hang_up()
        self.clock.advance(0.1)
        self.successResultOf(drained)
        self.assertEqual(
            (self.is_disconnected()["by"], self.is_disconnected()["code"]), ("posd", 1001)
        )

    def test_a_till_without_a_name_gets_a_last_message_too(self) -> None:
        self.follow()
        self.assertFalse(self.session().is_basic)

    def test_a_revoked_key_ends_it(self) -> None:
        socket = self.follow()
        self.store.ended = {1}
        self.successResultOf(Deferred.fromCoroutine(self.hub.recheck([1])))
        code, _, retry = self.last(socket)
        self.assertEqual(code, 4001)
        assert retry is not None
        self.assertGreaterEqual(retry, 30_000)

    def test_a_newer_connection_of_the_device_takes_its_place(self) -> None:
        self.stands(acked=10)
        socket = self.follow(X_Device_ID="BAR")
        self.stands(acked=10, at=NOON + timedelta(seconds=1))
        self.websocket("BAR").send(text(b'{"type":"ping"}'))
        self.assertEqual(self.last(socket)[0], 4009)

    def test_it_takes_the_place_of_an_older_one_when_it_has_lasted(self) -> None:
        self.stands(acked=10)
        older = self.websocket("BAR")
        self.stands(acked=10, at=NOON + timedelta(seconds=1))
        socket = self.follow(X_Device_ID="BAR")
        self.assertIsNone(older.close_code)
        self.clock.pump([1.0] * 15)
        self.assertEqual(older.close_code, 4009)
        self.assertFalse(socket.disconnecting)

    def test_a_new_stream_id_ends_the_stream(self) -> None:
        socket = self.follow()
        self.store.rename()
        self.check(self.log.head)
        self.clock.advance(1)
        self.assertEqual(self.last(socket)[:2], (1001, "the stream has a new name"))

    def test_the_till_resumes_in_the_new_stream(self) -> None:
        self.store.rename()
        self.stands()
        socket = self.follow(f"?last_event_id=8&stream_id={STREAM}")
        greeting = self.greeting(socket)
        self.assertEqual((greeting["resync"], greeting["streamId"]), (None, str(OTHER_STREAM)))
        self.assertEqual(positions(socket), [9, 10])

    def test_a_till_that_disconnects_is_logged(self) -> None:
        socket = self.follow("?last_event_id=8", X_Device_ID="BAR")
        socket.hang_up()
        transport = self.is_disconnected()
        told = {name: transport[name] for name in ("tenant", "device", "by", "sent", "position")}
        self.assertEqual(
            told, {"tenant": "kitchen", "device": "BAR", "by": "till", "sent": 2, "position": 10}
        )

    def test_an_exception_at_the_opening_is_logged_and_ends_the_stream(self) -> None:
        self.patch(Session, "begin", self.fail_to)
        socket = self.follow()
        self.assertEqual(self.last(socket)[0], 1011)
        socket.hang_up()
        self.assertEqual(len(self.flushLoggedErrors(StatementFailed)), 1)
        self.assertEqual((self.connections.open, len(self.hub)), (0, 0))
        self.assertNotIn(b"secret", socket.value())

    def fail_to(self, *_: Any) -> None:
        raise StatementFailed("secret", "XX000")

    def test_a_till_that_disconnects_during_the_lookup_has_no_session(self) -> None:
        self.store.pending = []
        socket = self.send(STREAMED)
        socket.hang_up()
        self.store.pending.pop().callback(None)
        self.assertEqual((self.connections.open, len(self.hub)), (0, 0))

    def test_nothing_is_written_after_the_end(self) -> None:
        socket = self.follow()
        session = self.session()
        Deferred.fromCoroutine(self.hub.drain(5))
        before = len(socket.value())
        self.commit()
        self.clock.pump([1.0] * 10)
        self.assertEqual(len(socket.value()), before)
        self.assertFalse(session.send_queue.has_room)
