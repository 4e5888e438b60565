"""The connections that read shops' tables, with shops that mean harm."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs

from posd.database import shop_readers as readers_module
from posd.database.dsn import with_reader_user
from posd.database.reconnecting import ReconnectingConnection
from posd.database.shop_readers import SLOTS, ReadTimedOut, ShopReaders, ShopTablesUnreadable
from posd.errors import StatementFailed, Unavailable
from posd.testing.postgres import test_server
from posd.values import TenantId
from tests.database_case import REACTOR, DatabaseCase, until
from tests.schema_case import ENDLESS, two_shops

KITCHEN: Final = 1
GRILL: Final = 2
READ: Final = "SELECT * FROM posd_hooks.read_orders${}('{{1}}')"


class ReadersCase(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        for slug in ("kitchen", "grill"):
            self.admin.run(f"INSERT INTO dinedesk_{slug}.orders (id, total_amount) VALUES (1, 5)")

    def template(self) -> str:
        return test_server().template(two_shops)

    async def readers(self) -> ShopReaders:
        readers = ShopReaders(REACTOR, with_reader_user(self.dsn))
        readers.startService()
        self.addCleanup(readers.stopService)
        await until(
            lambda: all(each.connection.up for each in readers._slots), "all readers are up"
        )
        return readers

    async def rested(self, readers: ShopReaders) -> None:
        await until(lambda: all(p.tenant is None for p in readers._slots), "all places are free")

    def run_when_read(self, body: str, slug: str = "kitchen", rights: str = "") -> None:
        """Have PL/pgSQL run when a shop's order 1 is read: by a view in the place of its items."""
        self.admin.run(
            f"DROP ROUTINE IF EXISTS dinedesk_{slug}.evil CASCADE;"
            f"DROP TABLE IF EXISTS dinedesk_{slug}.order_items;"
            f"CREATE FUNCTION dinedesk_{slug}.evil() RETURNS bigint LANGUAGE plpgsql {rights}"
            f" AS $$ BEGIN {body}; RETURN 1; END $$;"
            f"CREATE VIEW dinedesk_{slug}.order_items AS"
            f" SELECT 1::bigint AS id, dinedesk_{slug}.evil() AS order_id, 'Soup' AS name, 1 AS price,"
            " 1 AS quantity;"
            f"GRANT SELECT ON dinedesk_{slug}.order_items TO posd_hook_{slug}"
        )

    def pids(self) -> set[int]:
        return set(self.backends("posd reader"))


