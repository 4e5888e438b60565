"""posctl replay, on a real PostgreSQL, with the daemon's rights."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.cli_runner import Ran, as_role, execute, migrated_database, posctl

EVENTS = """
    INSERT INTO dinedesk_main.pos_events (tenant_id, seq, event_type, event_data, created_at)
    SELECT 1, n, CASE WHEN n % 2 = 0 THEN 'new_order' ELSE 'notice' END, '{}',
           timestamptz '2026-11-22T12:00Z' + n * interval '1 hour'
      FROM generate_series(4, 9) AS n
"""
HEAD = "UPDATE dinedesk_main.pos_heads SET last_seq = 9, pruned_seq = 3, received_seq = 9"
CURSOR = "UPDATE dinedesk_main.pos_cursors SET acked_seq = 8"
SPOKE = "UPDATE dinedesk_main.pos_devices SET first_acked_at = now()"
WISH = "SELECT acked_seq, replay_after FROM dinedesk_main.pos_cursors"
HEADS = "SELECT last_seq, pruned_seq, received_seq, acknowledged FROM dinedesk_main.pos_heads"


class ReplayTests(SynchronousTestCase):
    """A till FRONT has acknowledged up to 8 of 9 events; the first three are pruned."""

    def setUp(self) -> None:
        self.dsn = migrated_database()
        posctl(
            *("key", "create", "--kind", "device", "--tenant", "kitchen", "--device", "FRONT"),
            dsn=self.dsn,
        )
        for statement in (EVENTS, HEAD, CURSOR, SPOKE):
            execute(self.dsn, statement)

    def replay(self, *arguments: str, stdin: str | None = None) -> Ran:
        of = ("--tenant", "kitchen", "--device", "FRONT")
        return posctl("replay", *of, *arguments, dsn=as_role(self.dsn, "posd"), stdin=stdin)

    def refused(self, said: str, *arguments: str, code: int = os.EX_DATAERR) -> None:
        with self.subTest(arguments=arguments):
            ran = self.replay(*arguments, "--yes")
            self.assertEqual((ran.code, ran.out), (code, ""))
            self.assertRegex(ran.err, rf"\Aposctl: .*{said}.*\n\Z")
            self.assertEqual(execute(self.dsn, WISH), [(8, None)])

    def test_the_cursor_is_to_go_back_and_nothing_else_changes(self) -> None:
        heads = execute(self.dsn, HEADS)
        ran = self.replay("--from", "6", "--yes", "--json")
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertEqual(
            ran.json,
            {
                "tenant": "kitchen",
                "deviceId": "FRONT",
                "from": 6,
                "to": 8,
                "events": 3,
                "newOrders": 2,
                "connected": False,
            },
        )
        self.assertEqual(execute(self.dsn, WISH), [(8, 5)])
        self.assertEqual(execute(self.dsn, HEADS), heads)

    def test_a_time_is_the_shops_or_names_its_offset_or_is_long_ago(self) -> None:
        for since in ("2026-11-22T18:30", "2026-11-22T19:30+01:00", "2026-11-22T18:30Z"):
            with self.subTest(since=since):
                self.assertEqual(self.replay("--since", since, "--yes").code, 0)
                self.assertEqual(execute(self.dsn, WISH), [(8, 6)])
        execute(
            self.dsn,
            "UPDATE dinedesk_kitchen.pos_events SET created_at = now() - interval '30 minutes'"
            " WHERE seq > 7",
        )
        self.assertEqual(self.replay("--since", "90m", "--yes").code, 0)
        self.assertEqual(execute(self.dsn, WISH), [(8, 7)])

    def test_a_person_is_asked(self) -> None:
        ran = self.replay("--from", "4", stdin="n\n")
        self.assertNotEqual(ran.code, 0)
        self.assertIn("sent the events 4 to 8 again, 5 in all with 3 new orders?", ran.err)
        self.assertEqual(execute(self.dsn, WISH), [(8, None)])
        ran = self.replay("--from", "4", stdin="y\n")
        self.assertEqual(
            (ran.code, ran.out), (0, "FRONT is sent the events from 4 on when it connects.\n")
        )

    def test_what_cannot_be_sent_again_is_refused(self) -> None:
        self.refused("up to 3 are kept no more", "--from", "3")
        self.refused("has acknowledged 8", "--from", "9")
        self.refused("the last event is 9", "--from", "10")
        self.refused("not all events since then", "--since", "2026-11-22T12:00Z")
        self.refused("no event since then", "--since", "2026-11-30T12:00Z")
        self.refused("either --from or --since", code=os.EX_USAGE)
        self.refused("either", "--from", "5", "--since", "1h", code=os.EX_USAGE)
        self.refused("is no time", "--since", "yesterday", code=os.EX_USAGE)

    def test_of_a_terminal_that_is_not_there_those_that_are_are_named(self) -> None:
        self.refused("has no terminal 'FRONZ' but FRONT", "--device", "FRONZ", "--from", "5")

    def test_a_terminal_that_never_acknowledged_is_sent_nothing_again(self) -> None:
        execute(self.dsn, "UPDATE dinedesk_main.pos_devices SET first_acked_at = NULL")
        self.refused("never acknowledged", "--from", "5")
