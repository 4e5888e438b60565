"""Tests of the receive queue: messages are processed in order, one at a time, at a bounded rate."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.delivery.receive_queue import ReadingTransport, ReceiveQueue
from tests import stack


@define
class Transport:
    """Records whether it is read. Implements `ReadingTransport`."""

    read: bool = True
    pauses: int = 0

    def pauseProducing(self) -> None:
        self.read = False
        self.pauses += 1

    def resumeProducing(self) -> None:
        self.read = True


@define
class Ear:
    """Receives messages. Messages that begin with `slow` end when the test says so."""

    heard: list[bytes] = field(factory=list)
    done: list[bytes] = field(factory=list)
    slow: list[Deferred[None]] = field(factory=list)

    def __call__(self, message: bytes) -> Coroutine[Deferred[Any], Any, None] | None:
        self.heard.append(message)
        if message.startswith(b"bug"):
            raise ZeroDivisionError
        if message.startswith(b"slow"):
            return self.work(message)
        self.done.append(message)
        return None

    async def work(self, message: bytes) -> None:
        answer: Deferred[None] = Deferred()
        self.slow.append(answer)
        await answer
        self.done.append(message)


class ReceiveQueueCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = Transport()
        reading: ReadingTransport = self.transport
        self.ear = Ear()
        self.failures = 0
        self.owed: list[float] = []
        """The pauses in seconds that the next charges return. Later charges return none."""
        self.charged: list[tuple[float, int]] = []
        self.receive_queue = ReceiveQueue(
            self.clock, reading, self.ear, self.note_failure, self.charge
        )

    def charge(self, requests: float, size: int) -> float:
        self.charged.append((requests, size))
        return self.owed.pop(0) if self.owed else 0.0

    def note_failure(self) -> None:
        self.failures += 1


class OrderTests(ReceiveQueueCase):
    def test_a_message_is_processed_at_once(self) -> None:
        self.receive_queue.put(b"a")
        self.assertEqual(self.ear.done, [b"a"])

    def test_a_message_waits_for_a_slow_one_before_it(self) -> None:
        for message in (b"slow 1", b"a", b"slow 2", b"b"):
            self.receive_queue.put(message)
        self.assertEqual(self.ear.heard, [b"slow 1"])
        self.ear.slow.pop().callback(None)
        self.assertEqual(self.ear.done, [b"slow 1", b"a"])
        self.ear.slow.pop().callback(None)
        self.assertEqual(self.ear.done, [b"slow 1", b"a", b"slow 2", b"b"])

    def test_an_exception_is_reported_and_stops_no_other_message(self) -> None:
        self.receive_queue.put(b"slow")
        for message in (b"bug", b"a"):
            self.receive_queue.put(message)
        self.ear.slow.pop().errback(ZeroDivisionError())
        self.assertEqual((self.failures, self.ear.done), (2, [b"a"]))

    def test_waiting_messages_are_processed_after_the_connection_ended(self) -> None:
        for message in (b"slow", b"a"):
            self.receive_queue.put(message)
        self.receive_queue.stop()
        self.ear.slow.pop().callback(None)
        self.assertEqual(self.ear.done, [b"slow", b"a"])

    @given(st.lists(st.sampled_from([b"slow", b"a", b"b"]), max_size=60), st.data())
    def test_messages_are_processed_in_order_whatever_their_duration(
        self, messages: list[bytes], data: st.DataObject
    ) -> None:
        self.setUp()
        numbered = [b"%b %d" % (kind, number) for number, kind in enumerate(messages)]
        for message in numbered:
            done: bool = data.draw(st.booleans())
            if done and self.ear.slow:
                self.ear.slow.pop().callback(None)
            self.assertLessEqual(len(self.ear.slow), 1)
            self.receive_queue.put(message)
        while self.ear.slow:
            self.ear.slow.pop().callback(None)
        self.assertEqual(self.ear.done, numbered)
        self.assertTrue(self.transport.read)


class PauseTests(ReceiveQueueCase):
    def test_reading_pauses_while_many_messages_wait(self) -> None:
        self.receive_queue.put(b"slow")
        for _ in range(15):
            self.receive_queue.put(b"a")
        self.assertTrue(self.transport.read)
        self.receive_queue.put(b"a")
        self.assertFalse(self.transport.read)
        self.assertTrue(self.receive_queue.is_paused)
        self.ear.slow.pop().callback(None)
        self.assertTrue(self.transport.read)
        self.assertFalse(self.receive_queue.is_paused)

    def test_messages_that_were_read_before_a_pause_are_processed(self) -> None:
        self.receive_queue.put(b"slow")
        for _ in range(100):
            self.receive_queue.put(b"a")
        self.ear.slow.pop().callback(None)
        self.assertEqual(len(self.ear.done), 101)
        self.assertEqual(self.transport.pauses, 1)

    def test_a_frame_is_charged_by_its_size_and_a_debt_pauses_reading(self) -> None:
        self.owed = [0.0, 0.5]
        self.assertTrue(self.receive_queue.charge_frame(7))
        self.assertTrue(self.transport.read)
        self.assertTrue(self.receive_queue.charge_frame(100))
        self.assertEqual((self.transport.read, self.charged), (False, [(0.25, 7), (0.25, 100)]))
        self.clock.advance(0.4)
        self.assertFalse(self.transport.read)
        self.clock.advance(0.1)
        self.assertTrue(self.transport.read)

    def test_a_message_that_costs_a_statement_is_charged_as_a_request(self) -> None:
        self.owed = [0.0, 0.5]
        self.receive_queue.charge_frame(7)
        self.receive_queue.charge_statement()
        self.assertEqual(sum(requests for requests, _ in self.charged), 1)
        self.assertFalse(self.transport.read)
        self.clock.advance(0.5)
        self.assertTrue(self.transport.read)

    def test_frames_that_were_read_before_a_pause_make_it_longer(self) -> None:
        self.owed = [0.5, 0.75, 2.0]
        for _ in range(3):
            self.receive_queue.charge_frame(1)
        self.clock.advance(1.9)
        self.assertFalse(self.transport.read)
        self.clock.advance(0.1)
        self.assertTrue(self.transport.read)
        self.assertEqual(self.transport.pauses, 1)

    def test_reading_resumes_only_after_slow_messages_too(self) -> None:
        self.owed = [0.5]
        self.receive_queue.charge_frame(1)
        self.receive_queue.put(b"slow")
        for _ in range(16):
            self.receive_queue.put(b"a")
        self.clock.advance(1)
        self.assertFalse(self.transport.read)
        self.ear.slow.pop().callback(None)
        self.assertTrue(self.transport.read)

    def test_more_than_3000_frames_in_a_pause_are_refused(self) -> None:
        self.owed = [1.0] * 3001
        counted = [self.receive_queue.charge_frame(1) for _ in range(3001)]
        self.assertEqual((counted.count(True), counted[-1]), (3000, False))

    def test_frames_are_counted_for_each_pause(self) -> None:
        for _ in range(3):
            self.owed = [1.0] * 2000
            self.assertTrue(all(self.receive_queue.charge_frame(1) for _ in range(2000)))
            self.clock.advance(1)

    def test_an_ended_connection_is_not_paused_or_resumed(self) -> None:
        self.owed = [1.0, 1.0]
        self.receive_queue.charge_frame(1)
        self.receive_queue.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.receive_queue.charge_frame(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.transport.read)


class ManyTests(ReceiveQueueCase):
    def test_thousands_of_waiting_messages_do_not_deepen_the_stack(self) -> None:
        """The first message fails late and all others at once, as when the database becomes unreachable."""
        self.receive_queue.put(b"slow")
        for _ in range(3000):
            self.receive_queue.put(b"fails")
        depths: list[int] = []

        async def fail() -> None:
            depths.append(stack.stack_depth())
            raise ZeroDivisionError

        self.patch(self.receive_queue, "_receive", lambda message: fail())
        self.ear.slow.pop().callback(None)
        self.assertEqual((len(depths), self.failures), (3000, 3000))
        self.assertEqual(len({*depths}), 1)
        self.assertTrue(self.transport.read)