class ReadingTests(ReadersCase):
    async def test_orders_are_read_as_the_shop_has_them(self) -> None:
        readers = await self.readers()
        ((order_id, content),) = await readers.read(KITCHEN, READ.format("kitchen"))
        self.assertEqual((order_id, json.loads(content)["total_amount"]), ("1", 5))
        self.assertTrue(readers.is_quick(KITCHEN))

    async def test_nothing_can_be_written_while_a_shop_is_read(self) -> None:
        readers = await self.readers()
        self.admin.run("GRANT INSERT ON dinedesk_kitchen.orders TO posd_hook_kitchen")
        for body, refusal in (
            ("INSERT INTO dinedesk_kitchen.orders (id, total_amount) VALUES (2, 5)", "25006"),
            ("ALTER FUNCTION posd_hooks.read_orders$kitchen(text[]) SECURITY INVOKER", "25006"),
            ("CREATE TEMPORARY TABLE t ()", "25006"),
            ("PERFORM set_config('transaction_read_only', 'off', true)", "25001"),
        ):
            with self.subTest(body=body):
                self.run_when_read(body)
                with self.assertRaises(StatementFailed) as caught:
                    await readers.read(KITCHEN, READ.format("kitchen"))
                self.assertEqual(caught.exception.sqlstate, refusal)

    async def test_a_shops_code_has_no_more_rights_than_to_read_that_shop(self) -> None:
        readers = await self.readers()
        for body in (
            "PERFORM FROM dinedesk_grill.orders",
            "PERFORM FROM dinedesk_kitchen.pos_events",
            "PERFORM FROM dinedesk_main.pos_api_keys",
            "PERFORM FROM posd_hooks.read_orders$grill('{1}')",
            "PERFORM FROM posd_hooks.enqueue$kitchen('order', '{1}')",
            "PERFORM dinedesk_main.pos_publish('grill', 'x', '{}')",
            "PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'posd_reader'",
            "PERFORM set_config('role', 'posd_reader', false)",
            "PERFORM set_config('session_authorization', 'default', false)",
        ):
            with self.subTest(body=body):
                self.run_when_read(body)
                with self.assertRaises(StatementFailed) as caught:
                    await readers.read(KITCHEN, READ.format("kitchen"))
                self.assertIn(caught.exception.sqlstate, ("42501", "42P01", "3F000", "22023"))

    async def test_there_is_one_row_for_a_key_whatever_the_shop_has(self) -> None:
        readers = await self.readers()
        self.admin.run(
            "CREATE TYPE dinedesk_kitchen.key AS ENUM ('1', '2');"
            "CREATE FUNCTION dinedesk_kitchen.name(dinedesk_kitchen.key) RETURNS text LANGUAGE sql"
            " AS $$ SELECT CASE WHEN $1 = '1' THEN '1' ELSE repeat('x', 1000000) END $$;"
            "CREATE CAST (dinedesk_kitchen.key AS text)"
            " WITH FUNCTION dinedesk_kitchen.name(dinedesk_kitchen.key);"
            "DROP TABLE dinedesk_kitchen.order_items, dinedesk_kitchen.orders;"
            "CREATE VIEW dinedesk_kitchen.orders AS"
            " SELECT k AS id, 'new' AS status, 1 AS total_amount, now() AS created_at"
            " FROM unnest(enum_range(NULL::dinedesk_kitchen.key)) AS k, generate_series(1, 20);"
            "CREATE VIEW dinedesk_kitchen.order_items AS"
            " SELECT 1 AS id, '1'::dinedesk_kitchen.key AS order_id, 'Soup' AS name, 1 AS price,"
            " 1 AS quantity;"
            "GRANT SELECT ON dinedesk_kitchen.orders, dinedesk_kitchen.order_items TO posd_hook_kitchen"
        )
        rows = await readers.read(KITCHEN, READ.format("kitchen").replace("{1}", "{1,2}"))
        self.assertEqual([order_id for order_id, _ in rows], ["1"])

    async def test_nothing_is_left_in_a_session_that_a_shop_was_read_in(self) -> None:
        readers = await self.readers()
        self.run_when_read(
            "PERFORM set_config('search_path', 'dinedesk_kitchen', false),"
            " set_config('statement_timeout', '0', false), pg_advisory_lock(7097, 3);"
            " EXECUTE 'PREPARE ready AS SELECT 1'"
        )
        await readers.read(KITCHEN, READ.format("kitchen"))
        await self.rested(readers)
        locks = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        self.assertEqual(self.admin.value(locks), 0)
        open_ = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
        )
        self.assertEqual(self.admin.value(open_, "posd reader"), 0, "its transaction has ended")
        settings = (
            "SELECT current_setting('search_path'), current_setting('statement_timeout'),"
            " (SELECT count(*) FROM pg_prepared_statements)"
        )
        for _ in range(SLOTS):
            read = await readers.read(GRILL, settings)
            self.assertEqual(read, [("pg_catalog, pg_temp", "150ms", 0)])

    async def test_without_a_connection_it_is_unavailable(self) -> None:
        readers = ShopReaders(REACTOR, with_reader_user(self.dsn))
        with self.assertRaises(Unavailable):
            await readers.read(KITCHEN, READ.format("kitchen"))


