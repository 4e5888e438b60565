"""The pool: who gets a link, who waits how long, and what happens when the server goes away."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults

from posd.database import pool as module
from posd.database.pool import Pool
from posd.database.reconnecting import Executor
from posd.errors import Busy, StatementFailed, Unavailable
from posd.testing.postgres import test_server
from tests.database_case import REACTOR, DatabaseCase, begin, until

NAME = "posd pool"


class PoolCase(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        self.admin.run("CREATE TABLE public.gate ()")

    def new(self, size: int = 2, *, dsn: str | None = None, role: str | None = None) -> Pool:
        database = Pool(
            REACTOR, dsn or self.dsn, size=size, statement_timeout=20.0, role=role, name=NAME
        )
        self.addCleanup(database.stopService)
        return database

    async def started(self, size: int = 2, *, dsn: str | None = None) -> Pool:
        """A pool of which every link is up."""
        database = self.new(size, dsn=dsn)
        database.startService()
        await database.when_up()
        await until(
            lambda: all(connection.up for connection in database._connections), "all links are up"
        )
        return database

    def close_gate(self) -> None:
        """From now on whoever comes to the gate waits there."""
        self.admin.run("BEGIN; LOCK TABLE public.gate")

    def open_gate(self) -> None:
        self.admin.run("COMMIT")

    def at_gate(self, database: Pool, tenant: int | None = None) -> Deferred[list[Any]]:
        """A statement that needs the gate to be open."""
        return begin(database.query("SELECT count(*) FROM public.gate", tenant=tenant))

    async def until_waiting(self, count: int) -> None:
        """Wait until so many are at the gate."""
        await until(lambda: self.waiting() == count, f"{count} wait at the gate")

    def waiting(self) -> int:
        return int(self.admin.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    def terminate(self) -> None:
        for pid in self.backends(NAME):
            self.admin.run("SELECT pg_terminate_backend(%s)", pid)


class CheckoutTests(PoolCase):
    async def test_as_many_statements_run_at_once_as_there_are_links(self) -> None:
        database = await self.started(3)
        self.close_gate()
        running = [self.at_gate(database) for _ in range(5)]
        await self.until_waiting(3)
        self.open_gate()
        self.assertEqual(await gatherResults(running), [[(0,)]] * 5)

    async def test_those_who_wait_are_served_in_their_order(self) -> None:
        database = await self.started(1)
        served: list[int] = []

        async def be_served(number: int) -> None:
            await database.query("SELECT 1")
            served.append(number)

        await gatherResults([begin(be_served(number)) for number in range(4)])
        self.assertEqual(served, [0, 1, 2, 3])

    async def test_who_has_waited_for_too_long_is_told_that_it_is_busy(self) -> None:
        database = await self.started(1)
        self.patch(module, "_CHECKOUT_SECONDS", 0.05)
        self.close_gate()
        running = self.at_gate(database)
        with self.assertRaises(Busy):
            await self.at_gate(database)
        self.open_gate()
        self.assertEqual(await running, [(0,)])
        self.assertEqual(await database.query("SELECT 1"), [(1,)])

    async def test_the_wait_counts_against_the_deadline_of_a_transaction(self) -> None:
        database = await self.started(1)
        self.close_gate()
        running = self.at_gate(database)
        for tenant in (None, 1):
            with self.assertRaises(Busy):
                await database.transaction(
                    lambda session: session.query("SELECT 1"),
                    tenant=tenant,
                    deadline=REACTOR.seconds() + 0.05,
                )
        self.assertEqual(self.waiting(), 1)
        self.open_gate()
        await running

    async def test_who_gives_up_waiting_is_not_served(self) -> None:
        database = await self.started(1)
        self.close_gate()
        running, waiting = self.at_gate(database), self.at_gate(database)
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting
        self.open_gate()
        await running
        self.assertEqual(await database.query("SELECT 1"), [(1,)])

    async def test_a_link_whose_statement_failed_is_as_good_as_any(self) -> None:
        database = await self.started(1)
        for _ in range(3):
            with self.assertRaises(StatementFailed):
                await database.query("SELECT 1/0")
        self.assertEqual(await database.query("SELECT 1"), [(1,)])

    async def test_a_transaction_has_one_link_for_itself(self) -> None:
        database = await self.started(2)

        async def work(session: Executor) -> set[int]:
            pids = {(await session.query("SELECT pg_backend_pid()"))[0][0] for _ in range(3)}
            ((other,),) = await database.query("SELECT pg_backend_pid()")
            self.assertNotIn(other, pids)
            return pids

        self.assertEqual(len(await database.transaction(work)), 1)

    async def test_execute_wants_no_rows(self) -> None:
        database = await self.started(1)
        await database.execute("CREATE TABLE public.t (a integer)")
        await database.execute("INSERT INTO public.t VALUES (%s)", (5,), tenant=1)
        self.assertEqual(await database.query("SELECT a FROM public.t"), [(5,)])


class ShareTests(PoolCase):
    async def test_a_tenant_has_two_links_and_leaves_the_others_theirs(self) -> None:
        database = await self.started(3)
        self.close_gate()
        running = [self.at_gate(database, tenant=1) for _ in range(4)]
        await self.until_waiting(2)
        self.assertEqual(await database.query("SELECT 1", tenant=2), [(1,)])
        self.assertEqual(self.waiting(), 2)
        self.open_gate()
        await gatherResults(running)

    async def test_a_tenant_that_waits_for_itself_is_told_in_time_too(self) -> None:
        database = await self.started(3)
        self.patch(module, "_CHECKOUT_SECONDS", 0.05)
        self.close_gate()
        running = [self.at_gate(database, tenant=1) for _ in range(2)]
        await self.until_waiting(2)
        with self.assertRaises(Busy):
            await self.at_gate(database, tenant=1)
        self.open_gate()
        await gatherResults(running)
        self.assertEqual(await database.query("SELECT 1", tenant=1), [(1,)])

    async def test_nothing_is_kept_of_a_tenant_that_asks_nothing(self) -> None:
        database = await self.started(2)
        await gatherResults([begin(database.query("SELECT 1", tenant=t)) for t in (1, 1, 1, 2)])
        self.assertEqual((database._checkout._queues, database._checkout._lent_by_tenant), ({}, {}))

    async def test_a_share_is_given_back_by_what_fails(self) -> None:
        database = await self.started(3)
        for _ in range(4):
            with self.assertRaises(StatementFailed):
                await database.query("SELECT 1/0", tenant=1)
        self.assertEqual(await database.query("SELECT 1", tenant=1), [(1,)])


class OutageTests(PoolCase):
    async def test_without_a_server_every_call_fails_at_once(self) -> None:
        database = self.new(dsn="host=/nowhere dbname=none")
        database.startService()
        for tenant in (None, 1):
            with self.assertRaises(Unavailable):
                await database.query("SELECT 1", tenant=tenant)
        await until(lambda: bool(database.trouble), "there is trouble")
        self.assertFalse(database.up)
        self.assertIn("No such file or directory", database.trouble or "")
        await database.stopService()

    async def test_before_anything_is_known_there_is_no_trouble_to_tell(self) -> None:
        self.assertEqual(self.new().trouble, "")

    async def test_a_pool_that_is_up_has_no_trouble(self) -> None:
        self.assertIsNone((await self.started()).trouble)

    async def test_a_dead_link_is_lent_to_nobody_and_comes_back(self) -> None:
        database = await self.started(2)
        ((pid,),) = await database.query("SELECT pg_backend_pid()")
        self.admin.run("SELECT pg_terminate_backend(%s)", pid)
        await until(
            lambda: sum(connection.up for connection in database._connections) == 1,
            "one link is down",
        )
        for _ in range(3):
            await database.query("SELECT 1")
        await until(
            lambda: all(connection.up for connection in database._connections), "both links are up"
        )
        await gatherResults([begin(database.query("SELECT pg_sleep(0.01)")) for _ in range(4)])

    async def test_those_who_wait_are_answered_when_the_server_goes_away(self) -> None:
        database = await self.started(1)
        self.close_gate()
        calls = [self.at_gate(database, tenant) for tenant in (None, 1, 1, 1, 1)]
        await self.until_waiting(1)
        self.terminate()
        for call in calls:
            with self.assertRaises(Unavailable):
                await call
        self.assertFalse(database.up)
        self.open_gate()
        await database.when_up()
        self.assertEqual(await database.query("SELECT 1"), [(1,)])

    async def test_a_link_that_heals_while_it_is_lent_is_lent_to_one_all_the_same(self) -> None:
        database = await self.started(1)

        async def work(session: Executor) -> None:
            await session.query("SELECT 1")
            self.terminate()
            await until(lambda: not database.up, "the link is down")
            await database.when_up()
            waiting.append(begin(database.query("SELECT 1")))
            self.assertNoResult(waiting[0])
            raise LookupError("the end")

        waiting: list[Deferred[list[Any]]] = []
        with self.assertRaises(LookupError):
            await database.transaction(work)
        self.assertEqual(await waiting[0], [(1,)])
        self.assertEqual(database.usage.idle, 1)

    async def test_a_pool_heals_when_its_server_restarts(self) -> None:
        server = test_server().another()
        self.addCleanup(server.stop)
        database = await self.started(3, dsn=server.dsn())
        running = begin(database.query("SELECT pg_sleep(20)"))
        server.restart()
        with self.assertRaises(Unavailable):
            await running
        await until(
            lambda: all(connection.up for connection in database._connections), "all links are up"
        )
        self.assertEqual(
            await gatherResults([begin(database.query("SELECT 1")) for _ in range(6)]), [[(1,)]] * 6
        )


class StartAndStopTests(PoolCase):
    async def test_it_says_when_it_is_up_to_everybody_who_asks(self) -> None:
        database = self.new()
        early, other, given_up = (database.when_up() for _ in range(3))
        self.assertNoResult(early)
        given_up.cancel()
        self.failureResultOf(given_up, CancelledError)
        database.startService()
        await gatherResults([early, other])
        self.successResultOf(database.when_up())

    async def test_a_server_that_will_not_have_us_is_a_failure_to_come_up(self) -> None:
        database = self.new(role="posd_test_unheard_of")
        database.startService()
        with self.assertRaises(StatementFailed) as caught:
            await database.when_up()
        self.assertIn("does not exist", str(caught.exception))

    async def test_a_pool_that_was_stopped_fails_at_once_and_leaves_no_backend(self) -> None:
        database = await self.started(2)
        await database.stopService()
        with self.assertRaises(Unavailable):
            await database.query("SELECT 1")
        await until(lambda: not self.backends(NAME), "the backends are gone")

    async def test_what_runs_and_what_waits_when_it_stops_is_answered(self) -> None:
        database = await self.started(1)
        self.close_gate()
        calls = [self.at_gate(database) for _ in range(3)]
        await database.stopService()
        for call in calls:
            with self.assertRaises(Unavailable):
                await call
        self.open_gate()
