"""A busy shop: writers of all kinds, tills that come and go, and checks of both.

Writers record committed events, and tills record received events for each connection. Afterwards
`Load.faults` compares them with the log in the database.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from itertools import pairwise
from threading import Event
from typing import Any, ClassVar, Final, Protocol

import psycopg2
from attrs import define, field
from psycopg2.extensions import (
    ISOLATION_LEVEL_READ_COMMITTED,
    ISOLATION_LEVEL_REPEATABLE_READ,
    ISOLATION_LEVEL_SERIALIZABLE,
)

from tests.integration.harness import Daemon, Shop
from tests.integration.wire import Ended, Refused, Till

SQL, HOOK, REST = "sql", "hook", "rest"

_ISOLATION: Final = (
    ISOLATION_LEVEL_READ_COMMITTED,
    ISOLATION_LEVEL_REPEATABLE_READ,
    ISOLATION_LEVEL_SERIALIZABLE,
)
_PAUSE: Final = 0.02
_GIVE_UP: Final = 300.0


class RolledBack(Exception):
    """The shop rolls its transaction back."""


@define(eq=False)
class Writer:
    """A program of the shop. It runs the transactions of its list one after the other.

    `committed` are its marks in the order of their commits, `moments` the times and ways of the
    confirmations, `doubtful` the marks whose COMMIT got no answer, and `positions` the positions that
    REST returned.
    """

    shop: Shop
    slug: str
    key: str
    nodes: Sequence[Daemon]
    name: str
    dice: random.Random
    over: Event
    roads: Sequence[str]
    pace: float
    committed: list[str] = field(factory=list)
    moments: list[tuple[float, str]] = field(factory=list)
    doubtful: set[str] = field(factory=set)
    rolled_back: set[str] = field(factory=set)
    positions: dict[str, int] = field(factory=dict)
    collisions: list[str] = field(factory=list)
    _connection: Any = None

    def work(self, most: int) -> None:
        for number in range(most):
            if self.over.is_set():
                break
            road, mark = self.dice.choice(self.roads), f"{self.name}-{number}"
            if road == REST:
                self._post(mark)
            else:
                self._commit(mark, road)
            self.over.wait(self.dice.random() * self.pace)
        self._forget()

    def _commit(self, mark: str, road: str) -> None:
        """Run a transaction by SQL, at any isolation level. One in five is rolled back."""
        asked = False
        try:
            connection = self._connected()
            isolation = self.dice.choice(_ISOLATION)
            # PostgreSQL reads the rows that items refer to, and conflicts with other new orders on the same
            # page. SERIALIZABLE clients must expect this, with posd's hooks or without.
            lines = 0 if isolation == ISOLATION_LEVEL_SERIALIZABLE else self.dice.randrange(1, 4)
            connection.set_session(isolation_level=isolation)
            with connection, connection.cursor() as cursor:
                self._write(cursor, mark, road, lines)
                if self.dice.random() < 0.2:
                    raise RolledBack
                asked = True
        except RolledBack:
            self.rolled_back.add(mark)
        except psycopg2.errors.SerializationFailure as failure:
            self.collisions.append(str(failure))
            self.rolled_back.add(mark)
        except psycopg2.Error:
            # The server is unavailable. The outcome is unknown only if COMMIT was sent.
            (self.doubtful if asked else self.rolled_back).add(mark)
            self._forget()
            self.over.wait(_PAUSE)
        else:
            self._confirmed(mark, road)

    def _confirmed(self, mark: str, road: str) -> None:
        self.committed.append(mark)
        self.moments.append((time.monotonic(), road))

    def _write(self, cursor: Any, mark: str, road: str, lines: int) -> None:
        schema = f"dinedesk_{self.slug.replace('-', '_')}"
        if road == SQL:
            data = json.dumps({"mark": mark, "filling": "x" * self.dice.randrange(2000)})
            cursor.execute(
                "SELECT dinedesk_main.pos_publish(%s, 'note', %s::jsonb)", (self.slug, data)
            )
            return
        cursor.execute(
            f"INSERT INTO {schema}.orders (customer_name, total_amount) VALUES (%s, 9.5)"
            " RETURNING id",
            (mark,),
        )
        (order_id,) = cursor.fetchone()
        for line in range(lines):
            cursor.execute(
                f"INSERT INTO {schema}.order_items (order_id, name, price) VALUES (%s, %s, 3)",
                (order_id, f"dish {line}"),
            )

    def _post(self, mark: str) -> None:
        """Publish by REST until there is an answer. The key prevents a second event."""
        body = {"type": "note", "data": {"mark": mark}}
        deadline = time.monotonic() + _GIVE_UP
        while time.monotonic() < deadline:
            posd = self.dice.choice(self.nodes)
            with suppress(OSError, http.client.HTTPException):
                reply = posd.request(
                    "POST",
                    f"/api/{self.slug}/events",
                    body,
                    key=self.key,
                    headers={"Idempotency-Key": mark},
                )
                if reply.status in (200, 201):
                    self.positions[mark] = reply.json["id"]
                    self._confirmed(mark, REST)
                    return
                assert reply.status in (409, 429, 503), reply
            time.sleep(_PAUSE)
        raise AssertionError(f"{mark} could not be published")

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = psycopg2.connect(self.shop.dsn)
        return self._connection

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@define(eq=False)
class Visit:
    """A connection: the position that it resumed after, and the received events."""

    resumed: int | None
    resync: str | None
    stream: str
    head: int
    by_cursor: bool = False
    """Whether the till named no position and resumed at its cursor."""
    received: list[tuple[int, str, Any]] = field(factory=list)


class Connection(Protocol):
    """The open connection of a till."""

    def hang_up(self) -> None: ...


@define(eq=False)
class Rover:
    """A till that comes and goes, on different nodes, for short or long visits.

    One with a device id acknowledges and uses its cursor. The others store their position. This class
    uses WebSocket; `load_roads` has the other transports.
    """

    transport: ClassVar[str] = "WebSocket"

    slug: str
    key: str
    nodes: Sequence[Daemon]
    dice: random.Random
    over: Event
    named: bool
    stays: float
    visits: list[Visit] = field(factory=list)
    arrivals: list[tuple[float, int]] = field(factory=list)
    faults: list[str] = field(factory=list)
    position: int = 0
    acked: int = 0
    stream: str | None = None
    final: int | None = None

    def rove(self) -> None:
        """Connect repeatedly until the load ends, and then until all events are received."""
        deadline: float | None = None
        while not self._has_all:
            if self.over.is_set():
                deadline = deadline or time.monotonic() + 4 * _GIVE_UP
            if deadline is not None and time.monotonic() > deadline:
                self.faults.append(f"still at {self.position}, wanted {self.final}")
                return
            try:
                till = self._connect()
            except (Refused, Ended, OSError):
                time.sleep(_PAUSE)
                continue
            with suppress(Ended, OSError):
                self._stay(till)
            till.hang_up()

    def _connect(self) -> Connection:
        """Open a connection, and record in a `Visit` where it resumes."""
        query, by_cursor = self._wish()
        till = Till.dial(
            self.dice.choice(self.nodes),
            f"/ws/pos/{self.slug}{query}",
            {"X-API-Key": self.key},
            receive_buffer=4096 if self.dice.random() < 0.3 else None,
            seconds=10,
        )
        self._greeted(till.connected, by_cursor)
        return till

    def _wish(self) -> tuple[str, bool]:
        """Return the query with the position to resume at, and whether it is the stored cursor."""
        # A till that has acknowledged usually relies on its cursor.
        by_cursor = self.named and self.acked > 0 and self.dice.random() < 0.7
        query = "" if by_cursor else f"?last_event_id={self.position}"
        if self.stream is not None and not by_cursor:
            query += f"&stream_id={self.stream}"
        if self.named and not by_cursor:
            # Naming a position states that all events up to it are stored, even if there is no answer.
            self.acked = max(self.acked, self.position)
        return query, by_cursor

    def _greeted(self, said: Mapping[str, Any], by_cursor: bool) -> None:
        visit = Visit(
            said["resumedFrom"], said["resync"], said["streamId"], said["lastEventId"], by_cursor
        )
        self.visits.append(visit)
        if visit.resync is not None:
            self.position = visit.head
            # Its cursor moves to its new position. The earlier acknowledgement was of another stream.
            self.acked = visit.head if self.named else 0
        elif visit.resumed is None:
            self.faults.append(f"not resumed at {self.position}, but at the head, {visit.head}")
        elif visit.resumed > (self.acked if by_cursor else self.position):
            self.faults.append(f"resumed at {visit.resumed}, acknowledged {self.acked}")
        else:
            self.position = visit.resumed
        self.stream = visit.stream

    @property
    def _has_all(self) -> bool:
        return self.over.is_set() and self.final is not None and self.position >= self.final

    def _received(self, message: Mapping[str, Any]) -> None:
        if "id" not in message:
            self.faults.append(f"posd says {message}")
            return
        self.arrivals.append((time.monotonic(), message["id"]))
        self.visits[-1].received.append((message["id"], message["type"], message["data"]))
        self.position = message["id"]

    def _stay(self, till: Any) -> None:
        """Receive for the length of this visit. Raises `Ended` and `OSError` if posd ends it."""
        until = time.monotonic() + self.dice.random() * self.stays
        slow = self.dice.random() < 0.3
        while time.monotonic() < until or self.over.is_set():
            if self._has_all:
                return
            try:
                self._received(till.receive(0.2))
            except TimeoutError:
                continue
            if self.named and self.dice.random() < 0.5:
                self.acked = max(self.acked, self.position - self.dice.randrange(3))
                till.send({"type": "ack", "id": self.acked})
            if slow:
                self.over.wait(self.dice.random() * 0.02)


@define(eq=False)
class Load:
    """Writers and tills of one tenant on some nodes. The end of its context ends them."""

    shop: Shop
    slug: str
    nodes: Sequence[Daemon]
    seed: int = field(factory=lambda: random.randrange(2**32))
    writers: list[Writer] = field(init=False, factory=list)
    rovers: list[Rover] = field(init=False, factory=list)
    _over: Event = field(init=False, factory=Event)
    _closed: Event = field(init=False, factory=Event)
    _threads: ThreadPoolExecutor = field(init=False)
    _writing: list[Future[None]] = field(init=False, factory=list)
    _roving: list[Future[None]] = field(init=False, factory=list)

    def start(
        self,
        writers: int,
        tills: int,
        *,
        roads: Sequence[str] = (SQL, HOOK, REST),
        kinds: Sequence[type[Rover]] = (Rover,),
        most: int = 10**6,
        pace: float = 0.02,
        stays: float = 3.0,
    ) -> None:
        """Start. Each writer has `most` transactions, with pauses of up to `pace` seconds. `stays` are the
        visits.

        Every other till of each of the `kinds` has a device id.
        """
        dice = random.Random(self.seed)
        key = self.shop.key("platform", self.slug)
        tenant_key = self.shop.key(slug=self.slug)
        self._threads = ThreadPoolExecutor(writers + tills)
        for number in range(writers):
            own = random.Random(dice.random())
            self.writers.append(
                Writer(
                    self.shop,
                    self.slug,
                    key,
                    self.nodes,
                    f"w{number}",
                    own,
                    self._over,
                    roads,
                    pace,
                )
            )
        for number in range(tills):
            kind = kinds[number % len(kinds)]
            named = number // len(kinds) % 2 == 0
            till_key = self.shop.key("device", self.slug, f"POS_{number}") if named else tenant_key
            own = random.Random(dice.random())
            self.rovers.append(
                kind(self.slug, till_key, self.nodes, own, self._closed, named, stays)
            )
        self._writing = [self._threads.submit(each.work, most) for each in self.writers]
        self._roving = [self._threads.submit(each.rove) for each in self.rovers]

    def written(self) -> None:
        """Wait until the writers have finished."""
        for each in self._writing:
            each.result(4 * _GIVE_UP)

    def head(self) -> int:
        ((head,),) = self.shop.query(
            "SELECT last_seq FROM dinedesk_main.pos_heads AS h"
            " JOIN dinedesk_main.tenants AS t ON t.id = h.tenant_id WHERE t.slug = %s",
            (self.slug,),
        )
        return int(head)

    def finish(self) -> list[str]:
        """Stop the writers, let the tills receive the rest, and return all faults."""
        self._over.set()
        self.written()
        self._wait(self._all_numbered)
        head = self.head()
        for rover in self.rovers:
            rover.final = head
        self._closed.set()
        for each in self._roving:
            each.result(5 * _GIVE_UP)
        return self.faults()

    def abort(self) -> None:
        """Stop everything, also after a failure."""
        self._over.set()
        self._closed.set()
        for rover in self.rovers:
            rover.final = rover.final or 0
        self._threads.shutdown(wait=True, cancel_futures=True)

    def past(self, position: int) -> float:
        """Wait until every till has received an event after `position`. Return the time of the last one."""

        def first(rover: Rover) -> float | None:
            return next((when for when, seq in list(rover.arrivals) if seq > position), None)

        self._wait(lambda: all(first(each) is not None for each in self.rovers))
        return max(first(each) or 0.0 for each in self.rovers)

    def resyncs(self) -> list[str]:
        """Return each `resync` that a till received: the till and the reason."""
        return [
            f"till {number} ({rover.transport}): {visit.resync}"
            for number, rover in enumerate(self.rovers)
            for visit in rover.visits
            if visit.resync is not None
        ]

    def faults(self) -> list[str]:
        """Compare the written and the received events with the log."""
        log = self.log()
        told = [fault for rover in self.rovers for fault in rover.faults]
        positions = sorted(log)
        if positions != list(range(1, len(positions) + 1)):
            told.append("the positions have gaps")
        told += self._writers_faults(log)
        for number, rover in enumerate(self.rovers):
            for visit in rover.visits:
                told += [f"till {number}: {fault}" for fault in _visit_faults(visit, log)]
        return told

    def _writers_faults(self, log: dict[int, tuple[str, Any]]) -> list[str]:
        told = []
        places: dict[str, list[int]] = {}
        for seq, (kind, data) in sorted(log.items()):
            mark = data["customerName"] if kind == "new_order" else data.get("mark")
            places.setdefault(mark, []).append(seq)
        for mark, at in places.items():
            if len(at) > 1:
                told.append(f"{mark} was published {len(at)} times")
        for writer in self.writers:
            missing = [mark for mark in writer.committed if mark not in places]
            if missing:
                told.append(f"{writer.name} committed what is not in the log: {missing}")
            ghosts = [mark for mark in writer.rolled_back if mark in places]
            if ghosts:
                told.append(f"{writer.name} rolled back what is in the log: {ghosts}")
            for mark, seq in writer.positions.items():
                if places.get(mark) != [seq]:
                    told.append(f"{mark} was answered {seq}, but is at {places.get(mark)}")
            order = [
                (places[mark][0], f"{mark} ({road})")
                for mark, (_, road) in zip(writer.committed, writer.moments, strict=True)
                if mark in places
            ]
            told += [
                f"{writer.name}'s events are not in the order of its commits: {later} at {second} was"
                f" committed after {earlier} at {first}"
                for (first, earlier), (second, later) in pairwise(order)
                if second < first
            ]
            if writer.collisions:
                told.append(f"{writer.name} had collisions: {writer.collisions}")
        return told

    def log(self) -> dict[int, tuple[str, Any]]:
        """Return type and content of each event, by position."""
        schema = f"dinedesk_{self.slug.replace('-', '_')}"
        rows = self.shop.query(
            f"SELECT seq, event_type, event_data::text FROM {schema}.pos_events WHERE seq > 0"
        )
        return {seq: (kind, json.loads(text, parse_float=Decimal)) for seq, kind, text in rows}

    def _all_numbered(self) -> bool:
        ((waiting,),) = self.shop.query("SELECT count(*) FROM dinedesk_main.pos_outbox")
        return int(waiting) == 0

    def _wait(self, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _GIVE_UP
        while not look():
            for each in self._roving:
                if each.done():
                    # Raise the exception of a till here, and do not wait for it.
                    each.result()
            if time.monotonic() > deadline:
                places = [(each.position, len(each.visits), each.faults) for each in self.rovers]
                raise AssertionError(
                    f"waited too long (seed {self.seed}): tills at {places}, head {self.head()}"
                )
            time.sleep(_PAUSE)


def _visit_faults(visit: Visit, log: dict[int, tuple[str, Any]]) -> list[str]:
    """Check the events of a connection: each once, in order, without a gap, with the same content."""
    start = visit.head if visit.resumed is None else visit.resumed
    ids = [seq for seq, _, _ in visit.received]
    told = []
    if ids != list(range(start + 1, start + 1 + len(ids))):
        told.append(f"went on from {start} and was sent {_runs(ids)}")
    told += [
        f"event {seq} is {kind} {data}, and {log.get(seq)} in the log"
        for seq, kind, data in visit.received
        if log.get(seq) != (kind, data)
    ]
    return told


def _runs(ids: Sequence[int]) -> str:
    """Return a sequence as ranges, such as 1-3, 5, 5-9."""
    runs: list[list[int]] = []
    for each in ids:
        if runs and each == runs[-1][1] + 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
