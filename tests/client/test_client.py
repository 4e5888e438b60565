"""The reference till while it is connected: its requests, its acknowledgements, and violations by the
server.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from posd.client import CannotProcess, NextStep, ReceivedEvent, Till
from posd.values import Position, Resync
from tests.till_case import KEY, OTHER_STREAM, STREAM, Desk, TillCase


class Opening(TillCase):
    def test_the_key_and_the_device_id_are_in_headers_and_not_in_the_url(self) -> None:
        self.started(device_id="front")
        desk = self.connect()
        self.assertEqual(desk.path, "/ws/pos/kitchen")
        self.assertEqual(desk.params, {})
        self.assertEqual(desk.headers["x-api-key"], KEY)
        self.assertEqual(desk.headers["x-device-id"], "front")

    def test_a_till_requests_the_events_after_a_given_position(self) -> None:
        self.started(after=1030, stream_id=STREAM)
        desk = self.connect()
        self.assertEqual(desk.params, {"last_event_id": ["1030"], "stream_id": [str(STREAM)]})

    def test_a_key_is_not_sent_in_clear_text_to_another_machine(self) -> None:
        with self.assertRaisesRegex(ValueError, "only over TLS"):
            Till(self.reactor, "ws://shop.example:9010", "kitchen", KEY, handle=self.store)

    def test_a_key_with_a_line_break_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "key must be printable"):
            Till(self.reactor, "ws://127.0.0.1", "kitchen", "a\r\nb: c", handle=self.store)

    def test_the_key_is_not_shown(self) -> None:
        self.assertNotIn(KEY, repr(self.till()))

    def test_a_server_without_a_connected_message_times_out(self) -> None:
        self.started()
        self.connect()
        self.advance(15)
        self.assertIn("no data from the server", self.endings[0].reason)

    def test_a_server_that_never_answers_the_handshake_times_out(self) -> None:
        self.serve(Factory.forProtocol(Protocol))
        self.started()
        pump = self.completer.succeedOnce()
        assert pump is not None
        self.pumps.append(pump)
        self.advance(15)
        self.assertEqual(self.endings[0].reason, "the server did not answer the handshake")


class Stream(TillCase):
    def test_events_are_handled_in_order_and_acknowledged_together(self) -> None:
        till = self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1043, 1044)
        self.flush()
        self.assertEqual(self.handled, [1042, 1043, 1044])
        self.advance(0.1)
        self.assertEqual(self.acks(desk), [1044])
        self.assertEqual(till.position, Position(1044, STREAM))

    def test_an_event_is_acknowledged_only_when_it_is_stored(self) -> None:
        stored: Deferred[None] = Deferred()
        self.started(lambda event: stored)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042)
        self.flush()
        self.advance(10)
        self.assertEqual(self.acks(desk), [])
        stored.callback(None)
        self.advance(0.1)
        self.assertEqual(self.acks(desk), [1042])

    def test_the_next_event_waits_for_the_one_before(self) -> None:
        begun: list[int] = []
        gates = {1042: Deferred[None](), 1043: Deferred[None]()}

        async def handle(event: ReceivedEvent) -> None:
            begun.append(event.id)
            await gates[event.id]

        self.started(handle)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1043)
        self.flush()
        self.assertEqual(begun, [1042])
        gates[1042].callback(None)
        self.assertEqual(begun, [1042, 1043])

    def test_numbers_arrive_as_exact_decimals(self) -> None:
        events: list[ReceivedEvent] = []
        self.started(events.append)
        desk = self.connect()
        desk.greet(0)
        desk.push(1, kind="table_booked")
        self.flush()
        self.assertEqual(
            (events[0].type, str(events[0].data["totalAmount"])), ("table_booked", "12.5")
        )

    def test_a_till_with_a_device_id_and_without_a_position_resumes_at_its_cursor(self) -> None:
        self.started(device_id="front")
        desk = self.connect()
        desk.greet(1041, resumed=1039)
        desk.push(1040, 1041, 1042)
        self.flush()
        self.assertEqual(self.handled, [1040, 1041, 1042])

    def test_a_terminal_without_a_device_id_does_not_acknowledge(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(1041, device=None)
        desk.push(1042)
        self.advance(1)
        self.assertEqual(desk.messages, [])

    def test_a_till_with_ack_false_does_not_acknowledge(self) -> None:
        self.started(ack=False)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042)
        self.advance(1)
        self.assertEqual((self.handled, desk.messages), ([1042], []))

    def test_an_event_that_cannot_be_processed_is_refused_after_those_before_it_are_acknowledged(
        self,
    ) -> None:
        def handle(event: ReceivedEvent) -> None:
            if event.id == 1043:
                raise CannotProcess("no printer for this")

        till = self.started(handle)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1043, 1044)
        self.flush()
        self.advance(0.1)
        self.assertEqual(
            desk.messages,
            [
                {"type": "ack", "id": 1042},
                {"type": "nack", "id": 1043, "reason": "no printer for this"},
                {"type": "ack", "id": 1044},
            ],
        )
        self.assertEqual(till.position, Position(1044, STREAM))

    def test_an_event_that_was_not_stored_is_requested_again(self) -> None:
        full = [True]

        def handle(event: ReceivedEvent) -> None:
            if full[0] and event.id == 1043:
                raise OSError("no space left")
            self.handled.append(event.id)

        self.started(handle)
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1043, 1044)
        self.advance(0.1)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual((self.handled, self.acks(desk), desk.closed), ([1042], [1042], True))
        full[0] = False
        self.wait_for_attempt()
        again = self.connect()
        self.assertEqual(again.params["last_event_id"], ["1042"])
        again.greet(1044, resumed=1042)
        again.push(1043, 1044)
        self.flush()
        self.assertEqual(self.handled, [1042, 1043, 1044])

    def test_pings_and_error_messages_of_the_server_change_nothing(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(0)
        desk.tell({"type": "ping"})
        desk.tell({"type": "error", "code": "no_device", "message": "Acks need a device id."})
        desk.push(1)
        self.flush()
        self.assertEqual(self.handled, [1])


class Gapless(TillCase):
    def assert_heals(self, desk: Desk, reason: str) -> None:
        """Assert that the till closed the connection for this reason, and resumes after 1042."""
        self.flush()
        self.assertEqual((self.handled, desk.code), ([1042], 1002))
        self.assertRegex(self.endings[0].reason, reason)
        self.assertGreaterEqual(self.wait_for_attempt(), 30)
        self.assertEqual(self.connect().params["last_event_id"], ["1042"])

    def test_a_gap_is_reported_and_the_missing_events_are_requested(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1044)
        self.assert_heals(desk, "event 1044 after event 1042")

    def test_a_repetition_is_reported_and_not_handled(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1042)
        self.assert_heals(desk, "event 1042 after event 1042")

    def test_events_after_a_gap_are_not_handled(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042, 1044, 1043)
        self.assert_heals(desk, "1044")

    def test_an_invalid_message_is_reported(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.push(1042)
        desk.sendMessage(b"[]")
        self.assert_heals(desk, "must be an object")

    def test_an_event_before_the_connected_message_is_reported(self) -> None:
        self.started()
        desk = self.connect()
        desk.push(1)
        self.flush()
        self.assertIn("before the `connected` message", self.endings[0].reason)

    def test_a_second_connected_message_is_reported(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.greet(1041)
        self.flush()
        self.assertIn("a second `connected` message", self.endings[0].reason)

    def test_a_server_that_ignores_the_position_is_reported(self) -> None:
        self.started(after=1030)
        desk = self.connect()
        desk.greet(1041)
        self.flush()
        self.assertIn("does not resume after 1030", self.endings[0].reason)

    def test_a_binary_message_is_refused(self) -> None:
        self.started()
        desk = self.connect()
        desk.greet(1041)
        desk.sendMessage(b"\x00", isBinary=True)
        self.flush()
        self.assertEqual((desk.code, self.endings[0].next_step), (1003, NextStep.WAIT))

    def test_a_message_beyond_the_limit_is_refused(self) -> None:
        self.started(longest_message=1000)
        desk = self.connect()
        desk.greet(1041)
        desk.sendMessage(b"x" * 1001)
        self.flush()
        self.advance(5)
        self.assertEqual((desk.code, self.endings[0].next_step), (1009, NextStep.WAIT))

    def test_breaches_are_counted(self) -> None:
        till = self.started()
        self.connect().push(1)
        self.flush()
        till.stopService()
        self.assertEqual(self.summaries[0].breaches, 1)


class Resyncing(TillCase):
    def test_the_till_reloads_first_and_resumes_at_the_head(self) -> None:
        story: list[object] = []
        reloaded: Deferred[None] = Deferred()

        def reload(reason: Resync, head: int) -> Deferred[None]:
            story.append((reason, head))
            return reloaded

        till = self.started(
            lambda event: story.append(event.id), after=3, stream_id=STREAM, on_resync=reload
        )
        desk = self.connect()
        desk.greet(1041, resync="reset", stream=OTHER_STREAM)
        desk.push(1042)
        self.advance(1)
        self.assertEqual(story, [(Resync.RESET, 1041)])
        self.assertEqual((till.position, self.acks(desk)), (Position(3, STREAM), []))
        reloaded.callback(None)
        self.advance(1)
        self.assertEqual(story, [(Resync.RESET, 1041), 1042])
        self.assertEqual(till.position, Position(1042, OTHER_STREAM))
        self.assertEqual(self.acks(desk), [1042])

    def test_a_position_of_a_lost_stream_is_not_acknowledged_to_another(self) -> None:
        stored: Deferred[None] = Deferred()
        reloaded: Deferred[None] = Deferred()
        self.started(
            lambda event: stored,
            stream_id=STREAM,
            after=1041,
            on_resync=lambda reason, head: reloaded,
        )
        desk = self.connect()
        desk.greet(1042, resumed=1041)
        desk.push(1042)
        self.flush()
        desk.hang_up(1001, "the stream has a new name")
        self.flush()
        # The event is stored while there is no connection to acknowledge it on.
        stored.callback(None)
        self.wait_for_attempt()
        again = self.connect()
        self.assertEqual(again.params["stream_id"], [str(STREAM)])
        again.greet(2000, resync="reset", stream=OTHER_STREAM)
        self.advance(1)
        self.assertEqual(self.acks(again), [])
        reloaded.callback(None)
        self.advance(1)
        self.assertEqual(self.acks(again), [2000])

    def test_without_a_loss_the_till_resumes_under_the_new_stream_id(self) -> None:
        till = self.started(stream_id=STREAM, after=3)
        desk = self.connect()
        desk.greet(5, resumed=3, stream=OTHER_STREAM)
        desk.push(4, 5)
        self.advance(1)
        self.assertEqual((self.handled, self.acks(desk)), ([4, 5], [5]))
        self.assertEqual(till.position, Position(5, OTHER_STREAM))

    def test_a_failed_reload_is_requested_again(self) -> None:
        def reload(reason: Resync, head: int) -> None:
            raise OSError("no space left")

        till = self.started(after=3, on_resync=reload)
        self.connect().greet(1041, resync="retention")
        self.flush()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(till.position, Position(3))
        self.wait_for_attempt()
        self.assertEqual(self.connect().params["last_event_id"], ["3"])

    def test_without_a_reload_function_the_stream_continues(self) -> None:
        self.started(after=3)
        desk = self.connect()
        desk.greet(1041, resync="ahead")
        desk.push(1042)
        self.flush()
        self.assertEqual(self.handled, [1042])
