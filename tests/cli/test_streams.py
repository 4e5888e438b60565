"""`posctl stream`, on a real PostgreSQL."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.cli_runner import as_role, execute, migrated_database, posctl


class ResetTests(SynchronousTestCase):
    """A standby took over without the last commits of two shops."""

    def setUp(self) -> None:
        self.dsn = migrated_database()
        posctl("tenant", "add", "bistro", "--name", "The Bistro", dsn=self.dsn)
        self.before = self.names()

    def names(self) -> dict[object, object]:
        rows = execute(
            self.dsn,
            "SELECT slug, stream_id FROM dinedesk_main.pos_heads AS h"
            " JOIN dinedesk_main.tenants AS t ON t.id = h.tenant_id",
        )
        return {row[0]: row[1] for row in rows}

    def renamed(self) -> set[object]:
        now = self.names()
        return {slug for slug, name in self.before.items() if now[slug] != name}

    def test_all_streams_get_a_new_id(self) -> None:
        ran = posctl("stream", "reset", "--yes", "--json", dsn=as_role(self.dsn, "posd"))
        self.assertEqual((ran.code, ran.json), (0, {"reset": ["bistro", "kitchen"]}))
        self.assertEqual(self.renamed(), {"bistro", "kitchen"})

    def test_the_stream_of_one_tenant_gets_a_new_id(self) -> None:
        ran = posctl("stream", "reset", "--tenant", "bistro", "--yes", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (0, "Streams with a new id: bistro.\n"))
        self.assertEqual(self.renamed(), {"bistro"})

    def test_it_asks_for_confirmation(self) -> None:
        ran = posctl("stream", "reset", dsn=self.dsn, stdin="n\n")
        self.assertNotEqual(ran.code, 0)
        self.assertIn("All tills of all tenants", ran.err)
        self.assertEqual(self.renamed(), set())
        self.assertEqual(posctl("stream", "reset", dsn=self.dsn, stdin="y\n").code, 0)
        self.assertEqual(self.renamed(), {"bistro", "kitchen"})

    def ends(self) -> list[tuple[object, ...]]:
        """Return the positions up to which earlier streams are valid, by shop."""
        return execute(
            self.dsn,
            "SELECT t.slug, e.ended_seq FROM dinedesk_main.pos_stream_epochs AS e"
            " JOIN dinedesk_main.tenants AS t ON t.id = e.tenant_id"
            " WHERE e.ended_seq IS NOT NULL ORDER BY t.slug",
        )

    def test_by_default_no_events_are_common(self) -> None:
        execute(self.dsn, "UPDATE dinedesk_main.pos_heads SET last_seq = 10 RETURNING 1")
        posctl("stream", "reset", "--yes", dsn=as_role(self.dsn, "posd"))
        self.assertEqual(self.ends(), [("bistro", 0), ("kitchen", 0)])

    def test_common_up_to_is_stored(self) -> None:
        execute(self.dsn, "UPDATE dinedesk_main.pos_heads SET last_seq = 10 RETURNING 1")
        chosen = ("stream", "reset", "--tenant", "bistro", "--common-up-to", "7")
        asked = posctl(*chosen, dsn=self.dsn, stdin="n\n")
        self.assertIn("All tills of bistro that have an event after 7 reload", asked.err)
        self.assertEqual(posctl(*chosen, "--yes", dsn=as_role(self.dsn, "posd")).code, 0)
        self.assertEqual(self.ends(), [("bistro", 7)])

    def test_common_up_to_needs_an_existing_position_and_a_tenant(self) -> None:
        execute(self.dsn, "UPDATE dinedesk_main.pos_heads SET last_seq = 10 RETURNING 1")
        chosen = ("stream", "reset", "--yes", "--common-up-to", "11")
        self.assertEqual(posctl(*chosen, dsn=self.dsn).code, os.EX_USAGE)
        ran = posctl(*chosen, "--tenant", "bistro", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertIn("the last event of bistro is 10", ran.err)
        self.assertEqual(self.renamed(), set())

    def test_an_unknown_tenant_renames_nothing(self) -> None:
        ran = posctl("stream", "reset", "--tenant", "bistr", "--yes", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertEqual(self.renamed(), set())