class MessageTests(ReadersCase):
    """What a shop's code says while it is read."""

    async def test_a_shop_that_sends_long_messages_is_not_read(self) -> None:
        readers = await self.readers()
        self.run_when_read("RAISE WARNING 'well'")
        await readers.read(KITCHEN, READ.format("kitchen"))
        # More than the fifty that psycopg2 keeps.
        self.run_when_read(
            "RAISE WARNING USING MESSAGE = repeat('x', 2000000);"
            " FOR n IN 1 .. 60 LOOP RAISE WARNING 'well'; END LOOP"
        )
        with self.assertRaisesRegex(ShopTablesUnreadable, "64 KiB of messages"):
            await readers.read(KITCHEN, READ.format("kitchen"))
        await readers.read(GRILL, READ.format("grill"))
        await self.rested(readers)
        self.assertEqual(
            [place.connection.take_notice_count() for place in readers._slots], [0] * SLOTS
        )

    async def test_of_an_error_the_beginning_is_kept(self) -> None:
        readers = await self.readers()
        self.run_when_read(
            "RAISE EXCEPTION USING MESSAGE = repeat('x', 1000000), ERRCODE = '42501'"
        )
        with self.assertRaises(StatementFailed) as caught:
            await readers.read(KITCHEN, READ.format("kitchen"))
        self.assertEqual(len(str(caught.exception)), 1000)

    async def test_no_shop_can_say_that_the_database_is_in_trouble(self) -> None:
        readers = await self.readers()
        self.run_when_read("RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'")
        with capturedLogs() as logged, self.assertRaisesRegex(StatementFailed, "no space left"):
            await readers.read(KITCHEN, READ.format("kitchen"))
        self.assertEqual([each for each in logged if "in trouble" in str(each)], [])

    async def test_no_shop_is_blamed_for_the_messages_of_another(self) -> None:
        readers = await self.readers()
        self.patch(readers_module, "_TRIAL_SECONDS", 0.1)
        self.patch(readers_module, "STATEMENT_SECONDS", 0.1)
        self.run_when_read("LOOP RAISE WARNING '%', repeat('x', 1000); END LOOP")
        with self.assertRaises(ReadTimedOut):
            await readers.read(KITCHEN, READ.format("kitchen"))
        await self.rested(readers)
        for _ in range(SLOTS):
            await readers.read(GRILL, READ.format("grill"))


class EndingTests(ReadersCase):
    """A shop's code ends the session a moment after the read, or seems to end it in the read."""

    LATER: Final = "PERFORM set_config('idle_in_transaction_session_timeout', '1', false)"

    async def test_a_shop_whose_reads_end_the_session_has_one_place_and_few_tries(self) -> None:
        readers = await self.readers()
        await readers.read(GRILL, READ.format("grill"))
        execute = ReconnectingConnection.execute

        async def late(connection: ReconnectingConnection, sql: str, parameters: Any = ()) -> None:
            await deferLater(REACTOR, 0.02)
            await execute(connection, sql, parameters)

        # The session ends before it is cleaned.
        self.patch(ReconnectingConnection, "execute", late)
        self.run_when_read(self.LATER)
        outcomes: list[object] = []
        while not (outcomes and isinstance(outcomes[-1], ShopTablesUnreadable)):
            try:
                outcomes.append(await readers.read(KITCHEN, READ.format("kitchen")))
            except Unavailable as error:
                outcomes.append(error)
            its_own = [each for each in readers._slots if each.tenant == KITCHEN]
            self.assertLessEqual(len(its_own), 1)
            # Another shop waits for none of that.
            await readers.read(GRILL, READ.format("grill"))
            self.assertLess(len(outcomes), 10)
        self.assertIn("the session ended", str(outcomes[-1]))
        await until(lambda: all(p.connection.up for p in readers._slots), "all places are refilled")
        await self.rested(readers)

    async def test_a_read_that_fails_as_if_the_session_ended_has_a_shop_fail_alone(self) -> None:
        readers = await self.readers()
        links = [place.connection._connection for place in readers._slots]
        self.run_when_read("RAISE EXCEPTION 'gone' USING ERRCODE = '57P01'")
        with self.assertRaises(StatementFailed):
            await readers.read(KITCHEN, READ.format("kitchen"))
        await self.rested(readers)
        self.assertEqual([place.connection._connection for place in readers._slots], links)


