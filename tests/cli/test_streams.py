"""posctl stream, on a real PostgreSQL."""

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

    def test_all_streams_get_another_name(self) -> None:
        ran = posctl("stream", "reset", "--yes", "--json", dsn=as_role(self.dsn, "posd"))
        self.assertEqual((ran.code, ran.json), (0, {"reset": ["bistro", "kitchen"]}))
        self.assertEqual(self.renamed(), {"bistro", "kitchen"})

    def test_or_that_of_one_tenant(self) -> None:
        ran = posctl("stream", "reset", "--tenant", "bistro", "--yes", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (0, "Streams with a new name: bistro.\n"))
        self.assertEqual(self.renamed(), {"bistro"})

    def test_a_person_is_asked_and_may_refuse(self) -> None:
        ran = posctl("stream", "reset", dsn=self.dsn, stdin="n\n")
        self.assertNotEqual(ran.code, 0)
        self.assertIn("all tills of every tenant", ran.err)
        self.assertEqual(self.renamed(), set())
        self.assertEqual(posctl("stream", "reset", dsn=self.dsn, stdin="y\n").code, 0)
        self.assertEqual(self.renamed(), {"bistro", "kitchen"})

    def test_an_unknown_tenant_renames_nothing(self) -> None:
        ran = posctl("stream", "reset", "--tenant", "bistr", "--yes", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertEqual(self.renamed(), set())
