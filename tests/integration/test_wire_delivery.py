"""The delivery guarantee (wire protocol §1.4): at least once, in order, for each terminal."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event

from tests.integration.wire import Message, Till
from tests.integration.wire_case import WireCase, until

_DEVICE = "POS_BAR_1"


class NamedTests(WireCase):
    """A terminal with a device id is a durable subscription, from its first acknowledgement on."""

    def setUp(self) -> None:
        super().setUp()
        self.key = self.shop.key("device", self.slug, _DEVICE)

    def acknowledge(self, till: Till, position: int) -> None:
        till.send({"type": "ack", "id": position})
        self.reaches(_DEVICE, position)
        self.proves_itself(_DEVICE)

    def test_it_goes_on_from_what_it_acknowledged(self) -> None:
        till = self.dial()
        self.publish(5)
        till.take(5)
        self.acknowledge(till, 3)
        till.leave()
        self.publish(2)
        again = self.dial()
        self.assertEqual(again.connected["resumedFrom"], 3)
        self.assert_ids(again.take(4), 4, 7)
        self.assertTrue(again.next_is_pong(1))

    def test_losing_power_is_no_different_from_leaving(self) -> None:
        till = self.dial()
        self.publish(2)
        till.take(2)
        self.acknowledge(till, 1)
        till.hang_up()
        self.publish(1)
        self.assert_ids(self.dial().take(2), 2, 3)

    def test_what_it_was_sent_and_did_not_acknowledge_is_sent_again(self) -> None:
        till = self.dial()
        self.publish(4)
        till.take(4)
        self.acknowledge(till, 1)
        for _ in range(3):
            again = self.dial()
            self.assert_ids(again.take(3), 2, 4)
            again.leave()

    def test_one_that_comes_back_at_once_finds_what_it_said_last(self) -> None:
        till = self.dial()
        self.publish(4)
        till.take(4)
        for position in (1, 3, 4):
            till.send({"type": "ack", "id": position})
            self.assertTrue(till.next_is_pong(position))
            till.hang_up()
            till = self.dial()
            self.assertEqual(till.connected["resumedFrom"], position)
            till.take(4 - position)

    def test_a_position_of_its_own_counts_before_its_cursor(self) -> None:
        till = self.dial()
        self.publish(5)
        till.take(5)
        self.acknowledge(till, 4)
        again = self.dial(after=2)
        self.assertEqual(again.connected["resumedFrom"], 2)
        self.assert_ids(again.take(3), 3, 5)
        self.assertEqual(self.cursor(_DEVICE), 4)

    def test_naming_a_position_is_its_first_word_too(self) -> None:
        self.publish(3)
        self.dial(after=3).leave()
        self.proves_itself(_DEVICE)
        self.publish(2)
        self.assert_ids(self.dial().take(2), 4, 5)

    def test_nobody_prints_last_months_orders(self) -> None:
        self.publish(3)
        self.shop.key("device", self.slug, "POS_NEW_1")
        self.assertEqual(self.cursor("POS_NEW_1"), 3)
        by_tenant = self.shop.key(slug=self.slug)
        till = self.dial(key=by_tenant, device="POS_NEW_2")
        self.assertEqual(self.cursor("POS_NEW_2"), 3)
        self.assertTrue(till.next_is_pong(1))

    def test_one_that_never_acknowledged_is_sent_what_comes_and_no_more(self) -> None:
        till = self.dial()
        self.publish(2)
        self.assert_ids(till.take(2), 1, 2)
        self.reaches(_DEVICE, 2)
        till.leave()
        self.publish(3)
        again = self.dial()
        self.assertIsNone(again.connected["resumedFrom"])
        self.assertTrue(again.next_is_pong(1))
        self.publish(1)
        self.assert_ids([again.receive()], 6, 6)

    def test_with_its_first_word_it_is_as_far_as_it_says_and_no_further(self) -> None:
        till = self.dial()
        self.publish(5)
        till.take(5)
        self.reaches(_DEVICE, 5)
        self.acknowledge(till, 2)
        till.hang_up()
        self.assert_ids(self.dial().take(3), 3, 5)


class UnnamedTests(WireCase):
    """A terminal without a device id receives only new events, unless it names a position."""

    def test_without_a_position_it_is_sent_what_comes(self) -> None:
        self.publish(3)
        till = self.dial()
        self.assertTrue(till.next_is_pong(1))
        self.publish(2)
        self.assert_ids(till.take(2), 4, 5)

    def test_with_a_position_it_is_sent_what_it_missed(self) -> None:
        self.publish(3)
        for _ in range(2):
            self.assert_ids(self.dial(after=1).take(2), 2, 3)

    def test_it_leaves_nothing_behind(self) -> None:
        self.publish(1)
        self.dial(after=0).leave()
        self.assertEqual(self.rows("SELECT * FROM dinedesk_main.pos_cursors WHERE {mine}"), [])


class HandOverTests(WireCase):
    """From replay to live while events are committed: no gap and no repetition."""

    def test_tills_that_connect_in_the_middle_miss_nothing(self) -> None:
        seed = random.randrange(2**32)
        dice = random.Random(seed)
        over = Event()
        self.publish(50)
        with ThreadPoolExecutor(12) as crowd:
            writers = [crowd.submit(self.write, over, dice.random()) for _ in range(3)]
            starts = [dice.randrange(51) for _ in range(24)]
            readers = [crowd.submit(self.read, over, start) for start in starts]
            try:
                until(lambda: self.head() > 1500, f"1500 events (seed {seed})", 60)
            finally:
                over.set()
            written = sum(writer.result(300) for writer in writers)
            until(lambda: self.head() == 50 + written, "all are numbered")
            rounds = [reader.result(300) for reader in readers]
        self.assertGreater(sum(rounds), len(readers), f"seed {seed}")

    def write(self, over: Event, pace: float) -> int:
        """Commit one event after the other. Return their number."""
        count = 0
        with closing(self.shop.connect()) as connection, connection.cursor() as cursor:
            while not over.is_set():
                cursor.execute(
                    "SELECT dinedesk_main.pos_publish(%s, 'note', '{\"text\": \"x\"}')",
                    (self.slug,),
                )
                count += 1
                over.wait(pace / 500)
        return count

    def read(self, over: Event, start: int) -> int:
        """Connect at the last position, read for some time, and repeat. Return the number of connections."""
        position, rounds = start, 0
        while not over.is_set() or rounds < 2:
            till = self.dial(after=position)
            self.assertEqual(till.connected["resumedFrom"], position)
            # After the replay, which ends at the head at the time of `connected`.
            last = till.connected["lastEventId"] + (0 if over.is_set() else 5)
            while position < last:
                try:
                    message = till.receive(2)
                except TimeoutError:
                    break
                self.assertEqual(message["id"], position + 1)
                position += 1
            till.hang_up()
            rounds += 1
        return rounds


class SlowTests(WireCase):
    """A slow till uses the memory of its send queue, delays no other till, and loses nothing."""

    def setUp(self) -> None:
        super().setUp()
        self.slow = self.dial(after=0, receive_buffer=4096)

    def test_it_reads_everything_later_in_order(self) -> None:
        quick = self.dial()
        for _ in range(10):
            self.publish(30, size=30_000)
        self.assert_ids(quick.take(300), 1, 300)
        read = self.slow.take(300)
        self.assert_ids(read, 1, 300)
        # Events that did not fit into the send queue were read again from the log.
        self.assertIn(True, [each.get("replay", False) for each in read])
        self.publish(1)
        self.assert_ids([self.slow.receive()], 301, 301)

    def test_it_delays_nobody(self) -> None:
        self.publish(200, size=30_000)
        quick = self.dial()
        for n in range(20):
            self.shop.publish(self.slug, "note", {"n": n})
            quick.receive()
        # It was not given up either, so nobody waited for that.
        self.assert_ids(self.slow.take(220), 1, 220)

    def test_one_that_reads_a_little_at_a_time_gets_all_of_it(self) -> None:
        self.publish(100, size=20_000)
        while len(self.slow.frames) < 101:
            self.slow.read_some(3000)
        ids = [json.loads(bytes(frame.data)).get("id") for frame in self.slow.frames[1:]]
        self.assertEqual(ids, list(range(1, 101)))

    def test_many_slow_ones_are_each_served_from_where_they_stand(self) -> None:
        tills = [self.dial(after=0, receive_buffer=4096) for _ in range(8)]
        self.publish(100, size=30_000)
        with ThreadPoolExecutor(8) as crowd:
            for read in crowd.map(lambda till: till.take(100, 60), tills):
                self.assert_ids(read, 1, 100)


class LimitTests(WireCase):
    """An event that is too large is not delivered."""

    def too_large(self) -> Message:
        return {"text": "x" * 129 * 1024}

    def test_by_rest_it_is_refused(self) -> None:
        key = self.shop.key("platform", self.slug)
        body = {"type": "note", "data": self.too_large()}
        reply = self.posd.request("POST", f"/api/{self.slug}/events", body, key=key)
        self.assertEqual((reply.status, reply.json["code"]), (413, "event_too_large"))
        self.assertEqual(self.head(), 0)

    def test_by_sql_it_fails_and_stops_nothing(self) -> None:
        till = self.dial()
        self.shop.publish(self.slug, "note", self.too_large())
        self.publish(1)
        self.assert_ids([till.receive()], 1, 1)
        failed = self.rows("SELECT seq FROM {schema}.pos_sync_logs WHERE status = 'failed'")
        self.assertEqual(failed, [(None,)])

    def test_a_hooked_order_stays_whole_where_tills_pull_orders(self) -> None:
        till = self.dial()
        order = self.shop.order(self.slug, name="x" * 129 * 1024)
        self.publish(1)
        self.assert_ids([till.receive()], 1, 1)
        kept = self.rows("SELECT order_id, snapshot ->> 'customerName' FROM {schema}.pos_orders")
        self.assertEqual(kept, [(str(order), "x" * 129 * 1024)])
        failed = "SELECT event_type FROM {schema}.pos_sync_logs WHERE status = 'failed'"
        self.assertEqual(self.rows(failed), [("new_order",)])
