"""A connection that heals: nothing done twice, nothing done half, nobody left waiting."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from psycopg2.extensions import make_dsn, parse_dsn
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from posd.database import bound
from posd.database import reconnecting as module
from posd.database.connection import ConnectionLost
from posd.database.reconnect_pauses import ReconnectPauses
from posd.database.reconnecting import Executor, ReconnectingConnection
from posd.errors import Busy, OutcomeUnknown, StatementFailed, Unavailable
from posd.testing.postgres import test_server
from tests.database_case import REACTOR, DatabaseCase, begin, until

INSERT = "INSERT INTO public.t VALUES (%s)"


class LinkCase(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        self.changes: list[bool] = []

    def new(
        self,
        dsn: str | None = None,
        *,
        role: str | None = None,
        statement_timeout: float = 5.0,
        prepare: Callable[[Executor], Awaitable[None]] | None = None,
        notified: Callable[[str, str], None] | None = None,
        retries: ReconnectPauses | None = None,
    ) -> ReconnectingConnection:
        return ReconnectingConnection(
            REACTOR,
            dsn or self.dsn,
            name="posd test",
            statement_timeout=statement_timeout,
            role=role,
            prepare=prepare,
            changed=lambda connection: self.changes.append(connection.up),
            notified=notified,
            retries=retries,
        )

    async def pid(self, connection: ReconnectingConnection) -> int:
        ((pid,),) = await connection.query("SELECT pg_backend_pid()")
        return int(pid)

    def terminate(self, name: str = "posd test") -> None:
        for pid in self.backends(name):
            self.admin.run("SELECT pg_terminate_backend(%s)", pid)

    async def until_healed(self, connection: ReconnectingConnection, times: int = 1) -> None:
        await until(lambda: self.changes.count(False) >= times and connection.up, "the link healed")


class StatementTests(LinkCase):
    async def test_a_session_begins_with_posds_settings(self) -> None:
        self.admin.run("CREATE ROLE posd_test_link NOLOGIN")
        self.addCleanup(self.admin.run, "DROP ROLE posd_test_link")
        connection = await self.up(self.new(role="posd_test_link", statement_timeout=1.5))
        for setting, value in (
            ("application_name", "posd test"),
            ("role", "posd_test_link"),
            ("statement_timeout", "1500ms"),
            ("lock_timeout", "2s"),
            ("idle_in_transaction_session_timeout", "5s"),
            ("TimeZone", "UTC"),
            ("search_path", "pg_catalog, pg_temp"),
        ):
            with self.subTest(setting):
                self.assertEqual(
                    await connection.query("SELECT current_setting(%s)", (setting,)), [(value,)]
                )
        await connection.stopService()

    async def test_statements_wait_for_each_other_in_their_order(self) -> None:
        connection = await self.up(self.new())
        done: list[str] = []
        slow = begin(connection.query("SELECT pg_sleep(0.05)")).addCallback(
            lambda _: done.append("slow")
        )
        quick = begin(connection.execute("SELECT 1")).addCallback(lambda _: done.append("quick"))
        await gatherResults([slow, quick])
        self.assertEqual(done, ["slow", "quick"])

    async def test_whoever_still_waits_may_give_up_and_harms_nobody(self) -> None:
        connection = await self.up(self.new())
        slow = begin(connection.query("SELECT pg_sleep(0.05), 7"))
        waiting = begin(connection.query("SELECT 1"))
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting
        self.assertEqual([row[1] for row in await slow], [7])
        self.assertEqual(self.changes, [True])

    async def test_a_statement_that_is_given_up_costs_the_connection_but_nothing_else(self) -> None:
        connection = await self.up(self.new())
        before = await self.pid(connection)
        running = begin(connection.query("SELECT pg_sleep(20)"))
        waiting = begin(connection.query("SELECT 1"))
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        with self.assertRaises(Unavailable):
            await waiting
        await self.until_healed(connection)
        self.assertNotEqual(await self.pid(connection), before)

    async def test_a_statement_over_its_time_is_busy_and_the_connection_stays(self) -> None:
        connection = await self.up(self.new(statement_timeout=0.05))
        before = await self.pid(connection)
        with self.assertRaises(Busy):
            await connection.query("SELECT pg_sleep(20)")
        self.assertEqual(await self.pid(connection), before)

    async def test_a_lock_that_is_not_had_in_time_is_busy_and_the_connection_stays(self) -> None:
        self.admin.run("CREATE TABLE public.t (a integer)")
        connection = await self.up(self.new(prepare=hasty))
        before = await self.pid(connection)
        with self.admin.transaction():
            self.admin.run("LOCK TABLE public.t")
            with self.assertRaises(Busy):
                await connection.execute("INSERT INTO public.t VALUES (1)")
        await connection.execute("INSERT INTO public.t VALUES (2)")
        self.assertEqual(await self.pid(connection), before)


class CrowdTests(LinkCase):
    """Two thousand wait for one link."""

    crowd = 2000

    async def test_everybody_has_a_turn_in_order(self) -> None:
        connection = await self.up(self.new())
        served: list[int] = []

        async def one(number: int) -> None:
            await connection.query("SELECT 1")
            served.append(number)

        await gatherResults([begin(one(number)) for number in range(self.crowd)])
        self.assertEqual(served, list(range(self.crowd)))

    async def test_turns_that_are_over_at_once_do_not_run_inside_each_other(self) -> None:
        connection = await self.up(self.new())
        release: Deferred[None] = Deferred()
        depths: list[int] = []

        async def first(session: Executor) -> None:
            await release

        async def at_once(session: Executor) -> None:
            depths.append(depth())

        holding = begin(connection.transaction(first))
        waiting = [begin(connection.transaction(at_once)) for _ in range(self.crowd)]
        release.callback(None)
        await gatherResults([holding, *waiting])
        self.assertEqual(len(depths), self.crowd)
        self.assertEqual(len(set(depths)), 1)
        self.assertEqual(await connection.query("SELECT 1"), [(1,)])

    async def test_a_link_that_goes_down_fails_them_all_flatly(self) -> None:
        connection = await self.up(self.new())
        running = begin(connection.query("SELECT pg_sleep(20)"))
        depths: list[int] = []

        async def one() -> None:
            try:
                await connection.query("SELECT 1")
            except Unavailable:
                depths.append(depth())

        waiting = gatherResults([begin(one()) for _ in range(self.crowd)])
        self.terminate()
        with self.assertRaises(ConnectionLost):
            await running
        await waiting
        self.assertEqual((len(depths), len(set(depths))), (self.crowd, 1))
        await self.until_healed(connection)
        self.assertEqual(await connection.query("SELECT 1"), [(1,)])

    async def test_they_need_not_wait_for_who_has_the_turn_and_does_not_end(self) -> None:
        connection = await self.up(self.new())
        release: Deferred[None] = Deferred()

        async def first(session: Executor) -> None:
            await release

        holding = begin(connection.transaction(first))
        waiting = begin(connection.query("SELECT 1"))
        self.terminate()
        with self.assertRaises(Unavailable):
            await waiting
        release.callback(None)
        await holding

    async def test_more_than_five_thousand_are_told_that_it_is_busy(self) -> None:
        connection = await self.up(self.new())
        release: Deferred[None] = Deferred()

        async def first(session: Executor) -> None:
            await release

        holding = begin(connection.transaction(first))
        waiting = [begin(connection.execute("SELECT 1")) for _ in range(5000)]
        with self.assertRaises(Busy):
            await connection.query("SELECT 1")
        for each in waiting:
            each.addErrback(lambda failure: failure.trap(CancelledError, Unavailable))
            each.cancel()
        release.callback(None)
        await holding


class TransactionTests(LinkCase):
    def setUp(self) -> None:
        super().setUp()
        self.admin.run("CREATE TABLE public.t (a integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    @property
    def stored(self) -> list[int]:
        return [a for (a,) in self.admin.rows("SELECT a FROM public.t ORDER BY a")]

    async def test_what_a_transaction_did_is_there_when_it_returns(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> str:
            await insert(session, 1)
            await insert(session, 2)
            self.assertEqual(self.stored, [])
            return "done"

        self.assertEqual(await connection.transaction(work), "done")
        self.assertEqual(self.stored, [1, 2])

    async def test_others_wait_until_a_transaction_is_over(self) -> None:
        connection = await self.up(self.new())
        release: Deferred[None] = Deferred()

        async def work(session: Executor) -> None:
            await insert(session, 1)
            await release
            await insert(session, 2)

        transaction = begin(connection.transaction(work))
        other = begin(connection.query("SELECT count(*) FROM public.t"))
        await until(lambda: self.in_transaction(), "the transaction is open")
        release.callback(None)
        await transaction
        self.assertEqual(await other, [(2,)])

    async def test_what_raises_is_rolled_back_and_raised(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> None:
            await insert(session, 1)
            raise LookupError("nobody")

        with self.assertRaises(LookupError):
            await connection.transaction(work)
        await insert(connection, 2)
        self.assertEqual(self.stored, [2])
        self.assertEqual(self.changes, [True])

    async def test_a_transaction_without_statements_says_nothing_to_the_server(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> int:
            return 5

        self.terminate()
        self.assertEqual(await connection.transaction(work), 5)

    async def test_the_first_statement_may_fail_as_any_other(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> None:
            await session.execute("SELECT 1/0")

        with self.assertRaises(StatementFailed) as caught:
            await connection.transaction(work)
        self.assertEqual(caught.exception.sqlstate, "22012")
        await insert(connection, 1)
        self.assertEqual(self.stored, [1])

    async def test_work_that_goes_on_after_a_failure_does_not_seem_committed(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> None:
            await insert(session, 1)
            try:
                await session.execute("SELECT 1/0")
            except StatementFailed:
                return

        with self.assertRaises(StatementFailed):
            await connection.transaction(work)
        self.assertEqual(self.stored, [])
        await insert(connection, 2)
        self.assertEqual(self.stored, [2])

    async def test_a_commit_that_is_refused_is_a_failed_statement(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> None:
            await insert(session, 1)
            await insert(session, 1)

        with self.assertRaises(StatementFailed) as caught:
            await connection.transaction(work)
        self.assertEqual(caught.exception.sqlstate, "23505")
        await insert(connection, 2)
        self.assertEqual(self.stored, [2])

    async def test_the_loser_of_a_deadlock_is_busy_and_keeps_its_connection(self) -> None:
        one, other = await self.up(self.new(prepare=hasty)), await self.up(self.new(prepare=hasty))
        self.admin.run("INSERT INTO public.t VALUES (1), (2)")
        met = [Deferred[None](), Deferred[None]()]

        def updating(first: int, second: int, mine: int) -> Callable[[Executor], Awaitable[None]]:
            async def work(session: Executor) -> None:
                await session.execute("UPDATE public.t SET a = a WHERE a = %s", (first,))
                met[mine].callback(None)
                await met[1 - mine]
                await session.execute("UPDATE public.t SET a = a WHERE a = %s", (second,))

            return work

        pids = await self.pid(one), await self.pid(other)
        first = begin(one.transaction(updating(1, 2, 0)))
        second = begin(other.transaction(updating(2, 1, 1)))
        failed = [await outcome(first), await outcome(second)]
        self.assertEqual(sorted(map(type, filter(None, failed)), key=str), [Busy])
        self.assertEqual((await self.pid(one), await self.pid(other)), pids)

    async def test_a_transaction_does_not_go_on_in_the_next_connection(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> None:
            await insert(session, 1)
            self.terminate()
            await self.until_healed(connection)
            await insert(session, 2)

        with self.assertRaises(ConnectionLost):
            await connection.transaction(work)
        self.assertEqual(self.stored, [])
        await insert(connection, 3)
        self.assertEqual(self.stored, [3])

    async def test_nor_is_it_committed_or_rolled_back_there(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> None:
            await insert(session, 1)
            self.terminate()
            await self.until_healed(connection)

        with self.assertRaises(ConnectionLost) as caught:
            await connection.transaction(work)
        self.assertNotIsInstance(caught.exception, OutcomeUnknown)
        self.assertEqual(self.changes, [True, False, True])
        self.assertEqual(self.stored, [])

    def doze_in_commits(self) -> None:
        """From now on a COMMIT takes its time."""
        self.admin.run(
            "CREATE FUNCTION public.doze() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(20); RETURN NULL; END'",
        )
        self.admin.run(
            "CREATE CONSTRAINT TRIGGER doze AFTER INSERT ON public.t DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION public.doze()"
        )

    async def test_every_statement_of_a_transaction_has_what_its_deadline_leaves(self) -> None:
        connection = await self.up(self.new(statement_timeout=20.0))
        asked = "SELECT extract(epoch FROM current_setting('statement_timeout')::interval)"

        async def work(session: Executor) -> list[float]:
            first = await session.query(asked)
            await session.query("SELECT pg_sleep(0.02)")
            return [float(rows[0][0]) for rows in (first, await session.query(asked))]

        first, second = await connection.transaction(work, deadline=REACTOR.seconds() + 15)
        self.assertTrue(0 < second < first <= 15, (first, second))
        (long,) = await connection.transaction(
            lambda s: s.query(asked), deadline=REACTOR.seconds() + 90
        )
        ((usual,),) = await connection.query(asked)
        self.assertEqual([float(long[0]), float(usual)], [20, 20])

    async def test_a_statement_that_a_deadline_finds_is_ended_and_all_rolled_back(self) -> None:
        connection = await self.up(self.new())
        before = await self.pid(connection)

        async def work(session: Executor) -> None:
            await insert(session, 1)
            await session.query("SELECT pg_sleep(20)")

        with self.assertRaises(Busy):
            await connection.transaction(work, deadline=REACTOR.seconds() + 0.2)
        self.assertEqual((self.stored, await self.pid(connection)), ([], before))

    async def test_nothing_is_committed_after_the_deadline(self) -> None:
        connection = await self.up(self.new())
        before = await self.pid(connection)
        deadline = REACTOR.seconds() + 0.2

        async def work(session: Executor) -> None:
            await insert(session, 1)
            await until(lambda: REACTOR.seconds() >= deadline, "the deadline is past")

        with self.assertRaises(Busy):
            await connection.transaction(work, deadline=deadline)
        self.assertEqual((self.stored, await self.pid(connection)), ([], before))

    async def test_nor_is_anything_begun(self) -> None:
        connection = await self.up(self.new())
        with self.assertRaises(Busy):
            await connection.transaction(
                lambda session: insert(session, 1), deadline=REACTOR.seconds() - 1
            )
        await insert(connection, 2)
        self.assertEqual(self.stored, [2])

    async def test_a_commit_that_goes_on_after_the_deadline_is_not_waited_for(self) -> None:
        self.patch(bound, "_LAST_GRACE_SECONDS", 0.05)
        self.doze_in_commits()
        connection = await self.up(self.new())
        with self.assertRaises(OutcomeUnknown):
            await connection.transaction(
                lambda session: insert(session, 1), deadline=REACTOR.seconds() + 0.5
            )
        self.terminate()

    async def test_a_statement_with_a_deadline_is_a_transaction_in_one_round_trip(self) -> None:
        connection = await self.up(self.new())
        await connection.query(f"{INSERT} RETURNING a", (1,), deadline=REACTOR.seconds() + 5)
        self.assertEqual(self.stored, [1])
        with self.assertRaises(StatementFailed):
            await connection.query(f"{INSERT}; SELECT 1 / 0", (2,), deadline=REACTOR.seconds() + 5)
        for late in (0.2, -1.0):
            with self.assertRaises(Busy):
                sleepy = f"{INSERT}; SELECT pg_sleep(20)"
                await connection.query(sleepy, (3,), deadline=REACTOR.seconds() + late)
        self.assertEqual(self.stored, [1])
        ((limit,),) = await connection.query("SELECT current_setting('statement_timeout')")
        self.assertEqual(limit, "5s")

    async def test_a_standby_has_surely_not_made_a_statement_with_a_deadline(self) -> None:
        connection = await self.up(self.new())
        await connection.execute("SET default_transaction_read_only = on")
        with self.assertRaises(ConnectionLost):
            await connection.query(f"{INSERT} RETURNING a", (1,), deadline=REACTOR.seconds() + 5)

    async def test_its_outcome_is_unknown_if_the_connection_is_lost(self) -> None:
        self.patch(bound, "_LAST_GRACE_SECONDS", 0.05)
        self.doze_in_commits()
        connection = await self.up(self.new())
        with self.assertRaises(OutcomeUnknown):
            await connection.query(f"{INSERT} RETURNING a", (1,), deadline=REACTOR.seconds() + 0.5)
        self.terminate()

    async def test_a_connection_lost_in_a_commit_leaves_the_outcome_unknown(self) -> None:
        self.doze_in_commits()
        connection = await self.up(self.new())
        running = begin(connection.transaction(lambda session: insert(session, 1)))
        await until(lambda: "COMMIT" in self.statements(), "it commits")
        self.terminate()
        with self.assertRaises(OutcomeUnknown):
            await running
        await self.until_healed(connection)

    async def test_a_commit_that_times_out_is_busy_since_its_outcome_is_known(self) -> None:
        self.admin.run(
            "CREATE TABLE public.other (a integer);"
            "CREATE FUNCTION public.follow() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN INSERT INTO public.other VALUES (NEW.a); RETURN NULL; END';"
            "CREATE CONSTRAINT TRIGGER follow AFTER INSERT ON public.t DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION public.follow()"
        )
        connection = await self.up(self.new(prepare=hasty))
        with self.admin.transaction():
            self.admin.run("LOCK TABLE public.other")
            with self.assertRaises(Busy):
                await connection.transaction(lambda session: insert(session, 1))
        await connection.transaction(lambda session: insert(session, 2))
        self.assertEqual(self.stored, [2])

    async def test_a_transaction_that_is_given_up_is_rolled_back(self) -> None:
        connection = await self.up(self.new())

        async def work(session: Executor) -> None:
            await insert(session, 1)
            await session.query("SELECT pg_sleep(20)")

        running = begin(connection.transaction(work))
        await until(lambda: self.in_transaction(), "the transaction is open")
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        await self.until_healed(connection)
        self.terminate()
        self.assertEqual(self.stored, [])

    def statements(self) -> list[str]:
        rows = self.admin.rows(
            "SELECT query FROM pg_stat_activity"
            " WHERE application_name = 'posd test' AND state = 'active'"
        )
        return [query for (query,) in rows]

    def in_transaction(self) -> bool:
        return bool(
            self.admin.value(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name = 'posd test' AND xact_start IS NOT NULL"
                " AND (state = 'idle in transaction' OR query LIKE '%%pg_sleep%%')"
            )
        )


class HealingTests(LinkCase):
    async def test_an_idle_link_heals_when_its_backend_is_terminated(self) -> None:
        connection = await self.up(self.new())
        self.terminate()
        await self.until_healed(connection)
        self.assertEqual(await connection.query("SELECT 1"), [(1,)])
        self.assertEqual(self.changes, [True, False, True])

    async def test_a_busy_link_fails_its_statement_and_heals(self) -> None:
        connection = await self.up(self.new())
        running = begin(connection.query("SELECT pg_sleep(20)"))
        waiting = begin(connection.query("SELECT 1"))
        self.terminate()
        with self.assertRaises(ConnectionLost):
            await running
        with self.assertRaises(Unavailable):
            await waiting
        await self.until_healed(connection)

    async def test_it_heals_again_and_again(self) -> None:
        connection = await self.up(self.new())
        for times in range(1, 4):
            self.terminate()
            await self.until_healed(connection, times)
        self.assertEqual(await connection.query("SELECT 1"), [(1,)])

    async def test_while_it_is_down_statements_fail_at_once(self) -> None:
        connection = self.new("host=/nowhere dbname=none")
        connection.startService()
        self.addCleanup(connection.stopService)
        with self.assertRaises(Unavailable):
            await connection.query("SELECT 1")
        with self.assertRaises(Unavailable):
            await connection.transaction(lambda session: insert(session, 1))

    async def test_why_it_is_down_is_told_in_libpqs_words_until_it_is_up(self) -> None:
        connection = self.new("host=/nowhere dbname=none")
        connection.startService()
        self.addCleanup(connection.stopService)
        await until(lambda: connection.trouble is not None, "there is trouble")
        self.assertIn("No such file or directory", connection.trouble or "")
        self.assertIsNone(connection.refusal)
        self.assertIsNone((await self.up(self.new())).trouble)

    async def test_it_counts_its_failures_and_tells_when_it_has_connected(self) -> None:
        noted: list[object] = []

        class AtOnce(ReconnectPauses):
            def pause(self, failures: int) -> Deferred[None]:
                noted.append(failures)
                return deferLater(REACTOR, 0)

            def succeeded(self) -> None:
                noted.append("succeeded")

        async def prepare(session: Executor) -> None:
            if len(noted) < 3:
                raise StatementFailed("not yet", "0A000")

        await self.up(self.new(prepare=prepare, retries=AtOnce(REACTOR)))
        self.assertEqual(noted, [1, 2, 3, "succeeded"])
        self.terminate()
        await until(lambda: "succeeded" in noted[4:], "the link healed")
        self.assertEqual(noted[4:], [1, "succeeded"])

    async def test_a_server_that_does_not_answer_is_given_up(self) -> None:
        self.patch(module, "_CONNECT_SECONDS", 0.05)
        port = REACTOR.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        connection = self.new(f"host=127.0.0.1 port={port.getHost().port} dbname=none")
        connection.startService()
        await until(lambda: connection.trouble is not None, "there is trouble")
        self.assertEqual(connection.trouble, "no answer in time")
        await connection.stopService()

    async def test_after_a_host_that_does_not_answer_the_next_one_is_asked(self) -> None:
        self.patch(module, "_CONNECT_SECONDS", 0.5)
        port = REACTOR.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        there = parse_dsn(self.dsn)
        hosts = f"127.0.0.1,{there['host']}"
        ports = f"{port.getHost().port},{there['port']}"
        connection = await self.up(self.new(make_dsn(self.dsn, host=hosts, port=ports)))
        self.assertEqual(await connection.query("SELECT 1"), [(1,)])
        await connection.stopService()

    async def test_a_statement_that_never_ends_ends_the_connection(self) -> None:
        """As when the network is gone, and with it the server's word that the time is over."""
        connection = await self.up(self.new(statement_timeout=20.0))
        self.patch(module, "_GRACE_SECONDS", -19.9)
        with self.assertRaises(ConnectionLost):
            await connection.query("SELECT pg_sleep(20)")
        await self.until_healed(connection)

    async def test_nobody_uses_a_connection_that_is_not_prepared(self) -> None:
        prepared: list[int] = []

        async def prepare(session: Executor) -> None:
            ((pid,),) = await session.query("SELECT pg_backend_pid()")
            self.assertFalse(connection.up)
            prepared.append(pid)
            if len(prepared) == 1:
                raise LookupError("not this one")

        connection = self.new(prepare=prepare)
        await self.up(connection)
        self.assertEqual([await self.pid(connection)], prepared[1:])
        self.terminate()
        await self.until_healed(connection)
        self.assertEqual([await self.pid(connection)], prepared[2:])

    async def test_a_role_that_is_not_there_is_a_refusal_until_it_is(self) -> None:
        connection = self.new(role="posd_test_nobody")
        connection.startService()
        self.addCleanup(connection.stopService)
        await until(lambda: bool(self.changes), "the refusal was told")
        assert connection.refusal is not None
        self.assertIn('"posd_test_nobody" does not exist', str(connection.refusal))
        self.assertEqual(connection.trouble, str(connection.refusal))
        self.admin.run("CREATE ROLE posd_test_nobody NOLOGIN")
        self.addCleanup(self.run_elsewhere, "DROP ROLE posd_test_nobody")
        await until(lambda: connection.up, "the link is up")
        self.assertIsNone(connection.refusal)
        await connection.stopService()

    async def test_what_is_listened_for_is_heard_after_healing_too(self) -> None:
        heard: list[tuple[str, str]] = []
        connection = await self.up(
            self.new(
                prepare=lambda session: session.execute("LISTEN news"),
                notified=lambda channel, payload: heard.append((channel, payload)),
            )
        )
        self.admin.run("NOTIFY news, 'before'")
        await until(lambda: len(heard) == 1, "it was heard")
        self.terminate()
        await self.until_healed(connection)
        self.admin.run("NOTIFY news, 'after'")
        await until(lambda: len(heard) == 2, "it was heard")
        self.assertEqual(heard, [("news", "before"), ("news", "after")])


