"""`posctl prune`, on a real PostgreSQL, with the rights of the daemon."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import psycopg2
from twisted.trial.unittest import SynchronousTestCase

from posd.cli import database
from tests.cli_runner import Ran, as_role, execute, migrated_database, posctl

EVENTS = """
    INSERT INTO dinedesk_main.pos_events (tenant_id, seq, event_type, event_data, created_at)
    SELECT 1, n, 'notice', '{}', now() - n * interval '-10 days' - interval '100 days'
      FROM generate_series(1, 9) AS n
"""
HEAD = "UPDATE dinedesk_main.pos_heads SET last_seq = 9, received_seq = 4"
ANSWER = """
    INSERT INTO dinedesk_main.idempotency_keys
    VALUES (NULL, 'platform', 'POST /', 'k', sha256(''), 200, '{}', now() - interval '40 days')
"""
LEFT = "SELECT array_agg(seq ORDER BY seq) FROM dinedesk_kitchen.pos_events"


class PruneTests(SynchronousTestCase):
    """The tenant `kitchen` with nine events, 90 to 10 days old. Four are acknowledged."""

    def setUp(self) -> None:
        self.dsn = migrated_database()
        posctl("tenant", "add", "bistro", "--name", "The Bistro", dsn=self.dsn)
        for statement in (EVENTS, HEAD, ANSWER):
            execute(self.dsn, statement)

    def prune(self, *arguments: str, stdin: str | None = None) -> Ran:
        return posctl("prune", *arguments, dsn=as_role(self.dsn, "posd"), stdin=stdin)

    def left(self) -> Any:
        return execute(self.dsn, LEFT)[0][0]

    def shown(self, ran: Ran) -> Any:
        self.assertEqual((ran.code, ran.err), (0, ""))
        assert isinstance(ran.json, dict)
        return ran.json

    def pruned_beside_a_lock(self, lock: str) -> Ran:
        """Prune without waiting for locks, while another session holds a lock."""
        self.patch(database, "_LOCK_WAIT_SECONDS", 0.0)
        with closing(psycopg2.connect(self.dsn)) as other, other.cursor() as cursor:
            cursor.execute(lock)
            ran = self.prune("--json")
        self.assertEqual(ran.code, os.EX_TEMPFAIL)
        return ran

    def test_a_shop_with_locked_rows_is_reported_after_the_counts(self) -> None:
        ran = self.pruned_beside_a_lock(
            "SELECT FROM dinedesk_main.pos_events WHERE tenant_id = 1 FOR UPDATE"
        )
        self.assertIn("rows are left of: kitchen", ran.err)
        assert isinstance(ran.json, dict)
        self.assertEqual(
            [(each["tenant"], each["events"], each["held"]) for each in ran.json["tenants"]],
            [("bistro", 0, False), ("kitchen", 0, True)],
        )
        self.assertEqual((ran.json["answers"], ran.json["answersHeld"]), (1, False))
        self.assertEqual(len(self.left()), 9)

    def test_locked_stored_answers_are_reported(self) -> None:
        ran = self.pruned_beside_a_lock("LOCK TABLE dinedesk_main.idempotency_keys IN SHARE MODE")
        self.assertIn("rows are left of: the stored answers", ran.err)
        assert isinstance(ran.json, dict)
        self.assertEqual((ran.json["answers"], ran.json["answersHeld"]), (0, True))
        self.assertFalse(any(each["held"] for each in ran.json["tenants"]))

    def test_events_older_than_the_retention_are_deleted(self) -> None:
        shown = self.shown(self.prune("--json"))
        self.assertRegex(shown.pop("before"), r"\A20\d\d-.*Z\Z")
        nothing = {"events": 0, "expired": 0, "messages": 0, "nacks": 0, "orders": 0}
        nothing["held"] = False
        self.assertEqual(
            shown,
            {
                "dryRun": False,
                "tenants": [
                    {"tenant": "bistro", **nothing},
                    {"tenant": "kitchen", **nothing, "events": 7, "expired": 3},
                ],
                "answers": 1,
                "answersHeld": False,
            },
        )
        self.assertEqual(self.left(), [8, 9])

    def test_a_dry_run_prints_the_same_counts_and_deletes_nothing(self) -> None:
        told = self.shown(self.prune("--dry-run", "--json"))
        self.assertEqual(self.left(), list(range(1, 10)))
        pruned = self.shown(self.prune("--json"))
        for each in (told, pruned):
            del each["before"], each["dryRun"]
        self.assertEqual(told, pruned)

    def test_people_see_a_table(self) -> None:
        ran = self.prune("--tenant", "kitchen", "--older-than", "45d")
        self.assertEqual(ran.code, 0)
        self.assertRegex(ran.out, r"kitchen +5 +1 +0 +0 +0 *\n")
        self.assertNotIn("bistro", ran.out)
        self.assertRegex(ran.out, r"Stored answers: 0\.\nThe deleted .* 20[-\d]+ \d\d:\d\d\.\n\Z")

    def test_deleting_events_within_the_retention_needs_confirmation(self) -> None:
        ran = self.prune("--older-than", "15d", stdin="n\n")
        self.assertNotEqual(ran.code, 0)
        self.assertIn("Delete 8 events? The configured retention is 30d", ran.err)
        self.assertEqual(self.left(), list(range(1, 10)))
        self.assertEqual(self.prune("--older-than", "15d", "--yes").code, 0)
        self.assertEqual(self.left(), [9])

    def test_the_last_hour_and_unknown_tenants_are_refused(self) -> None:
        for arguments, code in (
            (("--older-than", "59m", "--yes"), os.EX_USAGE),
            (("--older-than", "a week"), os.EX_USAGE),
            (("--tenant", "kitchn"), os.EX_DATAERR),
        ):
            with self.subTest(arguments=arguments):
                ran = self.prune(*arguments)
                self.assertEqual((ran.code, ran.out), (code, ""))
                self.assertRegex(ran.err, r"\Aposctl: .+\n\Z")
        self.assertEqual(self.left(), list(range(1, 10)))
