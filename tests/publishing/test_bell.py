"""Tests of the bell: the doorman looks at intervals or on NOTIFY, and no order waits longer than the poll."""

from __future__ import annotations

from contextlib import closing

import psycopg2
from attrs import define, field
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.connection import Parameters, Row
from posd.errors import Unavailable
from posd.monitoring.counters import ASLEEP, AWAKE, DOZING, Counters
from posd.publishing.bell import Bell
from posd.publishing.sequencer import Sequencer
from tests.database_case import REACTOR, until
from tests.schema_case import Client
from tests.scrapes import nonzero_samples
from tests.sequencer_case import SequencerCase


@define(eq=False, slots=False)
class Locks:
    """The doorman's connection: the locks that it can take, and the locks that it holds."""

    asleep: bool = True
    dozing: bool = True
    held: list[str] = field(factory=list)
    away: bool = False

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        if self.away:
            raise Unavailable("away")
        if "unlock" in sql:
            self.held = [] if "all" in sql else [each for each in self.held if each not in sql]
            return [(None,)]
        lock = "7097, 10" if "7097, 10" in sql else "7097, 11"
        got = self.asleep if lock == "7097, 10" else self.dozing
        self.held += [lock] if got else []
        return [(got,)]

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        await self.query(sql, parameters)


class StateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.locks, self.counters = Clock(), Locks(), Counters()
        self.rows = 0
        """How many rows are in the outbox that can be taken."""
        self.asked: list[float] = []
        self.looks: list[float] = []
        self.bell = Bell(
            self.clock,
            self.locks,
            look=self.ask,
            wake=self.look,
            counters=self.counters,
        )

    async def ask(self) -> int:
        """A look at an interval of the doorman."""
        self.asked.append(self.clock.seconds())
        return self.seen()

    def look(self) -> None:
        """A look after a notification, or after the poll has found rows."""
        self.looks.append(self.clock.seconds())
        self.seen()

    def seen(self) -> int:
        """The sequencer looks, and takes the rows."""
        rows, self.rows = self.rows, 0
        self.bell.rows_seen(rows)
        return rows

    def pass_(self, seconds: float) -> None:
        for _ in range(round(seconds * 1000)):
            self.clock.advance(0.001)

    def asleep(self) -> None:
        self.bell.start()
        self.pass_(0.25)
        self.assertEqual((self.bell.state, self.locks.held), (ASLEEP, ["7097, 10"]))
        self.asked.clear()
        self.looks.clear()

    def dozing(self) -> None:
        self.locks.asleep = False
        self.bell.start()
        self.pass_(0.3)
        self.assertEqual((self.bell.state, self.locks.held), (DOZING, ["7097, 11"]))
        self.asked.clear()
        self.looks.clear()

    def count(self, name: str) -> float:
        return nonzero_samples(self.counters.registry).get((f"posd_bell_{name}_total",), 0)

    def test_an_awake_doorman_looks_every_millisecond_and_then_every_four(self) -> None:
        self.bell.start()
        self.pass_(0.02)
        self.assertEqual(len(self.asked), 20)
        self.pass_(0.16)
        self.assertEqual(len(self.asked), 60)

    def test_the_doorman_stays_awake_while_there_are_rows(self) -> None:
        self.bell.start()
        for _ in range(20):
            self.rows = 1
            self.pass_(0.1)
        self.assertEqual((self.bell.state, self.locks.held), (AWAKE, []))

    def test_after_200_ms_without_rows_the_doorman_sleeps_and_looks_once_more(self) -> None:
        self.bell.start()
        self.pass_(0.199)
        self.assertEqual((self.bell.state, self.looks), (AWAKE, []))
        self.pass_(0.01)
        self.assertEqual((self.bell.state, len(self.looks)), (ASLEEP, 1))
        self.asked.clear()
        self.pass_(10)
        self.assertEqual((self.asked, len(self.looks)), ([], 1))

    def test_rows_committed_before_the_lock_was_taken_wake_the_doorman(self) -> None:
        self.bell.start()
        self.pass_(0.198)
        before = self.locks.query

        async def query(sql: str, parameters: Parameters = ()) -> list[Row]:
            self.rows = 1
            return await before(sql, parameters)

        self.patch(self.locks, "query", query)
        self.pass_(0.01)
        self.assertEqual((self.rows, self.bell.state, self.locks.held), (0, AWAKE, []))

    def test_a_notification_wakes_a_sleeping_doorman_if_there_are_rows(self) -> None:
        self.asleep()
        self.bell.ring()
        self.pass_(0.001)
        self.assertEqual((len(self.looks), self.bell.state), (1, ASLEEP))
        self.rows = 1
        self.bell.ring()
        self.pass_(0.003)
        self.assertEqual((self.rows, self.bell.state, self.locks.held), (0, AWAKE, []))
        self.assertEqual(self.count("found_by_poll"), 0)

    def test_while_a_transaction_is_open_the_doorman_dozes_and_looks_for_another_50_ms(
        self,
    ) -> None:
        self.locks.asleep = False
        self.bell.start()
        self.pass_(0.202)
        self.assertEqual(self.bell.state, DOZING)
        self.asked.clear()
        self.pass_(0.05)
        self.assertGreater(len(self.asked), 10)
        self.asked.clear()
        self.pass_(5)
        self.assertEqual(self.asked, [])

    def test_rows_committed_within_these_50_ms_are_seen(self) -> None:
        self.locks.asleep = False
        self.bell.start()
        self.pass_(0.202)
        self.assertEqual(self.bell.state, DOZING)
        self.rows = 1
        self.pass_(0.006)
        self.assertEqual((self.rows, self.bell.state, self.locks.held), (0, AWAKE, []))
        self.assertEqual(self.count("found_by_poll"), 0)

    def test_a_dozing_doorman_looks_after_a_notification(self) -> None:
        self.dozing()
        self.rows = 1
        self.bell.ring()
        self.pass_(0.001)
        self.assertEqual((self.rows, self.bell.state, self.locks.held), (0, AWAKE, []))

    def test_a_dozing_doorman_falls_asleep_when_the_transaction_has_ended(self) -> None:
        self.dozing()
        self.locks.asleep = True
        self.pass_(0.6)
        self.assertEqual((self.bell.state, self.locks.held), (ASLEEP, ["7097, 10"]))
        self.assertEqual(len(self.looks), 1)

    def test_rows_found_by_the_poll_are_counted(self) -> None:
        for begin in (self.dozing, self.asleep):
            with self.subTest(state=begin.__name__):
                self.setUp()
                begin()
                self.bell.rows_found_by_poll()
                self.assertEqual((self.count("found_by_poll"), len(self.looks)), (0, 1))
                self.rows = 3
                self.bell.rows_found_by_poll()
                self.assertEqual((self.rows, self.bell.state), (0, AWAKE))
                self.assertEqual(self.count("found_by_poll"), 3)

    def test_rows_found_while_awake_do_not_count_as_found_by_the_poll(self) -> None:
        self.bell.start()
        self.rows = 1
        self.bell.rows_found_by_poll()
        self.assertEqual((self.rows, self.count("found_by_poll")), (0, 0))

    def test_if_another_session_holds_both_locks_the_doorman_looks_every_four_milliseconds(
        self,
    ) -> None:
        self.locks.asleep = self.locks.dozing = False
        self.bell.start()
        self.pass_(1)
        self.asked.clear()
        self.pass_(1)
        self.assertEqual(self.bell.state, AWAKE)
        self.assertLess(len(self.asked), 260)

    def test_a_flood_of_notifications_causes_20_looks_a_second(self) -> None:
        self.asleep()
        for _ in range(5000):
            self.bell.ring()
            self.clock.advance(0.001)
        self.assertLess(len(self.looks), 5 * 20 + 10)
        self.assertEqual((self.asked, self.bell.state), ([], ASLEEP))
        self.assertLess(len(self.clock.getDelayedCalls()), 3)
        # An order during the flood waits for the next of these looks at most.
        self.rows = 1
        for _ in range(51):
            self.bell.ring()
            self.clock.advance(0.001)
        self.assertEqual((self.rows, self.bell.state), (0, AWAKE))

    def test_slow_looks_take_half_of_the_time_at_most(self) -> None:
        """The pause between two looks is as long as the last look."""
        took = 0.01

        async def slow() -> int:
            self.asked.append(self.clock.seconds())
            self.clock.rightNow += took
            return 0

        self.bell._look_at_outbox = slow
        self.bell.start()
        self.pass_(0.1)
        self.assertLess(len(self.asked), 12)

    def test_a_node_that_loses_the_lease_releases_the_locks(self) -> None:
        for begin in (self.asleep, self.dozing):
            self.setUp()
            begin()
            self.bell.stop()
            self.assertEqual((self.bell.state, self.locks.held), (None, []))
            self.bell.ring()
            self.bell.rows_found_by_poll()
            self.pass_(1)
            self.assertEqual((self.asked, self.looks), ([], []))
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_after_an_error_of_the_database_the_doorman_tries_again(self) -> None:
        self.locks.away = True
        self.bell.start()
        self.pass_(0.5)
        self.assertEqual(self.bell.state, AWAKE)
        self.locks.away = False
        self.pass_(1.5)
        self.assertEqual(self.bell.state, ASLEEP)

    def test_an_unexpected_exception_is_logged_and_the_doorman_tries_again(self) -> None:
        self.bell._look_at_outbox = self.broken
        self.bell.start()
        self.pass_(0.01)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.bell._look_at_outbox = self.ask
        self.pass_(1.5)
        self.assertEqual(self.bell.state, ASLEEP)

    async def broken(self) -> int:
        raise ZeroDivisionError


