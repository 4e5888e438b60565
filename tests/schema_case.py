"""A database with posd's schema and two shops, and the roles that use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Barrier
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg2
from attrs import define, fields, frozen
from psycopg2.extensions import make_dsn
from twisted.trial.unittest import SynchronousTestCase

from posd.database import migrations
from posd.database import provisioning as provision
from posd.testing.postgres import test_server

T = TypeVar("T")

KITCHEN_SHOP: Final = "posd_test_kitchen"
GRILL_SHOP: Final = "posd_test_grill"
CASHIER: Final = "posd_test_cashier"
"""Roles that log in: one for each shop, with all rights on its rows, and one that may only insert orders of
`kitchen`.
"""

DEADLINE: Final = 300.0
NODE: Final = UUID("7d1b4c1e-6f5e-4f0e-8b5a-2f1f6f3c9a10")

_ROLES: Final = f"""
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN SELECT * FROM (VALUES
        ('{KITCHEN_SHOP}', 'LOGIN IN ROLE posd_publisher'),
        ('{GRILL_SHOP}', 'LOGIN IN ROLE posd_publisher'),
        ('{CASHIER}', 'LOGIN')
    ) AS roles(name, attributes) LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I %s', wanted.name, wanted.attributes);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
END
$$;
GRANT USAGE ON SCHEMA dinedesk_kitchen TO {KITCHEN_SHOP}, {CASHIER};
GRANT SELECT, INSERT, UPDATE, DELETE
    ON dinedesk_kitchen.orders, dinedesk_kitchen.order_items TO {KITCHEN_SHOP};
GRANT INSERT ON dinedesk_kitchen.orders, dinedesk_kitchen.order_items TO {CASHIER};
GRANT USAGE ON SCHEMA dinedesk_grill TO {GRILL_SHOP};
GRANT SELECT, INSERT, UPDATE, DELETE
    ON dinedesk_grill.orders, dinedesk_grill.order_items TO {GRILL_SHOP};
"""


ENDLESS = """
    LOOP
        BEGIN
            PERFORM pg_sleep(60);
        EXCEPTION WHEN query_canceled THEN
            NULL;
        END;
    END LOOP
"""
"""Code of a shop that ignores a cancellation."""


@frozen
class Taken:
    """A row that pos_take() took out of the outbox."""

    tenant_id: int
    id: int
    type: str
    key: str | None
    data: str | None


@frozen
class Entry:
    """An event as pos_record() takes it, with JSON members as text."""

    tenant_id: int = 1
    type: str = "new_order"
    data: str = "{}"
    extra_members: str = "{}"
    failure: str | None = None
    order_id: str | None = None
    snapshot: str | None = None
    status: str | None = None
    version: int | None = None
    payment_status: str | None = None
    created_at: str | None = None


@define(eq=False)
class Client:
    """A session. Every statement is a transaction of its own, except in `transaction`."""

    connection: Any

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def run(self, statement: str, *parameters: object) -> None:
        self.rows(statement, *parameters)

    def value(self, statement: str, *parameters: object) -> Any:
        """Return the single value of the single row."""
        ((value,),) = self.rows(statement, *parameters)
        return value

    @contextmanager
    def transaction(self, isolation: str = "READ COMMITTED") -> Iterator[None]:
        self.run(f"BEGIN ISOLATION LEVEL {isolation}")
        try:
            yield
        except BaseException:
            self.run("ROLLBACK")
            raise
        self.run("COMMIT")

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        self.run("BEGIN")
        try:
            yield
        finally:
            self.run("ROLLBACK")

    @property
    def pid(self) -> int:
        return int(self.connection.info.backend_pid)

    def notifications(self) -> list[tuple[str, str]]:
        """Return the notifications since the last call: channel and payload."""
        # PostgreSQL delivers earlier notifications before the answer to this statement.
        self.run("SELECT 1")
        self.connection.poll()
        heard = [(notify.channel, notify.payload) for notify in self.connection.notifies]
        self.connection.notifies.clear()
        return heard

    def told(self) -> list[str]:
        """Return the messages to the nodes since the last call."""
        rows = self.rows("DELETE FROM dinedesk_main.pos_control RETURNING id, what")
        return [what for _, what in sorted(rows)]

    def look(
        self, at_most: int = 500, aside: Sequence[int] = (), one: int | None = None
    ) -> list[tuple[int, int]]:
        """Return what the sequencer sees: tenant and id of each row."""
        return self.rows(
            "SELECT tenant_id, id FROM dinedesk_main.pos_look(%s, %s::integer[], '{}', '{}', '{}',"
            " %s::integer)",
            at_most,
            list(aside),
            one,
        )

    def take(
        self,
        at_most: int = 500,
        aside: Sequence[int] = (),
        *,
        seen: Sequence[tuple[int, int]] | None = None,
    ) -> list[Taken]:
        """Take rows as the sequencer does: those in `seen`, or all visible ones. Waits for another
        sequencer.
        """
        rows_seen = self.look(at_most, aside) if seen is None else seen
        self.run(
            "UPDATE dinedesk_main.pos_doorman SET node_id = %s WHERE node_id IS NULL", str(NODE)
        )
        rows = self.rows(
            "SELECT * FROM dinedesk_main.pos_take(%s::integer[], %s::bigint[], '{}', '{}', '{}', '{}',"
            " %s::uuid, %s)",
            [tenant_id for tenant_id, _ in rows_seen],
            [row_id for _, row_id in rows_seen],
            str(NODE),
            0,
        )
        return [Taken(*row[:5]) for row in rows if row[1] is not None]

    def record(self, *entries: Entry, node: UUID = NODE) -> list[tuple[int | None, int]]:
        """Record events. Return the position of each, and its tenant's connections on other nodes."""
        columns = [
            [getattr(entry, attribute.name) for entry in entries] for attribute in fields(Entry)
        ]
        rows = self.rows(
            "SELECT * FROM dinedesk_main.pos_record(%s::uuid, %s::integer[], %s::text[], %s::text[],"
            " %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::text[],"
            " %s::text[])",
            str(node),
            *columns,
        )
        return [(seq, elsewhere) for _, seq, _, _, elsewhere in sorted(rows)]

    def sequence(self) -> int:
        """Take and record in one transaction, as a sequencer does. Return the number of rows."""
        with self.transaction():
            rows = self.take() or []
            if rows:
                self.record(
                    *[
                        Entry(row.tenant_id, order_id=row.key, snapshot="{}", status="s", version=1)
                        for row in rows
                    ]
                )
        return len(rows)

    def touched(self) -> list[str | None]:
        """Return the orders that the hooks have noted, of all tenants, in order. Empty the outbox."""
        return [row.key for row in self.take() or ()]


