"""A tenant `kitchen` after a busy day, and an auditor for damaged data.

A test damages data in a transaction, audits it in the same transaction, and rolls back. So all tests
share one database.
"""

from __future__ import annotations

import re
from contextlib import closing
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Final
from uuid import UUID

import psycopg2
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.cli.database import BlockingExecutor, SnapshotQuerier, run_to_completion
from posd.database import migrations
from posd.database.connection import Parameters
from posd.events.daily_reports import ReportFigures, assess
from posd.events.print_status import PrintReport, ReportedStatus
from posd.maintenance.audit import AuditFinding, Auditor
from posd.publishing.outbox import OutboxPortion
from posd.publishing.transaction import BatchTransaction
from posd.store import cursors, giftcards, idempotency, loyalty, orders, presence, reports
from posd.store.idempotency import IdempotencyKey
from posd.store.ledgers import MovementCause
from posd.testing.postgres import test_server
from tests.schema_case import Client, two_shops
from tests.store_case import GRILL, KITCHEN

_CTID: Final = re.compile(r"ctid \(\d+,\d+\)")
"""A ctid. Rolled-back rows leave gaps."""
NODE: Final = UUID("7d1b4c1e-6f5e-4f0e-8b5a-2f1f6f3c9a10")
FRONT: Final = "FRONT"
PHONE: Final = "+447700900123"
_PLACE: Final = """
    WITH placed AS (
        INSERT INTO {schema}.orders (customer_name, total_amount, status)
        VALUES (%s, 12.50, 'confirmed') RETURNING id
    )
    INSERT INTO {schema}.order_items (order_id, name, price) SELECT id, 'Naan', 12.50 FROM placed
"""
_KEY: Final = """
    INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview)
    VALUES (%s, 'device', %s, sha256(%s), 'pos_')
"""


def after_a_busy_day(dsn: str) -> None:
    """Fill a database, for `TestServer.template`, with the busy shop `kitchen` and the shop `grill`."""
    two_shops(dsn)
    with closing(migrations.connect(dsn)) as connection:
        client = Client(connection)
        client.run(
            "UPDATE dinedesk_main.tenants SET pos_api_key = 'a-secret-of-the-kitchen' WHERE id = 1"
        )
        for device in (FRONT, "BAR"):
            client.run(_KEY, 1, device, device.encode())
        for tenant in (KITCHEN, GRILL):
            for name in ("Ann", "Bob", "Cid"):
                client.run(_PLACE.replace("{schema}", tenant.schema), name)
                _number(client)
        client.run("UPDATE dinedesk_kitchen.orders SET status = 'preparing' WHERE id <= 2")
        client.run("SELECT dinedesk_main.pos_publish('kitchen', 'menu_updated', '{\"menuId\": 7}')")
        client.run("SELECT dinedesk_main.pos_publish('kitchen', 'new_order', '[]')")
        _number(client)
        # Too large for tills: posd logs it as failed and keeps the order.
        client.run(
            "UPDATE dinedesk_kitchen.orders SET special_instructions = repeat('x', 5000) WHERE id = 3"
        )
        _number(client)
        executor = BlockingExecutor(connection)
        _move(executor)
        _number(client)
        _tell(executor)
        _keep(executor)


def _number(client: Client) -> None:
    """Number the rows of the outbox, as the sequencer does."""
    numbering = BatchTransaction(Clock(), NODE, 4096, lambda tenant_id: 0)
    fence = client.value("SELECT dinedesk_main.pos_claim_lease(%s, 'test')", str(NODE))
    portions = []
    for tenant in (KITCHEN, GRILL):
        ids = [row_id for _, row_id in client.look(one=tenant.id)]
        keys = client.value(
            "SELECT array_agg(key) FROM dinedesk_main.pos_outbox"
            " WHERE type IN ('order', 'placed') AND tenant_id = %s",
            tenant.id,
        )
        read = f"SELECT order_id, content FROM posd_hooks.read_orders${tenant.slug}(%s::text[])"
        portions.append(OutboxPortion(tenant.id, ids, dict(client.rows(read, keys)), fence))
    with client.transaction():
        run_to_completion(numbering.number(Numbered(client.connection), [], portions))


class Numbered(BlockingExecutor):
    """A transaction that its owner commits."""

    async def finish(self, sql: str, parameters: Parameters = ()) -> str:
        ((answer,),) = await self.query(f"SELECT ({sql})::text", parameters)
        return str(answer)