class BellCase(SequencerCase):
    """A doorman with its bell and a poll, and a real database. The test passes the notifications on."""

    async def doorman(self) -> Sequencer:
        sequencer = await self.started()
        self.bell = Bell(REACTOR, sequencer._connection, look=sequencer.look, wake=sequencer.wake)
        sequencer._rows_seen = self.bell.rows_seen
        self.addCleanup(self.bell.stop)
        self.listener = self.client()
        self.listener.run("LISTEN posd_outbox")
        self.bell.start()
        return sequencer

    def rung(self) -> bool:
        """Whether a notification has arrived since the last call."""
        heard = [channel for channel, _ in self.listener.notifications()]
        for _ in heard:
            self.bell.ring()
        return bool(heard)

    async def state(self, state: str) -> None:
        await until(lambda: self.bell.state == state, f"it is {state}")

    async def taken(self) -> None:
        await until(lambda: not self.waiting, "the outbox is empty")

    def shop(self, statement: str = "SELECT 1") -> Client:
        """The connection of a shop in an open transaction."""
        client = self.client()
        client.run("BEGIN")
        client.run(statement)
        return client

    PLACE = "INSERT INTO dinedesk_kitchen.orders (total_amount) VALUES (5)"
    PUBLISH = "SELECT dinedesk_main.pos_publish('kitchen', 'notice', '{}')"


