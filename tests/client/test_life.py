"""The connections of the reference till: their loss, reconnection, and the end of the till."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from posd.client import (
    CannotProcess,
    Fault,
    NextStep,
    Outcome,
    PositionFile,
    ReceivedEvent,
    Summary,
    Till,
)
from posd.client.till import STEADY
from posd.values import Position
from tests.till_case import STREAM, TillCase, refusal


class Reconnecting(TillCase):
    def test_a_lost_connection_is_resumed_after_the_last_event_stored(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042)
        self.advance(0.1)
        desk.transport.loseConnection()
        self.flush()
        self.assertEqual(self.wait_for_attempt(), 0.75)
        self.assertEqual(
            self.connect().params, {"last_event_id": ["1042"], "stream_id": [str(STREAM)]}
        )

    def test_an_event_that_is_being_stored_is_not_requested_again(self) -> None:
        stored: Deferred[None] = Deferred()
        self.started(lambda event: stored)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1043)
        self.flush()
        desk.transport.loseConnection()
        self.flush()
        self.wait_for_attempt()
        again = self.connect()
        self.assertFalse(hasattr(again, "params"), "asked before it knew where to begin")
        stored.callback(None)
        self.flush()
        self.assertEqual(again.params["last_event_id"], ["1042"])

    def test_an_unsent_acknowledgement_is_sent_on_the_next_connection(self) -> None:
        stored: Deferred[None] = Deferred()
        self.started(lambda event: stored)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042)
        self.flush()
        desk.transport.loseConnection()
        self.flush()
        stored.callback(None)
        self.wait_for_attempt()
        again = self.connect()
        again.greet(1042, resumed=1042)
        self.flush()
        self.advance(0.1)
        self.assertEqual(self.acks(again), [1042])

    def test_failures_in_a_row_are_answered_with_longer_pauses_up_to_a_minute(self) -> None:
        self.started()
        pauses = []
        for _ in range(8):
            self.completer.failOnce()
            pauses.append(self.wait_for_attempt())
        self.assertEqual(pauses, [0.75, 1.5, 3, 6, 12, 24, 45, 45])
        self.assertIn("refused", self.endings[0].reason.lower())

    def test_a_steady_connection_resets_the_back_off(self) -> None:
        self.started()
        for _ in range(5):
            self.completer.failOnce()
            self.wait_for_attempt()
        desk = self.connect()
        desk.greet(0)
        self.flush()
        self.advance(STEADY)
        desk.transport.loseConnection()
        self.flush()
        self.assertEqual(self.wait_for_attempt(), 0.75)

    def test_a_short_connection_counts_as_a_failure(self) -> None:
        self.started()
        self.completer.failOnce()
        self.wait_for_attempt()
        desk = self.connect()
        desk.greet(0)
        self.flush()
        desk.transport.loseConnection()
        self.flush()
        self.assertEqual(self.wait_for_attempt(), 1.5)

    def test_silence_beyond_two_heartbeats_ends_the_connection(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(0)
        self.flush()
        self.advance(64)
        desk.push(1)
        self.flush()
        self.advance(64)
        self.assertEqual(self.endings, [])
        self.advance(1)
        self.assertEqual(self.endings[0].reason, "no data from the server for 65 s")

    def test_the_servers_pings_are_answered_and_reset_the_idle_timeout(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(0)
        self.flush()
        pongs: list[bytes] = []
        desk.onPong = pongs.append
        for _ in range(4):
            self.advance(30)
            desk.sendPing(b"?")
            self.flush()
        self.assertEqual((self.endings, pongs), ([], [b"?"] * 4))


class CloseCodes(TillCase):
    def closed_with(self, code: int, reason: str = "") -> Outcome:
        self.started()
        desk = self.connect()
        desk.greet(0)
        self.flush()
        self.advance(STEADY)
        desk.hang_up(code, reason)
        self.flush()
        return self.endings[0]

    def test_1001_is_answered_at_once_with_jitter(self) -> None:
        self.assertEqual(self.closed_with(1001).code, 1001)
        self.assertEqual(self.wait_for_attempt(), 0.5)

    def test_1013_is_an_ordinary_reconnection(self) -> None:
        self.closed_with(1013)
        self.assertEqual(self.wait_for_attempt(), 0.75)

    def test_errors_of_the_client_are_retried_after_minutes(self) -> None:
        self.closed_with(1008, "too many invalid messages")
        self.assertIn("too many invalid messages", self.endings[0].reason)
        self.assertEqual(self.wait_for_attempt(), 45)

    def test_a_revoked_key_stops_the_till(self) -> None:
        self.closed_with(4001, "revoked")
        self.advance(5000)
        self.assertFalse(self.is_trying())
        self.assertEqual(self.summaries[0].outcome.code, 4001)

    def test_a_superseded_till_stops(self) -> None:
        self.closed_with(4009)
        self.assertFalse(self.is_trying())
        self.assertIn("newer connection", self.summaries[0].outcome.reason)

    def test_a_server_that_keeps_tcp_open_after_a_close_frame_is_disconnected(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(0)
        self.flush()
        desk.dropConnection = lambda abort=False: None
        desk.hang_up(1001)
        self.flush()
        self.assertEqual(self.endings, [])
        self.advance(5)
        self.assertEqual(self.endings[0].code, 1001)


class Refusals(TillCase):
    def refused_with(self, status: str, body: bytes = b"", *headers: bytes) -> Outcome:
        self.refuse(refusal(status, body, *headers))
        self.started()
        pump = self.completer.succeedOnce()
        assert pump is not None
        self.pumps.append(pump)
        self.flush()
        return self.endings[0]

    def test_an_unknown_key_stops_the_till_and_says_why(self) -> None:
        outcome = self.refused_with(
            "401 Unauthorized",
            b'{"success":false,"error":"A valid API key is required.","code":"unauthorized"}',
        )
        self.assertFalse(self.is_trying())
        self.assertEqual((outcome.status, outcome.name), (401, "unauthorized"))
        self.assertIn("A valid API key is required.", self.summaries[0].outcome.reason)

    def test_a_device_that_needs_its_own_key_stops(self) -> None:
        outcome = self.refused_with("403 Forbidden", b'{"code":"device_key_required"}')
        self.assertEqual((outcome.name, outcome.next_step), ("device_key_required", NextStep.STOP))

    def test_retry_after_of_a_busy_server_is_respected(self) -> None:
        self.refused_with("503 Service Unavailable", b"{}", b"Retry-After: 20")
        self.assertEqual(self.wait_for_attempt(), 22.5)

    def test_a_refusal_for_too_many_attempts_is_retried_after_its_pause(self) -> None:
        self.refused_with("429 Too Many Requests", b"", b"Retry-After: 60")
        self.assertEqual(self.wait_for_attempt(), 67.5)

    def test_a_wrong_path_is_retried_after_a_long_pause(self) -> None:
        self.refused_with("404 Not Found", b"<html>not JSON</html>")
        self.assertEqual(self.endings[0].reason, "refused with HTTP 404")
        self.assertEqual(self.wait_for_attempt(), 45)

    def test_a_refusal_is_read_to_its_end_even_if_its_body_is_late(self) -> None:
        head, body = refusal("403 Forbidden", b'{"code":"device_key_required"}')
        self.refuse([head])
        self.started()
        pump = self.completer.succeedOnce()
        assert pump is not None
        self.pumps.append(pump)
        self.flush()
        self.assertEqual(self.endings, [])
        pump.server.transport.write(body)
        self.flush()
        self.assertEqual(self.endings[0].name, "device_key_required")

    def test_another_protocol_is_not_taken_for_a_refusal(self) -> None:
        self.refuse([b"SSH-2.0-OpenSSH\r\n\r\n"])
        self.started()
        pump = self.completer.succeedOnce()
        assert pump is not None
        self.pumps.append(pump)
        self.flush()
        self.assertIn("did not answer with HTTP", self.endings[0].reason)
        self.assertIs(self.endings[0].fault, Fault.NO_ANSWER)


class Stopping(TillCase):
    def test_a_till_that_is_stopped_acknowledges_and_closes(self) -> None:
        till = self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042)
        self.flush()
        stopped = till.stopService()
        self.assertNoResult(stopped)
        self.flush()
        self.successResultOf(stopped)
        self.assertEqual((self.acks(desk), desk.code), ([1042], 1000))
        self.assertFalse(self.is_trying())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_stopping_till_finishes_only_the_current_event(self) -> None:
        stored: Deferred[None] = Deferred()
        begun: list[int] = []

        def handle(event: ReceivedEvent) -> Deferred[None]:
            begun.append(event.id)
            return stored

        till = self.started(handle)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1043)
        self.flush()
        stopped = till.stopService()
        self.flush()
        self.assertNoResult(stopped)
        stored.callback(None)
        self.flush()
        self.successResultOf(stopped)
        self.assertEqual((begun, self.acks(desk)), ([1042], [1042]))

    def test_the_handler_may_stop_the_till(self) -> None:
        def handle(event: ReceivedEvent) -> None:
            self.handled.append(event.id)
            till.stopService()

        till = self.started(handle)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1043)
        self.flush()
        self.assertEqual((self.handled, self.acks(desk)), ([1042], [1042]))
        self.assertEqual(len(self.summaries), 1)

    def test_a_connection_lost_while_stopping_is_not_made_again(self) -> None:
        stored: Deferred[None] = Deferred()
        till = self.started(lambda event: stored)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042)
        self.flush()
        stopped = till.stopService()
        desk.transport.loseConnection()
        self.flush()
        stored.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertFalse(self.is_trying())

    def test_stopping_ends_an_attempt_to_connect(self) -> None:
        till = self.started()
        self.successResultOf(till.stopService())

    def test_stopping_ends_a_pause(self) -> None:
        till = self.started()
        self.completer.failOnce()
        self.successResultOf(till.stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_an_observer_may_stop_the_till_at_the_first_failure(self) -> None:
        till: Till = self.started(on_disconnected=lambda outcome: till.stopService())
        self.completer.failOnce()
        self.assertEqual(len(self.summaries), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stopping_ends_a_handshake(self) -> None:
        self.serve(Factory.forProtocol(Protocol))
        till = self.started()
        pump = self.completer.succeedOnce()
        assert pump is not None
        self.pumps.append(pump)
        stopped = till.stopService()
        self.flush()
        self.successResultOf(stopped)

    def test_the_summary_has_the_counts(self) -> None:
        def handle(event: ReceivedEvent) -> None:
            if event.id == 1043:
                raise CannotProcess("no printer")

        till = self.started(handle)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1043)
        self.flush()
        desk.transport.loseConnection()
        self.flush()
        self.wait_for_attempt()
        desk = self.connect()
        desk.greet(1043, resumed=1043)
        desk.push(1044)
        self.flush()
        till.stopService()
        self.flush()
        self.assertEqual(
            self.summaries,
            [
                Summary(
                    received=3,
                    stored=2,
                    refused=1,
                    reconnects=1,
                    breaches=0,
                    acknowledged=1044,
                    position=Position(1044, STREAM),
                    outcome=Outcome("stopped", NextStep.STOP),
                )
            ],
        )

    def test_a_failing_observer_does_not_stop_the_till(self) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("a bug in the observer")

        self.started(on_connected=broken)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042)
        self.flush()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.handled, [1042])


class Remembering(TillCase):
    def setUp(self) -> None:
        super().setUp()
        self.file = PositionFile(Path(self.mktemp()))

    def test_a_till_resumes_at_the_position_in_its_file(self) -> None:
        self.file.save(Position(1030, STREAM))
        self.started(position_file=self.file)
        self.assertEqual(
            self.connect().params, {"last_event_id": ["1030"], "stream_id": [str(STREAM)]}
        )

    def test_a_given_position_takes_precedence_over_the_file(self) -> None:
        self.file.save(Position(1030, STREAM))
        self.started(position_file=self.file, after=7)
        self.assertEqual(self.connect().params, {"last_event_id": ["7"]})

    def test_the_position_is_saved_before_it_is_acknowledged(self) -> None:
        self.started(position_file=self.file)
        desk = self.connect()
        saved_at_ack: list[Position | None] = []
        self.patch(desk, "onMessage", lambda text, binary: saved_at_ack.append(self.file.load()))
        desk.greet(1041)
        desk.push(1042, 1043)
        self.flush()
        self.advance(0.1)
        self.assertEqual(saved_at_ack, [Position(1043, STREAM)])

    def test_a_till_without_a_position_saves_where_it_started(self) -> None:
        self.started(position_file=self.file)
        self.connect().greet(1041)
        self.advance(0.1)
        self.assertEqual(self.file.load(), Position(1041, STREAM))