def _move(executor: BlockingExecutor) -> None:
    """Make two cards and two accounts, and every kind of movement on the first of each."""
    shop = MovementCause("platform", key="sale")
    run_to_completion(giftcards.purchase(executor, KITCHEN, "GIFT-CARD-1", 50, shop))
    run_to_completion(
        giftcards.purchase(
            executor, KITCHEN, "GIFT-CARD-2", 20, MovementCause("platform", key="two")
        )
    )
    till = MovementCause(f"device {FRONT}", device_id=FRONT, key="spent")
    run_to_completion(giftcards.deduct(executor, KITCHEN, "GIFT-CARD-1", 30, till))
    run_to_completion(
        giftcards.top_up(executor, KITCHEN, "GIFT-CARD-1", 10, MovementCause("platform"))
    )
    run_to_completion(giftcards.reverse(executor, KITCHEN, "GIFT-CARD-1", till, key="spent"))
    run_to_completion(
        giftcards.reverse(executor, KITCHEN, "GIFT-CARD-1", MovementCause("platform"), key="late")
    )
    run_to_completion(
        giftcards.reverse(executor, KITCHEN, "GIFT-CARD-3", MovementCause("platform"), key="never")
    )
    # The till does not know that the platform has already reversed it.
    run_to_completion(giftcards.reverse(executor, KITCHEN, "GIFT-CARD-3", till, key="never"))
    earned = MovementCause("platform", order_id="1", key="earned")
    run_to_completion(loyalty.add(executor, KITCHEN, PHONE, 100, earned, joining=True))
    run_to_completion(
        loyalty.add(executor, KITCHEN, "+447700900124", 7, MovementCause("platform"), joining=True)
    )
    run_to_completion(
        loyalty.redeem(executor, KITCHEN, PHONE, 40, MovementCause("platform", key="redeemed"))
    )
    run_to_completion(
        loyalty.adjust(executor, KITCHEN, PHONE, -5, MovementCause("platform", order_id="2"))
    )
    run_to_completion(
        loyalty.reverse(executor, KITCHEN, PHONE, MovementCause("platform"), key="redeemed")
    )
    run_to_completion(
        loyalty.reverse(executor, KITCHEN, PHONE, MovementCause("platform"), key="late")
    )


def _tell(executor: BlockingExecutor) -> None:
    """Send messages of tills: the first two orders are printed or should be, and all up to 4 are received."""
    for order, said in (
        ("1", ReportedStatus.ACCEPTED),
        ("1", ReportedStatus.PRINTED),
        ("2", ReportedStatus.FAILED),
    ):
        run_to_completion(orders.record_report(executor, KITCHEN, PrintReport(order, said), FRONT))
    head = run_to_completion(
        executor.query(
            "SELECT last_seq, stream_id FROM dinedesk_main.pos_heads WHERE tenant_id = 1"
        )
    )
    ((last_seq, stream_id),) = head
    stream = UUID(stream_id)
    run_to_completion(cursors.advance(executor, [(1, FRONT, stream, 4)]))
    run_to_completion(presence.update_progress(executor, [(1, stream, last_seq - 1, 4)]))
    run_to_completion(orders.update_print_status(executor, [1]))
    run_to_completion(presence.insert_nacks(executor, [(1, 3, FRONT, "no paper", stream)]))
    run_to_completion(presence.insert_messages(executor, [(1, "heartbeat", "{}", FRONT)]))


def _keep(executor: BlockingExecutor) -> None:
    """Store a day's report in three revisions, and an answer."""
    for total in (100, 110, 120):
        figures = ReportFigures({"total_sales": Decimal(total)}, {}, 7, None)
        run_to_completion(
            reports.store_report(
                executor, KITCHEN, assess(date(2026, 11, 22), figures, "GBP"), FRONT
            )
        )
    call = IdempotencyKey(1, "platform", "POST /api/kitchen/events", "k", bytes(32))
    run_to_completion(idempotency.store_responses(executor, [(call, 201, '{"ids": [1]}')]))


@cache
def database() -> str:
    """The one database of all these tests."""
    return test_server().fresh_database(test_server().template(after_a_busy_day))


class AuditCase(SynchronousTestCase):
    """The tenant `kitchen`, in a transaction that is never committed."""

    def setUp(self) -> None:
        connection = psycopg2.connect(database())
        self.addCleanup(connection.close)
        self.connection = connection

    def audited(self, *damages: str, most: int = 10) -> list[AuditFinding]:
        """Return the findings of an audit after a superuser has run these statements."""
        self.connection.rollback()
        with self.connection.cursor() as cursor:
            # Triggers and foreign keys are off.
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute("SET LOCAL search_path = dinedesk_kitchen, dinedesk_main")
            for damage in damages:
                cursor.execute(damage)
            cursor.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        auditor = Auditor(SnapshotQuerier(self.connection), most)
        run_to_completion(auditor.main())
        run_to_completion(auditor.tenant(KITCHEN))
        self.assertEqual(auditor.audit.unfinished, [])
        return auditor.audit.findings

    def named(self, *damages: str) -> dict[str, dict[str, str]]:
        """Return the faults by check and row, except those of the schema."""
        return {
            each.check: {_CTID.sub("ctid …", wrong.row): wrong.what for wrong in each.found.rows}
            for each in self.audited(*damages)
            if each.check != "schema"
        }