class StoppingTests(LinkCase):
    async def test_a_link_that_was_stopped_fails_at_once_and_makes_no_connection(self) -> None:
        connection = await self.up(self.new())
        await connection.stopService()
        with self.assertRaises(Unavailable):
            await connection.query("SELECT 1")
        self.assertEqual(self.changes, [True, False])
        await until(lambda: not self.backends("posd test"), "the backend is gone")

    async def test_what_runs_when_it_stops_fails(self) -> None:
        connection = await self.up(self.new())
        running = begin(connection.query("SELECT pg_sleep(20)"))
        await connection.stopService()
        with self.assertRaises(ConnectionLost):
            await running

    async def test_it_can_be_stopped_while_it_connects(self) -> None:
        connection = self.new()
        connection.startService()
        await connection.stopService()
        self.assertEqual(self.changes, [])

    async def test_it_can_be_stopped_while_it_waits_for_the_next_try(self) -> None:
        connection = self.new("host=/nowhere dbname=none")
        connection.startService()
        await until(lambda: connection.trouble is not None, "there is trouble")
        await connection.stopService()
        self.assertFalse(connection.up)

    async def test_it_can_be_stopped_while_it_is_prepared(self) -> None:
        async def prepare(session: Executor) -> None:
            stopped.append(connection.stopService())

        stopped: list[Any] = []
        connection = self.new(prepare=prepare)
        connection.startService()
        await until(lambda: bool(stopped), "it was being prepared")
        await stopped[0]
        self.assertEqual(self.changes, [])


