"""The role and the environment of posd have odd values for all settings that posd relies on."""

from __future__ import annotations

import os
from contextlib import closing

import psycopg2
from twisted.trial.unittest import SynchronousTestCase

from posd.testing.postgres import test_server
from tests.cli_runner import posctl
from tests.integration.harness import Shop
from tests.integration.wire import Till
from tests.odd_settings import ENVIRONMENT, set_all

SLUG = "kitchen"
NAME = "Zoë 🍕 O'Neill \\ \" \\' end"


class OddSettingsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = test_server().another()
        self.addCleanup(self.server.stop)
        with closing(psycopg2.connect(self.server.dsn())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                set_all(cursor.execute, "ROLE postgres")
        for name, value in ENVIRONMENT.items():
            self.addCleanup(os.environ.pop, name, None)
            os.environ[name] = value

    def platform(self, statement: str, *parameters: object) -> None:
        """Do what a shop's session does, which sets only what it needs itself."""
        with closing(psycopg2.connect(self.server.dsn("posd"), client_encoding="UTF8")) as shop:
            with shop.cursor() as cursor:
                cursor.execute(
                    "SET TRANSACTION READ WRITE; SET LOCAL statement_timeout = 0;"
                    "SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;"
                    "SET LOCAL session_replication_role = origin"
                )
                cursor.execute(statement, parameters)
            shop.commit()

    def test_the_daemon_and_posctl_work_as_ever(self) -> None:
        shop = Shop.open([], server=self.server)
        self.addCleanup(shop.close)
        for arguments in (
            ("bootstrap",),
            ("migrate",),
            ("tenant", "add", SLUG, "--name", "Küche 🍕"),
            ("status",),
            ("audit",),
        ):
            ran = posctl(*arguments, dsn=shop.dsn)
            self.assertEqual(ran.code, 0, (arguments, ran.err, ran.out))
        key, platform = (
            str(posctl("key", "create", *kind, dsn=shop.dsn).out.split()[0])
            for kind in (("--kind", "tenant", "--tenant", SLUG), ("--kind", "platform"))
        )
        posd = shop.start()
        till = Till.dial(posd, f"/ws/pos/{SLUG}", {"X-API-Key": key})
        self.addCleanup(till.hang_up)
        published = posd.request(
            "POST", f"/api/{SLUG}/events", {"type": "note", "data": {"text": NAME}}, key=platform
        )
        self.assertEqual(published.status, 201, published.content)
        self.assertEqual(till.receive()["data"]["text"], NAME)
        self.platform(
            "SELECT dinedesk_main.pos_publish(%s, 'note', jsonb_build_object('text', %s::text))",
            SLUG,
            NAME,
        )
        self.assertEqual(till.receive()["data"]["text"], NAME)
        self.platform(
            f"INSERT INTO dinedesk_{SLUG}.orders (customer_name, total_amount) VALUES (%s, 12.50)",
            NAME,
        )
        order = till.receive()
        self.assertEqual(order["type"], "new_order")
        self.assertIn(NAME, order["data"].values(), order)
        self.assertEqual(posd.stop(), 0)
