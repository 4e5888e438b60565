"""Sequencers for the shops `kitchen` (tenant 1) and `grill` (tenant 2)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from uuid import uuid4

from attrs import frozen
from psycopg2.extras import Json
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from posd.database.dsn import with_reader_user
from posd.database.reconnecting import ReconnectingConnection, TransactionExecutor
from posd.database.shop_readers import ShopReaders
from posd.events import normalise
from posd.publishing.doorman import Doorman
from posd.publishing.publication import Publication, PublicationResult
from posd.publishing.sequencer import Sequencer
from posd.store.idempotency import IdempotencyKey
from posd.testing.postgres import test_server
from posd.values import AppendedEvents
from tests.database_case import REACTOR, DatabaseCase, until
from tests.schema_case import two_shops

T = TypeVar("T")

KITCHEN: Final = 1
GRILL: Final = 2
SCHEMAS: Final = {KITCHEN: "dinedesk_kitchen", GRILL: "dinedesk_grill"}
SLUGS: Final = {KITCHEN: "kitchen", GRILL: "grill"}
EVENT_BYTES: Final = 4096


class CountingLink(ReconnectingConnection):
    """A link that counts its transactions."""

    transactions = 0

    async def transaction(
        self,
        work: Callable[[TransactionExecutor], Awaitable[T]],
        *,
        deadline: float | None = None,
        work_seconds: float | None = None,
    ) -> T:
        self.transactions += 1
        return await ReconnectingConnection.transaction(
            self, work, deadline=deadline, work_seconds=work_seconds
        )


@frozen
class Logged:
    """A row of `pos_sync_logs`."""

    seq: int | None
    type: str
    data: Any
    failure: str | None


class SequencerCase(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.doormen: dict[Sequencer, Doorman] = {}

    def template(self) -> str:
        return test_server().template(two_shops)

    async def linked(self, dsn: str | None = None) -> CountingLink:
        connection = CountingLink(
            REACTOR, dsn or self.dsn, name="posd sequencer", statement_timeout=300.0
        )
        await self.up(connection)
        return connection

    async def readers(self) -> ShopReaders:
        """Return the reader sessions for shops' tables, all of them connected."""
        readers = ShopReaders(REACTOR, with_reader_user(self.dsn))
        readers.startService()
        self.addCleanup(readers.stopService)
        await until(
            lambda: all(each.connection.up for each in readers._slots), "all readers are up"
        )
        return readers

    async def started(
        self,
        connection: ReconnectingConnection | None = None,
        appended: Callable[[AppendedEvents], None] = lambda each: None,
    ) -> Sequencer:
        """Start a sequencer with the clock of the test, which controls the pauses of tenants."""
        connection, node_id = connection or await self.linked(), uuid4()
        sequencer = Sequencer(
            self.clock,
            connection,
            await self.readers(),
            node_id,
            event_bytes=EVENT_BYTES,
            connections_here=lambda tenant_id: 0,
            appended=appended,
            fence_lost=lambda: self.doormen[sequencer].lease_lost(),
        )
        self.doormen[sequencer] = doorman = Doorman(
            self.clock,
            connection,
            node_id,
            "test",
            changed=lambda fence: setattr(sequencer, "fence", fence),
        )
        sequencer.startService()
        doorman.startService()
        self.addCleanup(doorman.stopService)
        self.addCleanup(sequencer.stopService)
        await until(
            lambda: doorman._claim is None and self.rests(sequencer),
            "it is known who is the doorman",
        )
        return sequencer

    async def hand_over(self, sequencer: Sequencer) -> None:
        """Let the doorman's lease expire, and give it to this node. The old node does not know yet."""
        self.admin.run(
            "UPDATE dinedesk_main.pos_doorman SET node_id = NULL, lease_until = '-infinity'"
        )
        doorman = self.doormen[sequencer]
        await until(lambda: doorman._claim is None, "nothing is asked at the moment")
        doorman._renew()
        await until(lambda: doorman._claim is None, "the lease was claimed")

    def publish(self, kind: str, data: object, tenant_id: int = KITCHEN) -> int:
        """Publish by SQL. Return the id of the row in the outbox."""
        publish = "SELECT dinedesk_main.pos_publish(%s, %s, %s)"
        return int(self.admin.value(publish, SLUGS[tenant_id], kind, Json(data)))

    def place_order(self, tenant_id: int = KITCHEN, name: str = "Ann") -> str:
        """Insert an order into the shop's own tables. Return its id."""
        schema = SCHEMAS[tenant_id]
        partition_key = (
            f"INSERT INTO {schema}.orders (customer_name, total_amount) VALUES (%s, 5) RETURNING id"
        )
        return str(self.admin.value(partition_key, name))

    def log_of(self, tenant_id: int = KITCHEN) -> list[Logged]:
        rows = self.admin.rows(
            "SELECT seq, event_type, event_data::text, failure"
            f" FROM {SCHEMAS[tenant_id]}.pos_sync_logs ORDER BY id"
        )
        return [Logged(seq, kind, json.loads(data), failure) for seq, kind, data, failure in rows]

    def seqs(self, tenant_id: int = KITCHEN) -> list[int | None]:
        return [logged.seq for logged in self.log_of(tenant_id)]

    @property
    def waiting(self) -> int:
        """Return the number of rows in the outbox."""
        return int(self.admin.value("SELECT count(*) FROM dinedesk_main.pos_outbox"))

    async def emptied(self, sequencer: Sequencer) -> None:
        """Wait until all rows are numbered.

        On a busy machine, reading a shop's tables may take so long that the shop is paused. Advance the
        clock then.
        """

        def empty() -> bool:
            if not self.waiting:
                return True
            if self.rests(sequencer):
                self.clock.advance(0.1)
                sequencer.wake()
            return False

        has_lease = "SELECT fence FROM dinedesk_main.pos_doorman"
        if sequencer.fence != self.admin.value(has_lease):
            await self.hand_over(sequencer)
        sequencer.wake()
        await until(empty, "the outbox is empty")
        await until(lambda: self.rests(sequencer), "the sequencer rests")

    def rests(self, sequencer: Sequencer) -> bool:
        """Return whether nothing is being numbered and no shop's tables are being read."""
        return not sequencer._working and not sequencer._outbox.reading

    async def answered(self, running: Deferred[Any]) -> Any:
        """Return the result of work, and advance the clock for retries."""

        def done() -> bool:
            self.clock.advance(0.001)
            return running.called

        await until(done, "it is answered")
        return await running

    async def rested(self, sequencer: Sequencer) -> None:
        """Wake it and wait until it rests."""
        sequencer.wake()
        await until(lambda: self.rests(sequencer), "the sequencer rests")


def publication(
    *events: tuple[str, Mapping[str, object]],
    tenant_id: int = KITCHEN,
    key: str | None = None,
    fingerprint: bytes = b"f",
) -> Publication:
    """Return a request to publish, with or without an Idempotency-Key."""
    call = None
    if key is not None:
        call = IdempotencyKey(tenant_id, "platform", "POST /events", key, fingerprint.ljust(32))
    return Publication(tenant_id, [normalise.draft(kind, data) for kind, data in events], call)


def notice(number: int = 1, **more: object) -> tuple[str, Mapping[str, object]]:
    return "notice", {"number": number, **more}


def order(order_id: str, **more: object) -> tuple[str, Mapping[str, object]]:
    return "new_order", {"orderId": order_id, "totalAmount": 5, **more}


def first(published: PublicationResult) -> int | None:
    return published.ids[0]