class RestartTests(LinkCase):
    """With a server of the test's own."""

    def setUp(self) -> None:
        super().setUp()
        self.server = test_server().another()
        self.addCleanup(self.server.stop)

    async def test_an_idle_link_heals_when_the_server_restarts(self) -> None:
        connection = await self.up(self.new(self.server.dsn()))
        self.server.restart()
        await self.until_healed(connection)
        self.assertEqual(await connection.query("SELECT 1"), [(1,)])

    async def test_a_busy_link_heals_when_the_server_crashes(self) -> None:
        connection = await self.up(self.new(self.server.dsn()))
        running = begin(connection.query("SELECT pg_sleep(20)"))
        self.server.restart("immediate")
        with self.assertRaises(ConnectionLost):
            await running
        await self.until_healed(connection)

    async def test_it_waits_for_a_server_that_comes_later(self) -> None:
        self.server.kill()
        connection = self.new(self.server.dsn())
        connection.startService()
        self.addCleanup(connection.stopService)
        await until(lambda: connection.trouble is not None, "there is trouble")
        self.server.restart()
        await until(lambda: connection.up, "the link is up")


async def hasty(session: Executor) -> None:
    await session.execute("SET lock_timeout = '50ms'; SET deadlock_timeout = '10ms'")


async def insert(session: Executor, value: int) -> None:
    await session.execute(INSERT, (value,))


async def outcome(running: Deferred[None]) -> Exception | None:
    try:
        await running
    except Exception as error:
        return error
    return None


def depth() -> int:
    """How many calls the caller is inside of."""
    found, frame = 0, sys._getframe()
    while frame.f_back is not None:
        found, frame = found + 1, frame.f_back
    return found
