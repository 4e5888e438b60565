"""Waiters do not run inside each other: the depth of the stack does not depend on their number.

A lock, semaphore or queue of Twisted runs the next waiter in the stack of the one that releases it. If
that one finishes at once, as all do while a connection is lost, it runs the next one in its own stack.
Some hundred waiters end in `RecursionError`, and what they held is never released.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from traceback import walk_tb
from typing import Any, Final
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.database.pool import Pool
from posd.database.reconnecting import ReconnectingConnection
from posd.database.shop_readers import ShopReaders
from posd.delivery.channel import TenantChannel
from posd.delivery.receive_queue import ReceiveQueue
from posd.delivery.session_openings import SessionOpenings
from posd.errors import Unavailable
from posd.events import normalise
from posd.monitoring.tenant_survey import TenantSurvey
from posd.publishing.publication import Publication
from posd.publishing.sequencer import Sequencer
from posd.security.credential_lookup import CredentialLookup
from posd.store import credentials, presence
from posd.store.credentials import Credential, CredentialQuery
from posd.store.survey import TenantSurveyRow
from posd.values import Seq, SessionStart, Tenant
from tests.database.test_checkout import stack_depth
from tests.delivery_case import KITCHEN, NOON, Log, head
from tests.test_layering import MODULES

_CROWD: Final = 2000
_NESTING: Final = ("DeferredLock", "DeferredSemaphore", "DeferredQueue", "DeferredFilesystemLock")


def names(tree: ast.AST) -> Iterator[str]:
    """Return all names in a module that are imported, used or accessed as attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield from (alias.name.rpartition(".")[2] for alias in node.names)


class NestingTests(SynchronousTestCase):
    def test_what_runs_waiters_inside_each_other_is_used_nowhere(self) -> None:
        for name, path in MODULES.items():
            used = {*names(ast.parse(path.read_text("utf-8")))} & {*_NESTING}
            with self.subTest(module=name):
                self.assertEqual(used, set())

    def test_every_form_of_using_it_is_seen(self) -> None:
        for source in (
            "from twisted.internet.defer import DeferredLock as L",
            "from twisted.internet import defer\ndefer.DeferredLock()",
        ):
            self.assertIn("DeferredLock", {*names(ast.parse(source))})