class OverdueTests(ReadersCase):
    async def test_a_shop_that_was_quick_is_given_up_sooner(self) -> None:
        """Sixteen shops that stall in one moment delay another one by less than two seconds."""
        readers = await self.readers()
        await readers.read(KITCHEN, READ.format("kitchen"))
        self.assertTrue(readers.is_quick(KITCHEN))
        self.run_when_read("PERFORM pg_sleep(60)")
        waits: list[str] = []
        query = ReconnectingConnection.query

        async def noted(connection: ReconnectingConnection, sql: str, parameters: Any = ()) -> Any:
            if "most" in parameters:
                waits.append(f"{parameters['most']} ms")
            return await query(connection, sql, parameters)

        self.patch(ReconnectingConnection, "query", noted)
        with self.assertRaises(ReadTimedOut):
            await readers.read(KITCHEN, READ.format("kitchen"))
        self.assertEqual(waits, ["150 ms", "1000 ms"])

    async def test_nobody_is_blamed_for_a_reactor_that_is_late(self) -> None:
        """The answer has come when the reactor is there again."""
        readers = await self.readers()
        running = self.begun(readers, GRILL, "grill")
        await until(lambda: any(p.tenant == GRILL for p in readers._slots), "it is read")
        time.sleep(0.6)
        await running
        self.assertTrue(all(place.connection.up for place in readers._slots))

    async def test_a_read_that_takes_too_long_is_ended_by_the_server(self) -> None:
        readers = await self.readers()
        before = self.pids()
        self.run_when_read("PERFORM pg_sleep(60)")
        with self.assertRaises(ReadTimedOut):
            await readers.read(KITCHEN, READ.format("kitchen"))
        self.assertEqual(self.pids(), before, "the connection can be used again")
        self.assertFalse(readers.is_quick(KITCHEN))

    async def test_code_that_goes_on_after_its_cancellation_is_terminated(self) -> None:
        readers = await self.readers()
        await readers.read(KITCHEN, READ.format("kitchen"))
        before = self.pids()
        self.run_when_read(ENDLESS)
        with self.assertRaises(ReadTimedOut):
            await readers.read(KITCHEN, READ.format("kitchen"))
        await until(lambda: all(p.connection.up for p in readers._slots), "the place is refilled")
        running = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'posd reader'"
            " AND datname = current_database() AND state = 'active'"
        )
        await until(lambda: self.admin.value(running) == 0, "its sessions are ended")
        self.assertLess(len(self.pids() & before), SLOTS)
        await until(lambda: len(self.pids()) == SLOTS, "there are as many as before")

    async def test_shops_that_were_quick_have_places_that_no_other_gets(self) -> None:
        readers = await self.readers()
        await readers.read(GRILL, READ.format("grill"))
        await self.rested(readers)
        self.run_when_read("PERFORM pg_sleep(60)")
        slow = [self.begun(readers, tenant) for tenant in (KITCHEN, 3, 4, 5)]
        await until(lambda: sum(p.tenant is not None for p in readers._slots) == 2, "two read")
        for _ in range(5):
            await readers.read(GRILL, READ.format("grill"))
        self.assertEqual([each.called for each in slow], [False] * 4)
        for each in slow:
            await self.assertFailure(each, ReadTimedOut)

    async def test_a_shop_of_which_nothing_is_known_waits_for_no_slow_one(self) -> None:
        self.patch(readers_module, "_TRIAL_SECONDS", 0.05)
        self.patch(readers_module, "STATEMENT_SECONDS", 0.4)
        readers = await self.readers()
        self.run_when_read("PERFORM pg_sleep(60)")
        slow = (KITCHEN, 3)
        for each in [self.begun(readers, tenant) for tenant in slow]:
            await self.assertFailure(each, ReadTimedOut)
        await self.rested(readers)
        running = [self.begun(readers, tenant) for tenant in slow]
        await until(lambda: any(p.tenant is not None for p in readers._slots), "one reads")
        await readers.read(GRILL, READ.format("grill"))
        self.assertEqual([each.called for each in running], [False] * 2)
        for each in running:
            await self.assertFailure(each, ReadTimedOut)

    def begun(
        self, readers: ShopReaders, tenant: TenantId, slug: str = "kitchen"
    ) -> Deferred[object]:
        """A read in the name of any tenant."""
        return Deferred.fromCoroutine(readers.read(tenant, READ.format(slug)))
