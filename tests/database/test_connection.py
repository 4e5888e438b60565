"""What becomes of the errors of psycopg2, txpostgres and the reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from posd.database.connection import ConnectionLost, DatabaseConnection
from posd.errors import Busy, StatementFailed, Unavailable
from tests.database_case import REACTOR, DatabaseCase, begin, until


def raising(sqlstate: str) -> str:
    """A statement that fails with this code."""
    return f"DO $$ BEGIN RAISE EXCEPTION 'as wanted' USING ERRCODE = '{sqlstate}'; END $$"


class Meddler:
    """The reactor, but that the next thing it is asked to do at once is preceded by `first`."""

    first: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(REACTOR, name)

    def callLater(self, delay: float, work: Callable[..., object], *args: Any) -> IDelayedCall:
        first, self.first = self.first, None
        called: IDelayedCall = REACTOR.callLater(delay, work, *args)
        if first is not None:
            first()
        return called


class ConnectionTests(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        self.ends: list[str] = []
        self.heard: list[tuple[str, str]] = []

    async def connect(self) -> DatabaseConnection:
        connection = DatabaseConnection(
            REACTOR,
            lambda which, trouble: self.ends.append(trouble),
            lambda channel, payload: self.heard.append((channel, payload)),
        )
        self.addCleanup(connection.close)
        await connection.open(self.dsn)
        return connection

    async def pid(self, connection: DatabaseConnection) -> int:
        ((pid,),) = await connection.run("SELECT pg_backend_pid()", rows=True)
        return int(pid)

    async def test_rows_come_as_tuples_and_parameters_by_place_or_by_name(self) -> None:
        connection = await self.connect()
        self.assertEqual(await connection.run("SELECT %s, 'b'", ("a",), rows=True), [("a", "b")])
        named = {"a": 1, "b": [2, 3]}
        self.assertEqual(
            await connection.run("SELECT %(a)s, %(b)s::integer[]", named, rows=True), [(1, [2, 3])]
        )

    async def test_without_parameters_a_percent_sign_is_one(self) -> None:
        connection = await self.connect()
        self.assertEqual(await connection.run("SELECT '100 %'", rows=True), [("100 %",)])

    async def test_who_gives_up_when_the_result_is_on_its_way_is_told_nothing_else(self) -> None:
        meddler: Any = Meddler()
        connection = DatabaseConnection(meddler, lambda which, trouble: self.ends.append(trouble))
        self.addCleanup(connection.close)
        await connection.open(self.dsn)
        self.admin.run("SELECT pg_advisory_lock(1)")
        running = begin(connection.run("SELECT pg_advisory_lock(1)", rows=True))
        meddler.first = running.cancel
        self.admin.run("SELECT pg_advisory_unlock(1)")
        with self.assertRaises(CancelledError):
            await running
        self.assertEqual(self.ends, ["a statement was given up"])
        # In the turn after this one the result would have been told.
        await deferLater(REACTOR, 0)

    async def test_a_statement_without_rows_answers_where_none_are_wanted(self) -> None:
        connection = await self.connect()
        self.assertEqual(await connection.run("CREATE TABLE t (a integer)", rows=False), [])

    async def test_a_time_limit_and_a_collision_are_busy_and_keep_the_connection(self) -> None:
        connection = await self.connect()
        for sqlstate in ("57014", "55P03", "40P01", "40001"):
            with self.subTest(sqlstate), self.assertRaises(Busy):
                await connection.run(raising(sqlstate), rows=False)
        self.assertEqual(self.ends, [])
        self.assertEqual(await connection.run("SELECT 1", rows=True), [(1,)])

    async def test_a_full_disk_is_nobodys_fault_and_keeps_the_connection(self) -> None:
        connection = await self.connect()
        for sqlstate in ("53100", "53200", "58030"):
            with self.subTest(sqlstate):
                with self.assertRaises(Unavailable) as caught:
                    await connection.run(raising(sqlstate), rows=False)
                self.assertNotIsInstance(caught.exception, (Busy, ConnectionLost))
        self.assertEqual(self.ends, [])

    async def test_a_standby_and_a_shutdown_end_the_connection(self) -> None:
        connection = await self.connect()
        with self.assertRaises(ConnectionLost) as caught:
            await connection.run(raising("25006"), rows=False)
        self.assertTrue(caught.exception.is_rolled_back)
        self.assertEqual(self.ends, ["as wanted"])
        connection = await self.connect()
        self.ends.clear()
        with self.assertRaises(ConnectionLost) as caught:
            await connection.run("SELECT pg_terminate_backend(pg_backend_pid())", rows=False)
        self.assertFalse(caught.exception.is_rolled_back)
        self.assertEqual(len(self.ends), 1)

    async def test_an_error_that_a_trigger_raises_as_a_lost_connection_keeps_it(self) -> None:
        connection = await self.connect()
        for sqlstate in ("57P01", "57P05", "08006", "08P01"):
            with self.subTest(sqlstate), self.assertRaises(StatementFailed) as caught:
                await connection.run(raising(sqlstate), rows=False)
            self.assertEqual(caught.exception.sqlstate, sqlstate)
        self.assertEqual(self.ends, [])
        self.assertEqual(await connection.run("SELECT 1", rows=True), [(1,)])

    async def test_any_other_failure_tells_its_code_and_its_constraint(self) -> None:
        connection = await self.connect()
        await connection.run("CREATE TABLE t (a integer CONSTRAINT sane CHECK (a > 0))", rows=False)
        with self.assertRaises(StatementFailed) as caught:
            await connection.run("INSERT INTO t VALUES (0)", rows=False)
        self.assertEqual(caught.exception.sqlstate, "23514")
        self.assertEqual(caught.exception.constraint, "sane")
        self.assertIn("violates check constraint", str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    async def test_what_psycopg2_itself_does_not_like_is_a_failed_statement(self) -> None:
        connection = await self.connect()
        with self.assertRaises(StatementFailed):
            await connection.run("SELECT %s", (object(),), rows=True)
        with self.assertRaises(StatementFailed):
            await connection.run("CREATE TABLE t (a integer)", rows=True)
        self.assertEqual(self.ends, [])

    async def test_a_statement_whose_backend_dies_has_lost_its_connection(self) -> None:
        connection = await self.connect()
        pid = await self.pid(connection)
        running = begin(connection.run("SELECT pg_sleep(20)", rows=True))
        self.admin.run("SELECT pg_terminate_backend(%s)", pid)
        with self.assertRaises(ConnectionLost):
            await running
        self.assertEqual(len(self.ends), 1)

    async def test_the_death_of_an_idle_backend_is_told_once(self) -> None:
        connection = await self.connect()
        self.admin.run("SELECT pg_terminate_backend(%s)", await self.pid(connection))
        await until(lambda: bool(self.ends), "the end was told")
        with self.assertRaises(ConnectionLost):
            await connection.run("SELECT 1", rows=True)
        self.assertEqual(len(self.ends), 1)

    async def test_the_end_is_told_also_where_the_reactor_finds_it_out(self) -> None:
        """It calls connectionLost() instead of doRead() when there is nothing left to read."""
        connection = await self.connect()
        watched = connection._raw.watch._watched
        REACTOR._disconnectSelectable(watched, Exception("hung up"), True)
        self.assertEqual(len(self.ends), 1)

    async def test_closing_fails_what_runs_and_tells_nobody_an_end(self) -> None:
        connection = await self.connect()
        running = begin(connection.run("SELECT pg_sleep(20)", rows=True))
        connection.close()
        with self.assertRaises(ConnectionLost):
            await running
        connection.close()
        self.assertEqual(self.ends, [])

    async def test_a_statement_that_is_given_up_ends_the_connection_at_once(self) -> None:
        connection = await self.connect()
        running = begin(connection.run("SELECT pg_sleep(20)", rows=True))
        before = REACTOR.seconds()
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        self.assertLess(REACTOR.seconds() - before, 10.0)
        self.assertEqual(self.ends, ["a statement was given up"])

    async def test_a_server_that_is_not_there_is_unavailable_in_its_own_words(self) -> None:
        connection = DatabaseConnection(REACTOR, lambda which, trouble: self.ends.append(trouble))
        with self.assertRaises(Unavailable) as caught:
            await connection.open("host=/nowhere dbname=none")
        self.assertIn("No such file or directory", caught.exception.message)
        self.assertNotIn("\n", caught.exception.message)
        connection.close()

    async def test_a_dsn_that_is_none_is_unavailable(self) -> None:
        connection = DatabaseConnection(REACTOR, lambda which, trouble: None)
        with self.assertRaises(Unavailable) as caught:
            await connection.open("this is no dsn")
        self.assertIn("missing", caught.exception.message)

    async def test_a_server_that_hangs_up_on_the_greeting_is_unavailable(self) -> None:
        factory = Factory.forProtocol(Rude)
        port = REACTOR.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        connection = DatabaseConnection(REACTOR, lambda which, trouble: self.ends.append(trouble))
        with self.assertRaises(Unavailable):
            await connection.open(f"host=127.0.0.1 port={port.getHost().port} dbname=none")
        connection.close()
        self.assertEqual(self.ends, [])

    async def test_notifications_are_told_while_idle_and_with_an_answer(self) -> None:
        connection = await self.connect()
        await connection.run("LISTEN news", rows=False)
        self.admin.run("NOTIFY news, 'one'")
        await until(lambda: bool(self.heard), "the first was heard")
        await connection.run("NOTIFY news, 'two'", rows=False)
        await until(lambda: len(self.heard) == 2, "the second was heard")
        self.assertEqual(self.heard, [("news", "one"), ("news", "two")])

    async def test_many_notifications_are_told_in_their_order(self) -> None:
        connection = await self.connect()
        await connection.run("LISTEN news", rows=False)
        self.admin.run("SELECT pg_notify('news', n::text) FROM generate_series(1, 5000) AS n")
        await until(lambda: len(self.heard) >= 5000, "all were heard")
        self.assertEqual([int(payload) for _, payload in self.heard], [*range(1, 5001)])


class Rude(Protocol):
    """Hangs up as soon as somebody calls."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.loseConnection()
