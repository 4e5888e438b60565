"""Events are pruned while tills are connected, read slowly, or are away."""

from __future__ import annotations

from tests.cli_runner import posctl
from tests.integration.wire import Ended, Till
from tests.integration.wire_case import WireCase


class PrunedTests(WireCase):
    def prune(self, last: int) -> None:
        """Make all events up to this one old, and prune them as an operator does."""
        self.rows(
            "UPDATE {schema}.pos_events SET created_at = now() - interval '31 days' WHERE seq <= %s",
            last,
        )
        ran = posctl("prune", "--tenant", self.slug, "--json", dsn=self.shop.dsn)
        self.assertEqual((ran.code, ran.err), (0, ""))

    def read_to_the_end(self, till: Till) -> tuple[list[int], Ended]:
        ids: list[int] = []
        try:
            while True:
                ids.append(till.receive()["id"])
        except Ended as ended:
            return ids, ended

    def test_a_slow_till_never_skips_what_was_pruned_before_it_came_there(self) -> None:
        slow = self.dial(after=0, receive_buffer=4096)
        head = self.publish(300, size=30_000)
        self.prune(head - 1)
        ids, ended = self.read_to_the_end(slow)
        self.assertEqual(ids, list(range(1, len(ids) + 1)))
        self.assert_ended(ended, 1013, "the next events have been deleted")
        again = self.dial(after=len(ids))
        self.assertEqual(again.connected["resync"], "retention")
        self.publish(1)
        self.assert_ids([again.receive()], head + 1, head + 1)

    def test_tills_that_are_connected_notice_nothing(self) -> None:
        live = self.dial()
        live.take(self.publish(5))
        self.prune(5)
        self.publish(2)
        self.assert_ids(live.take(2), 6, 7)
        self.assertTrue(live.next_is_pong(1))

    def test_a_till_that_was_away_is_told_and_one_that_missed_nothing_is_not(self) -> None:
        self.publish(10)
        self.prune(6)
        self.assertEqual(self.dial(after=5).connected["resync"], "retention")
        till = self.dial(after=6)
        self.assertIsNone(till.connected["resync"])
        self.assert_ids(till.take(4), 7, 10)

    def test_a_poll_is_told_too(self) -> None:
        self.publish(3)
        self.prune(3)
        path = f"/api/{self.slug}/events?after=1"
        answer = self.posd.request("GET", path, key=self.key).json
        self.assertEqual((answer["resync"], answer["events"], answer["next"]), ("retention", [], 3))


class ReplayTests(WireCase):
    """A till that acknowledges has lost its data, and an operator replays it."""

    def setUp(self) -> None:
        super().setUp()
        self.till = self.dial(device="POS_1", after=0)
        self.assert_ids(self.till.take(self.publish(10)), 1, 10)
        self.till.send({"type": "ack", "id": 10})
        self.reaches("POS_1", 10)

    def replay(self, first: int) -> None:
        of = ("--tenant", self.slug, "--device", "POS_1")
        ran = posctl("replay", *of, "--from", str(first), "--yes", dsn=self.shop.dsn)
        self.assertEqual((ran.code, ran.err), (0, ""))

    def counted(self) -> object:
        (counted,) = self.rows(
            "SELECT last_seq, received_seq, acknowledged FROM dinedesk_main.pos_heads WHERE {mine}"
        )
        return counted

    def test_a_connected_till_is_sent_home_and_gets_it_when_it_comes_back(self) -> None:
        other, counted = self.dial(device="POS_2"), self.counted()
        self.replay(4)
        self.assert_ended(self.till.ended(), 1001, "disconnected by the operator")
        again = self.dial(device="POS_1")
        self.assertEqual(again.connected["resumedFrom"], 3)
        read = again.take(7)
        self.assert_ids(read, 4, 10)
        self.assertEqual({each["replay"] for each in read}, {True})
        again.send({"type": "ack", "id": 8})
        self.reaches("POS_1", 8)
        again.leave()
        self.assert_ids(self.dial(device="POS_1").take(2), 9, 10)
        self.assertTrue(other.next_is_pong(1))
        self.assertEqual(self.counted(), counted)

    def test_what_it_says_before_it_leaves_does_not_undo_it(self) -> None:
        self.till.leave()
        self.replay(4)
        ack = self.posd.request(
            "POST",
            f"/api/{self.slug}/events/ack",
            {"id": 10},
            key=self.key,
            headers={"X-Device-ID": "POS_1"},
        )
        self.assertEqual(ack.status, 200)
        self.assertEqual(self.dial(device="POS_1").connected["resumedFrom"], 3)

    def test_by_polling_it_gets_it_too(self) -> None:
        self.till.leave()
        self.replay(9)
        answer = self.posd.request(
            "GET", f"/api/{self.slug}/events", key=self.key, headers={"X-Device-ID": "POS_1"}
        )
        self.assertEqual([each["id"] for each in answer.json["events"]], [9, 10])

    def test_what_it_had_refused_is_sent_again(self) -> None:
        self.publish(1)
        self.till.take(1)
        self.till.send({"type": "nack", "id": 11, "reason": "no paper"})
        self.reaches("POS_1", 11)
        self.till.leave()
        self.replay(11)
        again = self.dial(device="POS_1")
        self.assertEqual(again.connected["resumedFrom"], 10)
        self.assert_ids(again.take(1), 11, 11)
