"""`posctl replay`, on a real PostgreSQL, with the rights of the daemon."""

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
    """The terminal FRONT has acknowledged 8 of 9 events. The first three are pruned."""

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

    def test_only_the_cursor_is_moved_back(self) -> None:
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

    def test_since_takes_a_local_time_an_offset_or_a_duration(self) -> None:
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
        self.assertIn("(5 events, of these 3 new orders)?", ran.err)
        self.assertEqual(execute(self.dsn, WISH), [(8, None)])
        ran = self.replay("--from", "4", stdin="y\n")
        self.assertEqual(
            (ran.code, ran.out),
            (0, "FRONT receives the events from 4 on again when it connects.\n"),
        )

    def test_positions_that_cannot_be_replayed_are_refused(self) -> None:
        self.refused("up to 3 have been deleted", "--from", "3")
        self.refused("has acknowledged only up to 8", "--from", "9")
        self.refused("the last event is 9", "--from", "10")
        self.refused("some events since then have been deleted", "--since", "2026-11-22T12:00Z")
        self.refused("no event since then", "--since", "2026-11-30T12:00Z")
        self.refused("either --from or --since", code=os.EX_USAGE)
        self.refused("either", "--from", "5", "--since", "1h", code=os.EX_USAGE)
        self.refused("is not a time", "--since", "yesterday", code=os.EX_USAGE)

    def test_for_an_unknown_terminal_the_known_ones_are_named(self) -> None:
        self.refused(
            "has no terminal 'FRONZ'; its terminals: FRONT", "--device", "FRONZ", "--from", "5"
        )

    def test_a_terminal_that_never_acknowledges_is_refused(self) -> None:
        execute(self.dsn, "UPDATE dinedesk_main.pos_devices SET first_acked_at = NULL")
        self.refused("never acknowledges", "--from", "5")
