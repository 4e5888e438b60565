"""`posctl forget`, on a real PostgreSQL, with the rights of the daemon."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import psycopg2
from twisted.trial.unittest import SynchronousTestCase

from posd.cli import database
from posd.cli.database import run_to_completion
from posd.events.redaction import ErasedPerson
from posd.maintenance import customer_erasure as forgetting
from posd.protocol import jsontext
from posd.store import erasure
from posd.values import Tenant
from tests.cli_runner import Ran, as_role, execute, migrated_database, posctl

NUMBER = "+447700900123"
ORDER = {
    "orderId": "W-1",
    "customerName": "Ines Moor",
    "customerPhone": "07700 900123",
    "customerEmail": "Ines.Moor@Example.com",
    "totalAmount": 14.20,
    "items": [{"id": 1, "name": "Risotto", "price": 14.20, "specialInstructions": "for Ines"}],
    "notes": "ring at Moor",
    "deliveryAddress": "5 Vine Street",
    "version": 1,
}
FORGOTTEN = {
    **ORDER,
    **dict.fromkeys(("customerName", "customerPhone", "customerEmail", "notes", "deliveryAddress")),
    "items": [{"id": 1, "name": "Risotto", "price": 14.20}],
}
MISTYPED = {**ORDER, "customerPhone": "07700 900321", "customerEmail": None, "version": 2}
OTHER = {**ORDER, "orderId": "W-2", "customerPhone": "07700 900124", "customerEmail": "t@x.org"}
EVENTS = """
    SELECT l.event_data::text, e.beside::text
      FROM dinedesk_kitchen.pos_sync_logs AS l LEFT JOIN dinedesk_kitchen.pos_events AS e ON e.seq = l.seq
     ORDER BY l.id
