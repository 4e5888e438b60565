"""Events are pruned while tills are connected, read slowly, or are away."""

from __future__ import annotations

from tests.cli_runner import posctl
from tests.integration.wire import Ended, Till
from tests.integration.wire_case import WireCase


class PrunedTests(WireCase):
    def prune(self, last: int) -> None:
        """All events up to this one are old by now, and an operator does not wait for the night."""
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
        self.assert_ended(ended, 1013, "the next events are kept no more")
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
