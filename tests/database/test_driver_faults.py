"""A link heals whatever libpq, psycopg2, txpostgres and the reactor do to its connections."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE
from twisted.internet.defer import gatherResults

from posd.database import connection as module
from posd.database.connection import DatabaseConnection
from posd.database.reconnecting import ReconnectingConnection
from posd.errors import Unavailable
from tests.database_case import REACTOR, DatabaseCase, begin, until


class Moving:
    """psycopg2's connection, as far as connecting goes: each poll answers as planned.

    With `move` in front of an answer libpq has gone on to the next host, with a socket of its own that
    has the number of the one before, or another number.
    """

    notifies: tuple[()] = ()

    def __init__(self, *plan: tuple[str, int], same_number: bool) -> None:
        self.plan = list(plan)
        self.same_number = same_number
        self.closed = 0
        self.peers: list[socket.socket] = []
        self.socket = self.new_socket()

    def new_socket(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        # There is something to read, so that each socket that is watched is heard of at once.
        theirs.send(b"answer")
        self.peers.append(theirs)
        return ours

    def poll(self) -> int:
        if not self.plan:
            # Open, and nothing has come.
            self.socket.recv(100)
            return int(POLL_OK)
        what, answer = self.plan.pop(0)
        if what == "move":
            old, self.socket = self.socket, self.new_socket()
            if self.same_number:
                number = old.fileno()
                os.dup2(self.socket.fileno(), number)
                self.socket.close()
                self.socket = old
            else:
                old.close()
        return answer

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_parameter_status(self, name: str) -> str:
        return "on"

    def isexecuting(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = 1
        self.socket.close()
        for peer in self.peers:
            peer.close()


def watched() -> list[Any]:
    """What of connections to the database the reactor has in its books."""
    return [each for each in REACTOR.getReaders() + REACTOR.getWriters() if hasattr(each, "want")]


def connect_by(test: DatabaseCase, make: Callable[..., Any]) -> None:
    """Let the test's connections be made by this function instead of psycopg2's."""
    # Not self.patch(), which would put back a function that is no static method any more.
    module._RawConnection.connectionFactory = staticmethod(make)
    test.addCleanup(
        setattr, module._RawConnection, "connectionFactory", staticmethod(psycopg2.connect)
    )


class MovingTests(DatabaseCase):
    """The socket is another one after `poll()`."""

    async def opened(self, *plan: tuple[str, int], same_number: bool) -> None:
        before = watched()
        raw = Moving(*plan, same_number=same_number)
        connect_by(self, lambda *_, **__: raw)
        ends: list[str] = []
        connection = DatabaseConnection(REACTOR, lambda which, trouble: ends.append(trouble))
        opening = begin(connection.open("host=a,b dbname=none"))
        await until(lambda: opening.called, "every answer of poll() was asked for")
        await opening
        self.assertEqual(raw.plan, [])
        connection.close()
        self.assertEqual(watched(), before)
        self.assertEqual(ends, [])

    async def test_the_new_socket_is_watched_and_the_old_one_forgotten(self) -> None:
        for same_number in (True, False):
            with self.subTest(same_number=same_number):
                await self.opened(
                    ("", POLL_WRITE),
                    ("move", POLL_WRITE),
                    ("", POLL_READ),
                    ("move", POLL_WRITE),
                    ("", POLL_READ),
                    ("", POLL_OK),
                    same_number=same_number,
                )

    async def test_also_when_the_old_one_was_watched_for_both(self) -> None:
        """txpostgres goes on reading from a connection that it also writes to."""
        for same_number in (True, False):
            with self.subTest(same_number=same_number):
                await self.opened(
                    ("", POLL_READ),
                    ("move", POLL_WRITE),
                    ("move", POLL_READ),
                    ("move", POLL_READ),
                    ("", POLL_OK),
                    same_number=same_number,
                )


class Sabotaged:
    """A connection or a reactor of which some attributes raise instead."""

    def __init__(self, real: Any, broken: set[str]) -> None:
        self._real = real
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        if name not in self._broken:
            return getattr(self._real, name)
        error = RuntimeError(f"{name} fails as wanted")
        if not name.startswith("remove"):
            raise error

        def remove(selectable: Any) -> None:
            """Raise only afterwards: what stayed in the books would stay there after the test."""
            getattr(self._real, name)(selectable)
            raise error

        return remove


METHODS = ("fileno", "poll", "close", "closed", "cursor", "isexecuting", "notifies")
WATCHING = ("addReader", "addWriter", "removeReader", "removeWriter")


class FaultTests(DatabaseCase):
    """One thing raises, at one moment: the link goes down at most, and comes up again."""

    def setUp(self) -> None:
        super().setUp()
        self.broken: set[str] = set()
        self.made: list[Any] = []
        self.changes: list[bool] = []

    def link(self, *, reactor: Any = REACTOR) -> ReconnectingConnection:
        link = ReconnectingConnection(
            reactor,
            self.dsn,
            name="posd test",
            statement_timeout=5.0,
            role=None,
            changed=lambda link: self.changes.append(link.up),
        )
        self.addCleanup(link.stopService)
        return link

    def sabotage(self, broken: set[str]) -> None:
        """The next connection that is made is one of which these methods raise."""

        def make(*arguments: Any, **options: Any) -> Any:
            real = psycopg2.connect(*arguments, **options)
            self.addCleanup(real.close)
            self.made.append(real)
            return Sabotaged(real, broken) if len(self.made) == 1 else real

        connect_by(self, make)

    async def heals(self, link: ReconnectingConnection) -> None:
        async def answers() -> bool:
            try:
                return await link.query("SELECT 7") == [(7,)]
            except Unavailable:
                return False

        await until(lambda: link.up, "the link is up")
        for _ in range(5):
            if await answers():
                break
            await until(lambda: link.up, "the link is up again")
        else:
            self.fail("the link does not answer")
        await link.stopService()
        self.flushLoggedErrors(RuntimeError)

    async def test_while_it_connects(self) -> None:
        for method in METHODS:
            with self.subTest(method=method):
                self.made.clear()
                self.sabotage({method})
                link = self.link()
                link.startService()
                await self.heals(link)

    async def test_while_it_is_idle(self) -> None:
        for method in METHODS:
            with self.subTest(method=method):
                self.made.clear()
                broken: set[str] = set()
                self.sabotage(broken)
                link = await self.up(self.link())
                broken.add(method)
                for pid in self.backends("posd test"):
                    self.admin.run("SELECT pg_terminate_backend(%s)", pid)
                await self.heals(link)

    async def test_while_a_statement_runs(self) -> None:
        for method in METHODS:
            with self.subTest(method=method):
                self.made.clear()
                broken: set[str] = set()
                self.sabotage(broken)
                link = await self.up(self.link())
                running = begin(link.query("SELECT pg_sleep(0.02)"))
                waiting = [begin(link.query("SELECT 1")) for _ in range(3)]
                broken.add(method)
                await outcomes(running, *waiting)
                broken.add("close")
                link.drop()
                await self.heals(link)

    async def test_the_reactor_at_its_books(self) -> None:
        for method in WATCHING:
            with self.subTest(method=method):
                broken: set[str] = set()
                link = await self.up(self.link(reactor=Sabotaged(REACTOR, broken)))
                running = begin(link.query("SELECT pg_sleep(0.02)"))
                broken.add(method)
                link.drop()
                await outcomes(running)
                REACTOR.callLater(0.05, broken.clear)
                await self.heals(link)

    async def test_what_is_told_of_a_change_may_fail(self) -> None:
        def changed(link: ReconnectingConnection) -> None:
            raise RuntimeError("as wanted")

        link = ReconnectingConnection(
            REACTOR,
            self.dsn,
            name="posd test",
            statement_timeout=5.0,
            role=None,
            changed=changed,
        )
        await self.up(link)
        link.drop()
        await self.heals(link)

    async def test_descriptors_that_are_used_up_are_a_failed_attempt(self) -> None:
        def used_up(number: int) -> int:
            raise OSError(24, "Too many open files")

        self.patch(os, "dup", used_up)
        link = self.link()
        link.startService()
        await until(lambda: link.trouble is not None, "there is trouble")
        self.assertIn("Too many open files", link.trouble or "")
        self.patch(os, "dup", DUP)
        await self.heals(link)


DUP: Callable[[int], int] = os.dup


async def outcomes(*running: Any) -> None:
    """Wait until all have ended; each with a result or as a database that is away."""

    def unavailable(failure: Any) -> None:
        failure.trap(Unavailable)

    ended = gatherResults([each.addErrback(unavailable) for each in running])
    await until(lambda: ended.called, "everything that was awaited has ended")
