"""`posctl publish` as a process, on a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.postgres import test_server
from tests.cli_runner import Ran, as_role, execute, migrated_database, posctl

ORDER = """
    {"orderId": "A-1", "orderSource": "online", "status": "confirmed", "totalAmount": 12.50,
     "items": [{"name": "Soup", "price": 12.50, "quantity": 1}]}
"""


class PublishTests(SynchronousTestCase):
    """The tenant `kitchen` without events."""

    def setUp(self) -> None:
        self.dsn = migrated_database()

    def publish(
        self, data: str, *options: str, kind: str = "notice", dsn: str | None = None
    ) -> Ran:
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "posd.cli", "--dsn", dsn or self.dsn, "publish"),
                *("--tenant", "kitchen", "--type", kind, "--data", "-", *options),
            ],
            input=data,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def test_the_answer_is_the_position_and_the_event_is_in_the_stream(self) -> None:
        self.assertEqual(self.publish('{"message": "Closed"}', "--json"), Ran(0, '{"id":1}\n', ""))
        self.assertEqual(self.publish(ORDER, "--json", kind="new_order").json, {"id": 2})
        rows = execute(
            self.dsn, "SELECT seq, event_type FROM dinedesk_kitchen.pos_events ORDER BY seq"
        )
        self.assertEqual(rows, [(1, "notice"), (2, "new_order")])

    def test_the_output_is_a_sentence(self) -> None:
        self.assertEqual(self.publish("{}"), Ran(0, "Published as event 1 of kitchen.\n", ""))

    def test_what_was_repaired_or_not_read_is_named(self) -> None:
        odd = r'{"orderId": "A-1", "customerName": "Anna \ud83d", "totalAmount": "14,20"}'
        ran = self.publish(odd, "--json", kind="new_order")
        self.assertEqual(ran.code, 0)
        self.assertEqual(
            [
                (each["member"], each["code"])
                for each in cast("dict[str, Any]", ran.json)["warnings"]
            ],
            [("customerName", "character_replaced"), ("totalAmount", "unreadable")],
        )
        self.assertEqual(len(ran.err.splitlines()), 2)
        self.assertIn("posctl: warning: totalAmount (unreadable): ", ran.err)
        self.assertNotIn("14,20", ran.err + ran.out)

    def test_the_daemons_own_role_is_enough(self) -> None:
        self.assertEqual(self.publish("{}", dsn=as_role(self.dsn, "posd")).code, 0)

    def test_an_unchanged_order_is_not_published_again(self) -> None:
        self.publish(ORDER, kind="new_order")
        self.assertEqual(self.publish(ORDER, "--json", kind="new_order").json, {"id": None})
        self.assertIn("Not published", self.publish(ORDER, kind="new_order").out)

    def test_the_outbox_is_not_processed(self) -> None:
        execute(self.dsn, "SELECT dinedesk_main.pos_publish('kitchen', 'earlier', '{}')")
        self.assertEqual(self.publish("{}", "--json").json, {"id": 1})
        self.assertEqual(
            execute(self.dsn, "SELECT type FROM dinedesk_main.pos_outbox"), [("earlier",)]
        )

    def test_an_event_that_is_too_large_is_not_published(self) -> None:
        ran = self.publish('{"text": "' + 200_000 * "x" + '"}')
        self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, ""))
        self.assertRegex(ran.err, r"\Aposctl: .he event has \d+ bytes.*\n\Z")
        self.assertEqual(execute(self.dsn, "SELECT id FROM dinedesk_kitchen.pos_events"), [])


class RefusalTests(SynchronousTestCase):
    """Errors that are found before the reactor runs."""

    def setUp(self) -> None:
        self.dsn = migrated_database()

    def publish(self, data: str, kind: str = "notice", slug: str = "kitchen") -> Ran:
        return posctl(
            *("publish", "--tenant", slug, "--type", kind, "--data", "-"),
            dsn=self.dsn,
            stdin=data,
        )

    def test_data_that_cannot_be_an_event_is_one_line(self) -> None:
        for data, kind, said in (
            ("{", "notice", "not valid JSON"),
            ("[]", "notice", "must be an object"),
            ("{}", "new_order", "orderId"),
            ("{}", "pos_anything", "reserved"),
            ("{}", "Not a type", "type must be"),
        ):
            with self.subTest(data=data, kind=kind):
                ran = self.publish(data, kind)
                self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, ""))
                self.assertRegex(ran.err, rf"\Aposctl: .*{said}.*\n\Z")

    def test_an_unknown_tenant_is_answered_with_the_nearest(self) -> None:
        ran = self.publish("{}", slug="kitchn")
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertIn('did you mean "kitchen"?', ran.err)

    def test_before_the_first_migration_the_way_is_shown(self) -> None:
        self.dsn = test_server().fresh_database()
        posctl("bootstrap", dsn=self.dsn)
        ran = self.publish("{}")
        self.assertEqual(ran.code, os.EX_CONFIG)
        self.assertIn("posctl migrate", ran.err)

    def test_a_file_that_is_not_there_is_named(self) -> None:
        missing = Path(self.mktemp()).absolute()
        ran = posctl(
            *("publish", "--tenant", "kitchen", "--type", "notice", "--data", missing),
            dsn=self.dsn,
        )
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn(missing.name, ran.err)
