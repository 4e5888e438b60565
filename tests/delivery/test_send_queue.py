"""Tests of the send queue: it writes while its transport accepts bytes, and keeps a bounded number."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from posd.delivery.send_queue import ByteSink, SendBudget, SendQueue, SendQueueOwner


@define
class Wire:
    """A transport that pauses its producer after a number of bytes."""

    enough: float = float("inf")
    producer: SendQueue | None = None
    taken: list[bytes] = field(factory=list)

    def write(self, data: bytes) -> None:
        self.taken.append(data)
        if sum(map(len, self.taken)) > self.enough and self.producer is not None:
            self.producer.pauseProducing()

    def drain(self) -> None:
        """All bytes were sent."""
        assert self.producer is not None
        self.enough += sum(map(len, self.taken))
        self.producer.resumeProducing()


@define
class Filler:
    """Records the calls of a send queue. Implements `SendQueueOwner`."""

    told: list[str] = field(factory=list)

    def on_room(self) -> None:
        self.told.append("room")

    def on_shed(self) -> None:
        self.told.append("given up")


class SendQueueCase(SynchronousTestCase):
    limit = 10
    total = 1000

    def setUp(self) -> None:
        self.clock = Clock()
        self.budget = SendBudget(self.total)
        self.wire = Wire()
        self.filler = Filler()
        self.send_queue = self.box(self.wire, self.filler)

    def box(self, wire: Wire, filler: Filler, tenant_id: int = 1) -> SendQueue:
        sink: ByteSink = wire
        listener: SendQueueOwner = filler
        send_queue = SendQueue(
            sink, self.limit, self.budget, tenant_id, clock=self.clock.seconds, position=100
        )
        send_queue.listener = listener
        wire.producer = send_queue
        return send_queue


class SendQueueTests(SendQueueCase):
    def test_the_queue_is_a_push_producer(self) -> None:
        self.assertTrue(verifyObject(IPushProducer, self.send_queue))

    def test_bytes_are_written_at_once_while_the_transport_accepts_them(self) -> None:
        self.assertTrue(self.send_queue.offer(b"a", 101))
        self.assertTrue(self.send_queue.offer(b"pong"))
        self.assertEqual(self.wire.taken, [b"a", b"pong"])
        self.assertEqual((self.send_queue.position, self.send_queue.written), (101, 101))
        self.assertEqual((self.send_queue.held, self.budget.held), (0, 0))

    def test_bytes_wait_while_the_transport_is_paused(self) -> None:
        self.send_queue.pauseProducing()
        self.assertTrue(self.send_queue.offer(b"a", 101))
        self.assertEqual(self.wire.taken, [])
        self.assertEqual((self.send_queue.position, self.send_queue.written), (101, 100))
        self.assertEqual((self.send_queue.held, self.budget.held), (1, 1))

    def test_waiting_bytes_are_written_in_order_after_the_pause(self) -> None:
        self.send_queue.pauseProducing()
        for seq in (101, 102, 103):
            self.send_queue.offer(b"%d" % seq, seq)
        self.send_queue.resumeProducing()
        self.assertEqual(self.wire.taken, [b"101", b"102", b"103"])
        self.assertEqual((self.send_queue.position, self.send_queue.written), (103, 103))
        self.assertEqual((self.send_queue.held, self.budget.held), (0, 0))

    def test_new_bytes_do_not_overtake_waiting_ones(self) -> None:
        self.wire.enough = 0
        self.send_queue.offer(b"a", 101)
        for seq in (102, 103):
            self.send_queue.offer(b"x", seq)
        self.wire.enough = 1
        self.send_queue.resumeProducing()
        self.send_queue.offer(b"y", 104)
        self.assertEqual(self.wire.taken, [b"a", b"x"])
        self.wire.drain()
        self.assertEqual(self.wire.taken, [b"a", b"x", b"x", b"y"])

    def test_bytes_beyond_the_limit_are_refused_and_change_no_position(self) -> None:
        self.send_queue.pauseProducing()
        self.assertTrue(self.send_queue.offer(b"x" * 10, 101))
        self.assertFalse(self.send_queue.offer(b"y", 102))
        self.assertEqual((self.send_queue.position, self.send_queue.held), (101, 10))

    def test_bytes_larger_than_the_limit_are_written_if_none_wait(self) -> None:
        self.assertTrue(self.send_queue.offer(b"x" * 11, 101))
        self.assertEqual(len(self.wire.taken), 1)

    def test_the_owner_is_called_only_when_no_bytes_wait(self) -> None:
        self.wire.enough = 0
        self.send_queue.offer(b"a", 101)
        self.send_queue.offer(b"b", 102)
        self.send_queue.resumeProducing()
        self.assertEqual(self.filler.told, [])
        self.wire.drain()
        self.assertEqual(self.filler.told, ["room"])

    def test_the_stall_begins_at_the_first_pause(self) -> None:
        self.clock.advance(5)
        self.send_queue.pauseProducing()
        self.clock.advance(5)
        self.send_queue.pauseProducing()
        self.assertEqual(self.send_queue.stalled_since, 5)
        self.send_queue.resumeProducing()
        self.assertIsNone(self.send_queue.stalled_since)

    def test_progress_restarts_the_stall(self) -> None:
        self.wire.enough = 0
        self.send_queue.offer(b"a", 101)
        self.send_queue.offer(b"b", 102)
        self.clock.advance(50)
        self.send_queue.resumeProducing()
        self.assertEqual(self.send_queue.stalled_since, 50)

    def test_dropped_events_can_be_offered_again(self) -> None:
        self.send_queue.offer(b"a", 101)
        self.send_queue.pauseProducing()
        self.send_queue.offer(b"b", 102)
        self.send_queue.offer(b"pong")
        self.send_queue.shed()
        self.assertEqual((self.send_queue.position, self.send_queue.held), (101, 0))
        self.assertEqual(self.filler.told, ["given up"])
        self.assertFalse(self.send_queue.has_room)
        self.send_queue.resumeProducing()
        self.assertEqual(self.wire.taken, [b"a"])
        self.assertEqual(self.filler.told, ["given up", "room"])

    def test_a_closed_queue_accepts_nothing_and_calls_nothing(self) -> None:
        self.send_queue.pauseProducing()
        self.send_queue.offer(b"a", 101)
        self.send_queue.close()
        self.assertFalse(self.send_queue.offer(b"b", 102))
        self.send_queue.resumeProducing()
        self.assertFalse(self.send_queue.offer(b"c", 103))
        self.assertEqual((self.wire.taken, self.filler.told), ([], []))
        self.assertEqual((self.send_queue.position, self.budget.held), (100, 0))

    def test_the_end_of_the_transport_closes_the_queue(self) -> None:
        self.send_queue.stopProducing()
        self.assertFalse(self.send_queue.offer(b"a", 101))
        self.assertEqual(self.wire.taken, [])


class BudgetTests(SendQueueCase):
    """The limit of all send queues together."""

    limit = 100
    total = 200

    def stalled(self, tenant_id: int, held: int) -> tuple[SendQueue, Filler]:
        filler = Filler()
        send_queue = self.box(Wire(), filler, tenant_id)
        send_queue.pauseProducing()
        self.assertTrue(send_queue.offer(b"x" * held, 101))
        return send_queue, filler

    def test_a_queue_of_the_tenant_with_the_most_bytes_is_emptied(self) -> None:
        many = [self.stalled(1, 40) for _ in range(4)]
        lone, _ = self.stalled(2, 41)
        self.assertEqual(lone.held, 41)
        self.assertEqual(sorted(send_queue.held for send_queue, _ in many), [0, 40, 40, 40])
        self.assertEqual(self.budget.held, 161)

    def test_the_largest_queue_of_the_tenant_is_emptied_first(self) -> None:
        full, told = self.stalled(1, 90)
        others = [self.stalled(1, 30)[0], self.stalled(1, 40)[0]]
        self.assertEqual(full.held, 90)
        self.stalled(2, 50)
        self.assertEqual(full.held, 0)
        self.assertEqual(told.told, ["given up"])
        self.assertEqual([each.held for each in others], [30, 40])

    def test_the_queue_that_accepts_bytes_may_be_emptied(self) -> None:
        self.budget.limit = 190
        full, told = self.stalled(1, 50)
        for _ in range(2):
            self.stalled(1, 50)
        self.assertTrue(full.offer(b"y" * 50, 102))
        self.assertEqual((full.held, full.position), (0, 100))
        self.assertEqual(told.told, ["given up"])

    def test_queues_are_emptied_until_the_limit_is_kept(self) -> None:
        stalled = [self.stalled(1, 50)[0] for _ in range(4)]
        self.budget.limit = 60
        self.stalled(2, 10)
        self.assertEqual(self.budget.held, 60)
        self.assertEqual(sum(each.held for each in stalled), 50)

    def test_written_bytes_and_closed_queues_do_not_count(self) -> None:
        first, second = self.stalled(1, 50)[0], self.stalled(2, 50)[0]
        first.resumeProducing()
        second.close()
        self.assertEqual(self.budget.held, 0)
        self.assertEqual(self.budget._shares, {})