class RingingTests(BellCase):
    async def test_hooks_notify_only_if_the_doorman_rests(self) -> None:
        await self.doorman()
        # While the doorman is awake, neither a hook nor pos_publish() notifies.
        self.admin.run(self.PLACE)
        self.admin.run(self.PUBLISH)
        self.assertFalse(self.rung())
        await self.taken()
        await self.state(ASLEEP)
        # While the doorman is asleep, a transaction notifies once.
        for statement in (self.PLACE, self.PUBLISH):
            self.admin.run(f"BEGIN; {statement}; {statement}; COMMIT")
            self.assertEqual(self.listener.notifications(), [("posd_outbox", "")])
            self.bell.ring()
            await self.taken()
            await self.state(ASLEEP)
        # The doorman dozes while a transaction is open that has written without a notification.
        self.bell.rows_seen(1)
        await self.state(AWAKE)
        await until(lambda: not self._locks(), "it has let go of its locks")
        waiter = self.shop(self.PLACE)
        await self.state(DOZING)
        # Another transaction notifies.
        self.admin.run(self.PUBLISH)
        self.assertTrue(self.rung())
        await self.taken()
        # A rollback to a savepoint releases the lock of the transaction.
        waiter.run("ROLLBACK")
        waiter.run("BEGIN; SAVEPOINT s")
        await self.state(ASLEEP)
        self.bell.rows_seen(1)
        await until(lambda: not self._locks(), "it has let go of its locks")
        waiter.run(self.PLACE)
        self.assertEqual(self._locks(), [10])
        waiter.run("ROLLBACK TO s")
        self.assertEqual(self._locks(), [])
        await self.state(ASLEEP)

    async def test_the_poll_finds_rows_of_a_transaction_that_was_open_before_the_doorman_dozed(
        self,
    ) -> None:
        await self.doorman()
        stopped = self.shop(self.PLACE)
        await self.state(DOZING)
        await self.quiet()
        stopped.run("COMMIT")
        self.assertFalse(self.rung())
        self.assertEqual(self.bell.state, DOZING)
        # Meanwhile the order of another shop does not wait.
        self.admin.run(self.PUBLISH)
        self.assertTrue(self.rung())
        await self.taken()

    async def test_a_session_that_holds_the_locks_delays_no_order(self) -> None:
        await self.doorman()
        for keys in ((10,), (11,), (10, 11)):
            for kind in ("", "_shared"):
                with self.subTest(keys=keys, kind=kind):
                    holder = self.client()
                    for key in keys:
                        holder.run(f"SELECT pg_try_advisory_lock{kind}(7097, {key})")
                    self.admin.run(self.PLACE)
                    self.rung()
                    await self.taken()
                    await self.quiet()
                    self.admin.run(self.PLACE)
                    self.rung()
                    await self.taken()
                    holder.run("SELECT pg_advisory_unlock_all()")

    async def test_rows_of_a_session_without_notifications_are_found(self) -> None:
        await self.doorman()
        shop = self.client()
        shop.run("SET posd.notify = 'off'")
        # An awake doorman sees the row at once. Otherwise the poll finds the row.
        shop.run(self.PLACE)
        self.assertFalse(self.rung())
        await self.taken()
        await self.state(ASLEEP)
        shop.run(self.PLACE)
        self.assertFalse(self.rung())
        self.bell.rows_found_by_poll()
        await self.taken()

    async def test_a_lost_connection_of_a_shop_releases_its_lock(self) -> None:
        await self.doorman()
        with closing(psycopg2.connect(self.dsn)) as connection:
            connection.cursor().execute(self.PLACE)
            await self.state(DOZING)
        await self.state(ASLEEP)
        self.assertEqual(self.waiting, 0)

    async def test_when_the_doorman_dies_in_any_state_its_locks_are_released(self) -> None:
        """The locks end with the connection. The next doorman is awake, and sees the rows."""
        sequencer = await self.doorman()
        for reached in (self.fell_asleep, self.dozed, self.is_awake):
            with self.subTest(state=reached.__name__):
                opened = await reached()
                for pid in self.backends("posd sequencer"):
                    self.admin.run("SELECT pg_terminate_backend(%s)", pid)
                await until(lambda: not self._locks("ExclusiveLock"), "its locks are free")
                self.bell.stop()
                self.admin.run(self.PLACE)
                self.assertFalse(self.rung())
                await until(lambda: sequencer._connection.up, "it is there again")
                self.bell.start()
                await self.taken()
                if opened is not None:
                    opened.run("ROLLBACK")

    async def fell_asleep(self) -> None:
        await self.state(ASLEEP)

    async def dozed(self) -> Client:
        self.bell.rows_seen(1)
        await until(lambda: not self._locks(), "it has let go of its locks")
        opened = self.shop(self.PLACE)
        await self.state(DOZING)
        return opened

    async def is_awake(self) -> None:
        self.bell.rows_seen(1)
        await self.state(AWAKE)

    async def quiet(self) -> None:
        """Wait until the doorman rests, or until the time for that has passed."""
        ends = REACTOR.seconds() + 0.4
        await until(lambda: REACTOR.seconds() > ends, "some time has passed")

    def _locks(self, mode: str = "%") -> list[int]:
        """Return the locks of the bell that any session holds."""
        rows = self.admin.rows(
            "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND classid = 7097 AND objid IN (10, 11)"
            " AND mode LIKE %s"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            mode,
        )
        return [objid for (objid,) in rows]
