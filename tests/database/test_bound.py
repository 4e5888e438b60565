"""A transaction whose last statement commits it: `TransactionExecutor.finish`."""

from __future__ import annotations

from typing import Final

from posd.database.reconnecting import ReconnectingConnection, TransactionExecutor
from posd.errors import Busy, OutcomeUnknown, StatementFailed
from tests.database_case import REACTOR, DatabaseCase, begin, until

ADD: Final = "SELECT public.add(%s)"


class FinishTests(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        self.admin.run(
            "CREATE TABLE public.t (a integer CHECK (a > 0));"
            "CREATE TABLE public.other (a integer);"
            "CREATE FUNCTION public.add(a integer) RETURNS text LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO public.t VALUES (a); RETURN concat('%', a, chr(233)); END $$"
        )

    async def linked(self) -> ReconnectingConnection:
        connection = ReconnectingConnection(
            REACTOR, self.dsn, name="posd test", statement_timeout=5.0, role=None
        )
        return await self.up(connection)

    def in_the_commit(self, body: str) -> None:
        self.admin.run(
            "CREATE FUNCTION public.follow() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN {body}; RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER follow AFTER INSERT ON public.t DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION public.follow()"
        )

    @property
    def stored(self) -> list[int]:
        return [a for (a,) in self.admin.rows("SELECT a FROM public.t ORDER BY a")]

    async def test_its_value_comes_after_the_commit(self) -> None:
        connection = await self.linked()

        async def work(transaction: TransactionExecutor) -> tuple[str, list[int]]:
            await transaction.execute("INSERT INTO public.t VALUES (1)")
            answer = await transaction.finish(ADD, (2,))
            return answer, self.stored

        self.assertEqual(await connection.transaction(work), ("%2é", [1, 2]))
        # Also where it is the only statement.
        answer = await connection.transaction(lambda each: each.finish(ADD, (3,)))
        self.assertEqual((answer, self.stored), ("%3é", [1, 2, 3]))

    async def test_what_is_refused_is_rolled_back(self) -> None:
        connection = await self.linked()

        async def work(transaction: TransactionExecutor) -> None:
            await transaction.execute("INSERT INTO public.t VALUES (1)")
            await transaction.finish(ADD, (-1,))

        with self.assertRaises(StatementFailed):
            await connection.transaction(work)
        await connection.transaction(lambda each: each.finish(ADD, (2,)))
        self.assertEqual(self.stored, [2])

    async def test_a_commit_that_fails_is_known_to_have_failed(self) -> None:
        self.in_the_commit("SET LOCAL lock_timeout = '20ms'; INSERT INTO public.other VALUES (1)")
        connection = await self.linked()
        with self.admin.transaction():
            self.admin.run("LOCK TABLE public.other")
            with self.assertRaises(Busy):
                await connection.transaction(lambda each: each.finish(ADD, (1,)))
        self.assertEqual(self.stored, [])
        await connection.transaction(lambda each: each.finish(ADD, (2,)))
        self.assertEqual(self.stored, [2])

    async def test_a_connection_that_is_lost_leaves_the_outcome_unknown(self) -> None:
        self.in_the_commit("PERFORM pg_sleep(20)")
        connection = await self.linked()
        running = begin(connection.transaction(lambda each: each.finish(ADD, (1,))))
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await until(lambda: self.admin.value(asleep) == 1, "it commits")
        for pid in self.backends("posd test"):
            self.admin.run("SELECT pg_terminate_backend(%s)", pid)
        with self.assertRaises(OutcomeUnknown):
            await running

    async def test_a_failure_afterwards_leaves_the_outcome_unknown_to_the_caller(self) -> None:
        connection = await self.linked()

        async def work(transaction: TransactionExecutor) -> None:
            await transaction.finish(ADD, (1,))
            raise ZeroDivisionError

        with self.assertRaises(OutcomeUnknown):
            await connection.transaction(work)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.stored, [1])

    async def test_nothing_is_committed_after_a_statement_that_failed(self) -> None:
        connection = await self.linked()

        async def work(transaction: TransactionExecutor) -> None:
            await transaction.execute("INSERT INTO public.t VALUES (1)")
            with self.assertRaises(StatementFailed):
                await transaction.execute("INSERT INTO public.t VALUES (-1)")
            await transaction.finish(ADD, (2,))

        with self.assertRaises(StatementFailed):
            await connection.transaction(work)
        self.assertEqual(self.stored, [])