class SchemaCase(SynchronousTestCase):
    """Tests in a database of their own, with the shops `kitchen` (tenant 1) and `grill` (tenant 2)."""

    def setUp(self) -> None:
        server = test_server()
        self.dsn = server.fresh_database(server.template(two_shops))
        self.addCleanup(server.drop_database, self.dsn)
        self.admin = self.connect()

    def connect(self, role: str | None = None, dsn: str | None = None) -> Client:
        """Open a session of a login role, or of the superuser.

        Timeouts make endless waits fail, so that no test hangs.
        """
        options = {} if role is None else {"user": role}
        connection = psycopg2.connect(make_dsn(dsn or self.dsn, **options))
        connection.autocommit = True
        self.addCleanup(connection.close)
        client = Client(connection)
        client.run(f"SET statement_timeout = '{DEADLINE}s'")
        return client


def two_shops(dsn: str) -> None:
    """Fill a database, for `TestServer.template`."""
    migrations.bootstrap(dsn)
    with closing(migrations.connect(dsn)) as connection:
        provision.migrate(connection)
        for slug in ("kitchen", "grill"):
            add(connection, slug)
        with connection.cursor() as cursor:
            cursor.execute(_ROLES)
            # For `Client.take`. Any node that claims the lease gets it.
            cursor.execute("UPDATE dinedesk_main.pos_doorman SET node_id = %s", (str(NODE),))


def add(connection: Any, slug: str) -> None:
    """Add a shop of which only the slug matters."""
    provision.add_tenant(connection, slug, f"The {slug}", currency="GBP", timezone="Europe/London")


def at_once(*jobs: Callable[[], T]) -> list[T]:
    """Run functions in threads that begin at the same moment. Return their results in order."""
    ready = Barrier(len(jobs))

    def begin(job: Callable[[], T]) -> T:
        ready.wait(DEADLINE)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(begin, job) for job in jobs]
        return [future.result(4 * DEADLINE) for future in running]


def eventually(happened: Callable[[], bool], what: str) -> None:
    """Wait until a condition in another session holds."""
    deadline = time.monotonic() + DEADLINE
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {DEADLINE} s: {what}")
        time.sleep(0.005)


def until_blocked(watcher: Client, pid: int) -> None:
    """Wait until a session waits for a lock."""
    eventually(
        lambda: bool(watcher.value("SELECT cardinality(pg_blocking_pids(%s)) > 0", pid)),
        f"backend {pid} waits for a lock",
    )
