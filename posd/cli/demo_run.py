"""The run of `posctl demo`: place orders by SQL and by REST, and receive them with a till."""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

from attrs import define, field, frozen
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure as Failed

from posd.cli.demo_server import TENANT, DemoServer
from posd.cli.failures import CommandFailure
from posd.cli.reactor import CommandReactor
from posd.cli.sample_orders import INSERT_ITEM, INSERT_ORDER, SampleOrder, sample_order
from posd.client import Connected, Outcome, ReceivedEvent, Till
from posd.database import migrations
from posd.protocol import jsontext

T = TypeVar("T")
Road = Literal["SQL", "REST"]

_ARRIVAL_SECONDS: Final = 60.0
"""Seconds for an order to arrive: enough for a restart of posd after it was killed."""
_PAUSE_SECONDS: Final = 4.0
_WATCH_SECONDS: Final = 0.25
_AGAIN_SECONDS: Final = 0.25


@frozen
class DeliveredOrder:
    """An order that the till has received.

    `milliseconds` is the time until the till had read the order. It begins before COMMIT for an order
    by SQL, and at the event's timestamp for an order by REST.
    """

    road: Road
    event: ReceivedEvent
    milliseconds: float


@define(eq=False)
class DemoRun:
    """The till of the demonstration, and the orders that have not reached it yet."""

    _reactor: CommandReactor
    _stage: DemoServer
    _tell: Callable[[str], None]
    _expected: dict[str, Deferred[tuple[ReceivedEvent, datetime]]] = field(init=False, factory=dict)
    _connected: Deferred[None] = field(init=False, factory=Deferred)
    _failure: str | None = field(init=False, default=None)

    async def perform(self, show: Callable[[DeliveredOrder], None], *, once: bool) -> None:
        """Place orders by SQL and by REST in turn until the reactor stops, or one each if `once`.

        Raises `CommandFailure` if an order does not arrive.
        """
        till = self._till()
        self._reactor.addSystemEventTrigger("before", "shutdown", till.stopService)
        till.startService()
        try:
            await self._in_time(self._connected, "the till could not connect")
            number = 0
            if not once:
                self._watch()
            while not (once and number == 2):
                number += 1
                show(await self._deliver("SQL" if number % 2 else "REST", sample_order(number)))
                if not once:
                    await deferLater(self._reactor, _PAUSE_SECONDS)
        finally:
            await till.stopService()

    def _watch(self) -> None:
        """Restart the daemon whenever it ends, until the reactor stops."""
        watching = LoopingCall(self._look_after_daemon)
        watching.clock = self._reactor
        watching.start(_WATCH_SECONDS, now=False).addErrback(self._given_up)

        def stop() -> None:
            if watching.running:
                watching.stop()

        self._reactor.addSystemEventTrigger("before", "shutdown", stop)

    async def _look_after_daemon(self) -> None:
        daemon = self._stage.daemon
        if not daemon.running:
            threads = self._reactor.getThreadPool()
            await deferToThreadPool(self._reactor, threads, daemon.run_again)
            self._tell(f"posd ended; it was restarted as process {daemon.pid}")

    def _given_up(self, failure: Failed) -> None:
        self._failure = failure.getErrorMessage()

    def _till(self) -> Till:
        return Till(
            self._reactor,
            f"wss://localhost:{self._stage.port}",
            TENANT,
            self._stage.keys["demo"],
            handle=self._on_event,
            ca=self._stage.ca,
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
        )

    async def _deliver(self, road: Road, order: SampleOrder) -> DeliveredOrder:
        arrival = self._expected[order.number] = Deferred()
        place = _publish_by_sql if road == "SQL" else _publish_by_rest
        # The functions that place an order block, so they run in a thread.
        threads = self._reactor.getThreadPool()
        placed = deferToThreadPool(self._reactor, threads, place, self._stage, order)
        sent = await self._in_time(placed, f"the order by {road} was not placed")
        event, read = await self._in_time(arrival, f"the order by {road} did not reach the till")
        begun = event.timestamp if sent is None else sent
        return DeliveredOrder(road, event, (read - begun).total_seconds() * 1000)

    async def _in_time(self, awaited: Deferred[T], complaint: str) -> T:
        try:
            return await awaited.addTimeout(_ARRIVAL_SECONDS, self._reactor)
        except defer.TimeoutError:
            raise CommandFailure(f"{complaint}: {self._reason()}", os.EX_SOFTWARE) from None

    def _reason(self) -> str:
        if not self._stage.daemon.running:
            return f"posd has ended; last lines of its log:\n{self._stage.daemon.last_words()}"
        return self._failure or f"nothing happened for {_ARRIVAL_SECONDS:g} s"

    def _on_event(self, event: ReceivedEvent) -> None:
        read = datetime.now(UTC)
        waiting = self._expected.pop(str(event.data.get("orderNumber")), None)
        if waiting is not None:
            waiting.callback((event, read))

    def _on_connected(self, greeting: Connected) -> None:
        self._failure = None
        if not self._connected.called:
            self._connected.callback(None)

    def _on_disconnected(self, outcome: Outcome) -> None:
        self._failure = outcome.reason


def _publish_by_sql(stage: DemoServer, order: SampleOrder) -> datetime | None:
    """Write an order and its items in one transaction. Return the time just before COMMIT."""
    with closing(migrations.connect(stage.dsn)) as connection:
        connection.autocommit = False
        with connection.cursor() as cursor:
            cursor.execute(INSERT_ORDER, order.row())
            (order_id,) = cursor.fetchone()
            cursor.executemany(INSERT_ITEM, order.item_rows(order_id))
        begun = datetime.now(UTC)
        connection.commit()
        return begun


def _publish_by_rest(stage: DemoServer, order: SampleOrder) -> datetime | None:
    """Publish an order by `POST /events`. Return None: the event has its own timestamp."""
    request = urllib.request.Request(
        f"https://localhost:{stage.port}/api/{TENANT}/events",
        data=jsontext.encode({"type": "new_order", "data": order.data()}),
        headers={
            "Authorization": f"Bearer {stage.keys['platform']}",
            "Content-Type": "application/json",
        },
    )
    trusted = ssl.create_default_context(cafile=str(stage.ca))
    deadline = time.monotonic() + _ARRIVAL_SECONDS
    while True:
        try:
            # bandit warns of other schemes; the URL above is https.
            with urllib.request.urlopen(  # nosec B310
                request, timeout=_ARRIVAL_SECONDS, context=trusted
            ):
                return None
        except urllib.error.HTTPError as refusal:
            said = refusal.read().decode(errors="replace")
            failure = CommandFailure(f"REST answered {refusal.code}: {said}", os.EX_SOFTWARE)
            if refusal.code < 500:
                raise failure from refusal
        except (OSError, http.client.HTTPException) as error:
            failure = CommandFailure(f"REST does not answer: {error}", os.EX_SOFTWARE)
        # posd may have been killed and is being restarted. The orderId makes a second attempt safe:
        # posd does not publish the same order twice.
        if time.monotonic() > deadline:
            raise failure
        time.sleep(_AGAIN_SECONDS)