"""


class ForgetTests(SynchronousTestCase):
    """The tenant `kitchen`, where Ines has ordered, collects points, gave a card to a friend and received
    one.
    """

    def setUp(self) -> None:
        self.dsn = migrated_database()
        for number, (kind, data, extra_members) in enumerate(
            (
                ("new_order", ORDER, None),
                ("new_order", OTHER, None),
                ("order_updated", MISTYPED, {"order_id": "W-1"}),
                ("loyalty_updated", {"customerId": "1", "customerPhone": NUMBER, "newBalance": 7},
                 {"customer_phone": NUMBER, "points": 7}),
                ("gift_card_purchased", {"cardNumber": "GC1", "recipientEmail": "INES.moor@example.com"},
                 None),
            ),
            1,
        ):  # fmt: skip
            self.event(number, kind, data, extra_members)
        self.event(None, "pos_note", {"text": "Frau Moor, +44 7700 900123, wartet"}, None)
        for refused in (
            (1, "front", "for Ines"),
            (2, "front", "no 07700900123"),
            (2, "back", "no ink"),
        ):
            execute(
                self.dsn,
                "INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id, reason)"
                " VALUES (1, %s, %s, %s)",
                *refused,
            )
        for order in (MISTYPED, OTHER):
            execute(
                self.dsn,
                "INSERT INTO dinedesk_main.pos_orders (tenant_id, order_id, snapshot, status, version)"
                " VALUES (1, %s, %s, 'accepted', 2)",
                *(order["orderId"], self.text(order)),
            )
        execute(
            self.dsn,
            "INSERT INTO dinedesk_kitchen.gift_cards (card_number, purchased_by, recipient_name,"
            " recipient_email) VALUES ('GC1', 'Tom', 'Ines', 'ines.moor@example.com'),"
            " ('GC2', 'Tom', 'Maya', 'maya@example.com')",
        )
        execute(
            self.dsn,
            "SELECT posd_hooks.points_move$kitchen("
            "%s, 'add', 7, 'platform', NULL, NULL, NULL, NULL, true)",
            NUMBER,
        )
        execute(self.dsn, "UPDATE dinedesk_kitchen.loyalty_accounts SET customer_name = 'Ines'")
        self.answer("POST /api/kitchen/orders", {"success": True, "order": ORDER})
        self.answer("POST /api/kitchen/orders", {"success": True, "order": OTHER})
        self.answer(f"POST /api/kitchen/loyalty/%2B{NUMBER[1:]}/reverse", {"success": True})
        execute(
            self.dsn,
            "WITH noted AS (INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, data)"
            " VALUES (1, 'new_order', %s) RETURNING id)"
            " INSERT INTO dinedesk_main.pos_outbox_transactions (tenant_id, kind, first_id)"
            " SELECT 1, 'plain', id FROM noted",
            self.text(ORDER),
        )

    def text(self, value: object) -> str:
        return jsontext.encode(value).decode()

    def event(self, seq: int | None, kind: str, data: object, extra_members: object) -> None:
        if seq is None:
            execute(
                self.dsn,
                "INSERT INTO dinedesk_main.pos_unsequenced (tenant_id, event_type, event_data)"
                " VALUES (1, %s, %s)",
                *(kind, self.text(data)),
            )
            return
        execute(
            self.dsn,
            "INSERT INTO dinedesk_main.pos_events"
            " (tenant_id, seq, event_type, event_data, beside, created_at)"
            " VALUES (1, %s, %s, %s, %s, now())",
            *(
                seq,
                kind,
                self.text(data),
                None if extra_members is None else self.text(extra_members),
            ),
        )

    def answer(self, operation: str, body: object) -> None:
        execute(
            self.dsn,
            "INSERT INTO dinedesk_main.idempotency_keys VALUES (1, 'platform', %s,"
            " gen_random_uuid()::text, sha256(''), 200, %s, now())",
            *(operation, self.text(body)),
        )

    def forget(self, *arguments: str, stdin: str | None = None) -> Ran:
        return posctl("forget", *arguments, dsn=as_role(self.dsn, "posd"), stdin=stdin)

    def shown(self, *arguments: str) -> Any:
        ran = self.forget(*arguments, "--json")
        self.assertEqual((ran.code, ran.err), (0, ""))
        assert isinstance(ran.json, dict)
        (kitchen,) = ran.json["tenants"]
        return kitchen

    def everything(self) -> str:
        """Return all data of posd as one text."""
        queries = (
            EVENTS,
            "SELECT snapshot::text FROM dinedesk_kitchen.pos_orders ORDER BY order_id",
            "SELECT operation, answer::text FROM dinedesk_main.idempotency_keys",
            "SELECT data FROM dinedesk_main.pos_outbox",
            "SELECT * FROM dinedesk_kitchen.gift_cards ORDER BY 1",
            "SELECT * FROM dinedesk_kitchen.loyalty_accounts",
            "SELECT * FROM dinedesk_main.pos_erasures",
            "SELECT seq, reason FROM dinedesk_main.pos_nacks ORDER BY 1, device_id",
        )
        return "\n".join(str(row) for query in queries for row in execute(self.dsn, query))

    def test_only_the_given_customer_is_erased_everywhere(self) -> None:
        shown = self.shown(
            "--phone", "0044 7700 900123", "--email", " ines.moor@EXAMPLE.com", "--yes"
        )
        self.assertEqual(
            shown,
            {
                "tenant": "kitchen",
                "events": 8,
                "orders": 1,
                "answers": 2,
                "giftCards": 1,
                "accounts": 1,
                "points": 7,
                "unreadable": 0,
                "remains": ["dinedesk_kitchen.order_items", "dinedesk_kitchen.orders"],
            },
        )
        left = self.everything().replace(self.text(OTHER), "").replace(str(OTHER), "")
        for trace in ("Ines", "Moor", "7700", "moor@", "Vine"):
            self.assertNotIn(trace, left)
        self.assertIn("maya@example.com", left)
        self.assertIn("no ink", left)
        events = [(data, extra_members) for data, extra_members in execute(self.dsn, EVENTS)]
        self.assertEqual(events[0], (self.text(FORGOTTEN), None))
        self.assertEqual(events[1], (self.text(OTHER), None))
        self.assertEqual(events[3][1], '{"customer_phone":null,"points":7}')
        self.assertEqual(events[5][0], '{"text":null}')

    def test_an_order_that_names_the_customer_once_is_erased(self) -> None:
        self.shown("--phone", NUMBER, "--yes")
        ((snapshot,), _) = execute(
            self.dsn, "SELECT snapshot::text FROM dinedesk_kitchen.pos_orders ORDER BY order_id"
        )
        self.assertEqual(snapshot, self.text({**FORGOTTEN, "version": 2}))

    def test_ledgers_keep_their_amounts_and_the_account_loses_its_number(self) -> None:
        self.shown("--email", "ines.moor@example.com", "--phone", NUMBER, "--yes")
        self.assertEqual(
            execute(
                self.dsn,
                "SELECT a.phone, a.customer_name, m.balance_after FROM dinedesk_kitchen.loyalty_accounts"
                " AS a JOIN dinedesk_kitchen.pos_loyalty_transactions AS m ON m.account_id = a.id",
            ),
            [(None, None, 7)],
        )

    def test_an_account_that_is_found_by_address_leads_to_its_number(self) -> None:
        execute(self.dsn, "UPDATE dinedesk_kitchen.loyalty_accounts SET email = 'i@moor.example'")
        self.assertEqual(self.shown("--email", "I@Moor.example", "--yes")["accounts"], 1)
        self.assertNotIn(NUMBER[1:], self.everything())

    def test_an_order_can_be_named_itself(self) -> None:
        shown = self.shown("--order", "W-2", "--tenant", "kitchen", "--yes")
        self.assertEqual((shown["events"], shown["orders"], shown["answers"]), (3, 1, 1))
        self.assertNotIn("900124", self.everything())
        self.assertIn("900123", self.everything())

    def test_a_dry_run_prints_the_same_counts_and_changes_nothing(self) -> None:
        before = self.everything()
        told = self.shown("--phone", NUMBER, "--dry-run")
        self.assertEqual(self.everything(), before)
        self.assertEqual(self.shown("--phone", NUMBER, "--yes"), told)

    def test_a_second_run_finds_nothing(self) -> None:
        self.shown("--phone", NUMBER, "--yes")
        again = self.forget("--phone", NUMBER, "--yes")
        self.assertIn("posd has no data of this customer.\n", again.out)

    def test_it_asks_for_confirmation_and_names_the_shops_tables(self) -> None:
        before = self.everything()
        ran = self.forget("--phone", NUMBER, stdin="n\n")
        self.assertNotEqual(ran.code, 0)
        self.assertIn(
            "Erase this data? The customer loses 7 points. This cannot be undone", ran.err
        )
        self.assertEqual(self.everything(), before)
        ran = self.forget("--phone", NUMBER, stdin="y\n")
        self.assertEqual(ran.code, 0)
        self.assertIn("Erased.\n", ran.out)
        self.assertIn(
            "check them too: dinedesk_kitchen.order_items, dinedesk_kitchen.orders.", ran.out
        )

    def test_the_record_of_an_erasure_does_not_name_the_customer(self) -> None:
        self.shown("--phone", NUMBER, "--yes")
        self.assertEqual(
            execute(
                self.dsn,
                "SELECT tenant_id, erased_by, sought, events, orders, answers, gift_cards, accounts"
                " FROM dinedesk_main.pos_erasures",
            ),
            [(1, "posd", "phone …123", 7, 1, 2, 0, 1)],
        )

    def test_an_interrupted_erasure_is_recorded_too(self) -> None:
        async def cut_off(*_: object) -> None:
            raise psycopg2.OperationalError("cut off")

        self.patch(erasure, "erase_people", cut_off)
        ran = self.forget("--phone", NUMBER, "--yes")
        self.assertNotEqual(ran.code, 0)
        noted = execute(self.dsn, "SELECT sought, events FROM dinedesk_main.pos_erasures")
        self.assertEqual(noted, [("phone …123", 7)])

    def test_daemons_drop_their_caches_even_if_the_record_fails(self) -> None:
        async def cut_off(*_: object) -> None:
            raise psycopg2.OperationalError("cut off")

        self.patch(erasure, "record_erasure", cut_off)
        self.assertNotEqual(self.forget("--phone", NUMBER, "--yes").code, 0)
        told = execute(self.dsn, "SELECT DISTINCT what FROM dinedesk_main.pos_control")
        self.assertIn(("erased 1",), told)

    def test_data_that_changes_before_the_erasure_is_erased_and_counted_once(self) -> None:
        tenant = Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen")
        person = ErasedPerson("GB", phones=frozenset((NUMBER,)))
        with database.open_executor(self.dsn) as executor:
            found = run_to_completion(forgetting.find(executor, tenant, person))
            execute(
                self.dsn,
                "UPDATE dinedesk_kitchen.pos_events SET event_data ="
                " (event_data::jsonb || '{\"tip\": 1}')::json WHERE event_data::text LIKE '%900123%'",
            )
            counts = run_to_completion(forgetting.erase(executor, tenant, found, "a test"))
        self.assertEqual(counts, found.counts)
        self.assertNotIn("900123", self.everything())

    def test_invalid_values_are_refused_without_being_printed(self) -> None:
        for arguments, code in (
            ((), os.EX_USAGE),
            (("--order", "W-1"), os.EX_USAGE),
            (("--phone", "twelve"), os.EX_DATAERR),
            (("--email", "ines"), os.EX_DATAERR),
            (("--phone", NUMBER, "--tenant", "kitchn"), os.EX_DATAERR),
        ):
            with self.subTest(arguments=arguments):
                ran = self.forget(*arguments)
                self.assertEqual((ran.code, ran.out), (code, ""))
                self.assertRegex(ran.err, r"\Aposctl: .+\n\Z")
                self.assertNotIn("twelve", ran.err)


class RightsTests(SynchronousTestCase):
    """The daemon may erase texts, but may not write others."""

    ERASE = "SELECT dinedesk_main.pos_erase(1, 'event', '{1}', ARRAY[%s])"

    def test_the_daemon_can_only_remove_texts(self) -> None:
        dsn = migrated_database()
        was = '{"orderId":"7","name":"a","n":1,"list":["a","b"],"in":{"status":"s","x":"y"},"phone":5}'
        execute(
            dsn,
            "INSERT INTO dinedesk_main.pos_events (tenant_id, seq, event_type, event_data, created_at)"
            " VALUES (1, 1, 'notice', %s, now())",
            was,
        )
        with closing(psycopg2.connect(as_role(dsn, "posd"))) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            for forged in (
                was.replace('"a"', '"b"'),
                was.replace('"7"', "null"),
                was.replace('"n":1', '"n":null'),
                was.replace('"n":1', '"n":2'),
                was.replace('"n":1,', ""),
                was.replace('"a","b"', '"a"'),
                was.replace('"s"', "null"),
                was.replace('{"status":"s","x":"y"}', "null"),
                was.replace("{", '{"new":null,', 1),
                "null",
                # A reader of JSON may take the first or the last of two equal members.
                was.replace('"name":"a"', '"name":"a","name":"b"'),
                was.replace('"name":"a"', '"name":"b","name":null'),
                was.replace('"x":"y"', '"x":"z","x":"y"'),
                was.replace('"n":1', '"n":1,"n":1'),
                # The same number in another notation.
                was.replace('"n":1', '"n":1.0'),
                was.replace('"n":1', '"n":1e0'),
                was.replace('"orderId":"7","name":"a"', '"name":"a","orderId":"7"'),
            ):
                with self.subTest(forged=forged):
                    cursor.execute(self.ERASE, (forged,))
                    self.assertEqual(cursor.fetchall(), [])
            now = was.replace('"name":"a"', '"name":null').replace('"b"', "null")
            now = now.replace(',"x":"y"', "").replace('"phone":5', '"phone":null')
            cursor.execute(self.ERASE, (now,))
            self.assertEqual(cursor.fetchall(), [("1",)])
        ((text,),) = execute(dsn, "SELECT event_data::text FROM dinedesk_kitchen.pos_events")
        self.assertEqual(text, now)