class CrowdTests(SynchronousTestCase):
    """Each place with many waiters, with thousands of waiters that finish as soon as they are fired."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.depths: set[int] = set()

    def call(self, work: Callable[[], Any]) -> Deferred[Any]:
        async def call() -> Any:
            try:
                return await work()
            finally:
                self.depths.add(stack_depth())

        return Deferred.fromCoroutine(call())

    def assert_flat(self, count: int = 1) -> None:
        self.assertGreaterEqual(len(self.depths), count)
        self.assertLess(max(self.depths), sys.getrecursionlimit() // 4)

    def test_statements_that_wait_for_the_pool_when_its_connections_are_lost(self) -> None:
        database = Pool(self.clock, "", size=2, statement_timeout=5)
        links = database._connections
        for connection in links:
            connection.up = True
            database._connection_changed(connection)
        lost: Deferred[None] = Deferred()

        async def run(connection: ReconnectingConnection) -> None:
            await lost
            raise Unavailable("The connection was lost.")

        self.patch(
            ReconnectingConnection, "query", lambda connection, sql, parameters: run(connection)
        )
        calls = [self.call(lambda: database.query("", tenant=1)) for _ in range(400)]
        calls += [self.call(lambda: database.query("")) for _ in range(_CROWD)]
        for connection in links:
            connection.up = False
            database._connection_changed(connection)
        lost.callback(None)
        for each in calls:
            self.failureResultOf(each, Unavailable)
        self.assert_flat()
        self.assertEqual((database.usage.waiting, database.usage.lent), (0, 0))

    def test_keys_that_are_looked_up_when_the_database_goes_away(self) -> None:
        away, lost = Unavailable("The connection was lost."), Deferred[None]()

        async def find(session: object, wanted: object) -> list[Credential | None]:
            await lost
            raise away

        self.patch(credentials, "find", find)
        lookup = CredentialLookup(self.clock, Pool(self.clock, "", size=1, statement_timeout=5))
        wanted = CredentialQuery("kitchen", b"", None)
        calls = [self.call(lambda: lookup.find(wanted)) for _ in range(_CROWD)]
        lost.callback(None)
        self.clock.pump([0] * _CROWD)
        for each in calls:
            self.failureResultOf(each, Unavailable)
        self.assert_flat()
        # Each waiter raises it again, which makes its traceback longer.
        self.assertLess(len([*walk_tb(away.__traceback__)]), 10)

    def test_terminals_whose_key_is_found_when_the_database_goes_away(self) -> None:
        """Each then looks up a second value, which fails at once."""
        answer: Deferred[list[Credential | None]] = Deferred()

        async def find(
            session: object, wanted: Sequence[CredentialQuery]
        ) -> list[Credential | None]:
            if wanted[0].device_id is None:
                return await answer
            raise Unavailable("The database cannot be reached.")

        self.patch(credentials, "find", find)
        lookup = CredentialLookup(self.clock, Pool(self.clock, "", size=1, statement_timeout=5))

        async def both(number: int) -> None:
            await lookup.find(CredentialQuery("kitchen", b"", None))
            await lookup.find(CredentialQuery("kitchen", b"", f"till-{number}"))

        # As many as are fired at once, in one iteration of the reactor.
        calls = [self.call(partial(both, number)) for number in range(50)]
        answer.callback([None])
        self.clock.pump([0] * len(calls))
        for each in calls:
            self.failureResultOf(each, Unavailable)
        self.assert_flat()

    def test_who_waits_for_the_pool_to_be_up(self) -> None:
        database = Pool(self.clock, "", size=1, statement_timeout=5)
        calls = [self.call(database.when_up) for _ in range(_CROWD)]
        (connection,) = database._connections
        connection.up = True
        database._connection_changed(connection)
        for each in calls:
            self.successResultOf(each)
        self.assert_flat()

    def test_terminals_that_come_together(self) -> None:
        """One of them has refused events, which are looked up in its tenant's schema."""
        runs: list[int] = []
        gates: list[Deferred[None]] = []

        async def openings(
            session: object, wanted: Sequence[presence.Place], most: int
        ) -> dict[presence.Place, SessionStart]:
            runs.append(len(wanted))
            if len(runs) == 1:
                gates.append(Deferred())
                await gates[0]
            acked = {"till-7": 6}
            return {
                place: SessionStart(head(9), acked.get(place[1] or "", 9), False, NOON)
                for place in wanted
                if place[1] != "till-13"
            }

        async def refused(
            session: object, tenant: Tenant, cursors: Sequence[tuple[str, Seq]]
        ) -> dict[str, frozenset[Seq]]:
            self.assertEqual((tenant, list(cursors)), (KITCHEN, [("till-7", 6)]))
            return {"till-7": frozenset({7, 9})}

        self.patch(presence, "load_session_starts", openings)
        self.patch(presence, "load_refused_events", refused)
        database = Pool(self.clock, "", size=1, statement_timeout=5)
        found = SessionOpenings(self.clock, database, 1000)

        def ask(device: str) -> Deferred[SessionStart | None]:
            return self.call(lambda: found.find(KITCHEN, device))

        calls = [ask(f"till-{number}") for number in range(_CROWD)]
        gates[0].callback(None)
        # Each is upgraded and gets its first message, so only some proceed in one iteration.
        self.assertLess(sum(each.called for each in calls), 50)
        self.clock.pump([0.0] * _CROWD)
        answers: list[SessionStart | None] = [self.successResultOf(each) for each in calls]
        self.assertEqual([n for n, each in enumerate(answers) if each is None], [13])
        refusing = answers[7]
        assert refusing is not None
        # The refusals just after the cursor are skipped.
        self.assertEqual((refusing.acked, refusing.refused), (7, {9}))
        self.assertEqual(runs, [1, 500, 500, 500, 499])
        self.assert_flat()

    def test_messages_of_a_till_that_are_taken_at_once(self) -> None:
        """As print reports while the database is unavailable: each is refused in the iteration in which it
        is taken.
        """
        taken: list[bytes] = []

        async def work(message: bytes) -> None:
            taken.append(message)
            self.depths.add(stack_depth())

        gate: Deferred[None] = Deferred()

        async def first() -> None:
            await gate

        class Transport:
            def pauseProducing(self) -> None: ...
            def resumeProducing(self) -> None: ...

        receive_queue = ReceiveQueue(
            self.clock,
            Transport(),
            lambda m: first() if m == b"first" else work(m),
            self.fail,
            lambda requests, size: 0.0,
        )
        messages = [b"%d" % number for number in range(_CROWD)]
        for each in (b"first", *messages):
            receive_queue.put(each)
        gate.callback(None)
        self.assertEqual(taken, messages)
        receive_queue.put(b"last")
        self.assertEqual(taken[-1], b"last")
        self.assert_flat()

    def test_scrapes_that_come_together(self) -> None:
        gate: Deferred[None] = Deferred()
        reads: list[int] = []

        async def read(most: int) -> Sequence[TenantSurveyRow]:
            reads.append(most)
            await gate
            return ()

        survey = TenantSurvey(read, self.clock)
        calls = [self.call(survey.families) for _ in range(_CROWD)]
        gate.callback(None)
        for each in calls:
            self.assertEqual(len(self.successResultOf(each)), 2)
        self.assertEqual(len(reads), 1)
        self.assert_flat()

    def test_sessions_that_read_the_same_page(self) -> None:
        log = Log(at_once=False)
        log.commit(1000)
        for trouble in (None, Unavailable("The database is away.")):
            channel = TenantChannel(KITCHEN, log.head, log.read)
            reads = len(log.reads)

            async def read_all(channel: TenantChannel = channel) -> int:
                position = 0
                while page := await channel.page(position):
                    position = page[-1].seq
                return position

            calls = [self.call(read_all) for _ in range(_CROWD)]
            while log.waiting:
                log.fail(trouble) if trouble is not None else log.answer()
            for each in calls:
                if trouble is not None:
                    self.failureResultOf(each, Unavailable)
                else:
                    self.assertEqual(self.successResultOf(each), 1000)
            self.assertLess(len(log.reads) - reads, 15)
        self.assert_flat()

    def test_publications_that_are_refused_together(self) -> None:
        """They are answered in several iterations of the reactor, because each has an HTTP answer."""
        connection = ReconnectingConnection(self.clock, "", name="", statement_timeout=5)
        sequencer = Sequencer(
            self.clock,
            connection,
            ShopReaders(self.clock, ""),
            uuid4(),
            event_bytes=4096,
            connections_here=lambda tenant_id: 0,
        )
        gate: Deferred[None] = Deferred()

        async def transaction(*_: object, **__: object) -> None:
            if not gate.called:
                await gate
            raise Unavailable("The connection was lost.")

        self.patch(connection, "transaction", transaction)
        sequencer.startService()
        # The maximal number of waiting requests, of as many tenants as that takes.
        publications = [
            Publication(each, [normalise.draft("note", {})]) for each in range(5)
        ] * 2000
        calls = [self.call(partial(sequencer.publish, each)) for each in publications]
        gate.callback(None)
        self.assertLess(sum(each.called for each in calls), 2000)
        for _ in range(20):
            self.clock.advance(0)
        for each in calls:
            self.failureResultOf(each, Unavailable)
        self.assert_flat()
