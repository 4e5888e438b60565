"""Tests of the feed: fast with NOTIFY, complete with the poll, and robust against invalid notifications."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID, uuid4

from attrs import define, field
from twisted.internet.defer import Deferred

from posd.database.pool import Pool
from posd.delivery import feed as module
from posd.delivery.feed import Feed
from posd.errors import Unavailable
from posd.store.stream import StreamPosition
from posd.testing.postgres import test_server
from posd.values import Seq, StreamHead, TenantId
from tests.database_case import REACTOR, DatabaseCase, until
from tests.schema_case import Entry, two_shops

AS_INSTALLED = module._POLL_SECONDS


@define(eq=False)
class FakeBell:
    """Implements `feed.OutboxSignal`."""

    rung: int = 0
    polled_at: int = 0

    def ring(self) -> None:
        self.rung += 1

    def rows_found_by_poll(self) -> None:
        self.polled_at += 1


@define(eq=False)
class FakeHub:
    """Implements `feed.ChannelWaker` and `feed.TerminalRevoker`, with sessions of the kitchen."""

    tenants: list[TenantId] = field(factory=lambda: [1])
    tail: Seq = 0
    """The position of the kitchen's channel."""
    stream_id: UUID = field(factory=uuid4)
    looks: int = 0
    checked: list[list[StreamHead]] = field(factory=list)
    rechecked: list[set[int] | None] = field(factory=list)
    rechecking: Deferred[None] | None = None
    """Delays a check of keys."""
    displaced: list[UUID] = field(factory=list)
    sent_away: list[UUID] = field(factory=list)
    forgotten: list[TenantId] = field(factory=list)
    trouble: Exception | None = None
    troubled: int = 0

    @property
    def positions(self) -> list[StreamPosition]:
        self.looks += 1
        return [(1, self.stream_id, self.tail)]

    async def check(self, heads: list[StreamHead]) -> None:
        if self.trouble is not None:
            self.troubled += 1
            raise self.trouble
        self.checked.append(heads)

    async def recheck(self, keys: Collection[int] | None = None) -> None:
        self.rechecked.append(None if keys is None else {*keys})
        if self.rechecking is not None:
            await self.rechecking

    def superseded(self, connection_id: UUID) -> None:
        self.displaced.append(connection_id)

    def erased(self, tenant_id: TenantId) -> None:
        self.forgotten.append(tenant_id)

    def disconnect(self, connection_id: UUID) -> None:
        self.sent_away.append(connection_id)


@define(eq=False)
class FakeCache:
    """Implements `feed.CredentialCache`."""

    keys: list[int] = field(factory=list)
    tenants: list[TenantId] = field(factory=list)

    looks: int = 0
    distrusted: int = 0

    def invalidate(self) -> None:
        self.distrusted += 1

    async def refresh(self) -> None:
        self.looks += 1

    def forget_key(self, key_id: int) -> None:
        self.keys.append(key_id)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        self.tenants.append(tenant_id)


class FeedCase(DatabaseCase):
    def template(self) -> str:
        return test_server().template(two_shops)

    def setUp(self) -> None:
        super().setUp()
        self.door, self.tills, self.keys = FakeBell(), FakeHub(), FakeCache()

    def new(self, database: Pool) -> Feed:
        return Feed(
            REACTOR,
            database,
            self.dsn,
            uuid4(),
            statement_timeout=5.0,
            bell=self.door,
            delivery=self.tills,
            revoker=self.tills,
            cache=self.keys,
        )

    async def started(self) -> Feed:
        """Return a feed that listens and has polled once."""
        self.database = Pool(REACTOR, self.dsn, size=2, statement_timeout=5.0)
        self.database.startService()
        self.addCleanup(self.database.stopService)
        await self.database.when_up()
        feed = self.new(self.database)
        feed.startService()
        self.addCleanup(feed.stopService)
        await until(
            lambda: feed.up and bool(self.tills.checked) and feed._changes_read_until is not None,
            "the feed is up",
        )
        return feed

    def notify(self, channel: str, payload: str = "") -> None:
        self.admin.run("SELECT pg_notify(%s, %s)", channel, payload)

    def tell(self, what: str) -> None:
        """Report a change to all nodes."""
        self.admin.run("SELECT dinedesk_main.pos_tell(%s)", what)

    async def passed(self) -> None:
        """Wait until the feed has processed all earlier changes."""
        last = uuid4()
        self.tell(f"disconnect {last}")
        await until(lambda: last in self.tills.sent_away, "the last change was read")


class NotificationTests(FeedCase):
    def setUp(self) -> None:
        super().setUp()
        # Without the poll, every event arrives by NOTIFY.
        self.patch(module, "_POLL_SECONDS", 3600.0)
        self.patch(module, "_RECHECK_SECONDS", 3600.0)
        self.patch(module, "_KEYS_SECONDS", 3600.0)

    async def test_a_notification_of_a_shop_rings_the_bell(self) -> None:
        await self.started()
        self.notify("posd_outbox")
        await until(lambda: self.door.rung == 1, "the bell has rung")

    async def test_a_notification_of_another_node_causes_a_read_of_the_moved_heads(self) -> None:
        await self.started()
        # The copied database counts as a restored backup. Its streams get new ids before an event is
        # numbered.
        self.admin.run("SELECT dinedesk_main.pos_recognise()")
        head = "SELECT stream_id FROM dinedesk_main.pos_heads WHERE tenant_id = 1"
        self.tills.stream_id, self.tills.tail = UUID(self.admin.value(head)), 2
        self.tills.checked.clear()
        self.admin.record(*[Entry(1)] * 2, Entry(2))
        self.notify("posd_events")
        await until(lambda: self.tills.looks == 1, "the heads were read")
        await until(lambda: self.tills.checked == [[]], "the heads were read without a change")
        self.admin.record(Entry(1), Entry(2))
        self.notify("posd_events")
        await until(lambda: len(self.tills.checked) == 2, "the heads were read again")
        self.assertEqual([(h.tenant_id, h.last_seq) for h in self.tills.checked[1]], [(1, 3)])

    async def test_a_flood_of_notifications_causes_a_few_reads(self) -> None:
        await self.started()
        self.admin.run(
            "SELECT pg_notify('posd_events', n::text) FROM generate_series(1, 2000) AS n"
        )
        await self.passed()
        self.assertLess(self.tills.looks, 20)

    async def test_a_changed_key_or_tenant_is_forgotten_and_checked(self) -> None:
        await self.started()
        self.tell("key 5")
        self.tell("tenant 2")
        await until(lambda: bool(self.keys.tenants), "both changes were read")
        self.assertEqual((self.keys.keys, self.keys.tenants), ([5], [2]))
        await until(lambda: self.tills.rechecked[-1:] == [None], "all keys were checked")
        self.assertIn(self.tills.rechecked, ([None], [{5}, None]))

    async def test_a_thousand_keys_that_end_together_are_checked_together(self) -> None:
        await self.started()
        self.admin.run(
            "SELECT dinedesk_main.pos_tell('key ' || n) FROM generate_series(1, 1000) AS n"
        )
        await until(lambda: bool(self.tills.rechecked), "the keys were checked")
        self.assertEqual(self.tills.rechecked, [{*range(1, 1001)}])

    async def test_a_flood_of_change_notifications_causes_a_few_reads(self) -> None:
        feed = await self.started()
        refresh, heard = feed._request_changes, [0]

        def counted() -> None:
            heard[0] += 1
            refresh()

        self.patch(feed, "_request_changes", counted)
        before, began = self.keys.looks, REACTOR.seconds()
        self.admin.run(
            "SELECT pg_notify('posd_control', 'key ' || n) FROM generate_series(1, 5000) AS n"
        )
        await until(lambda: heard[0] >= 5000, "all notifications were processed")
        seconds = REACTOR.seconds() - began
        self.assertLessEqual(self.keys.looks - before, 2 + seconds / module._CONTROL_PAUSE)
        self.assertEqual((self.keys.keys, self.tills.rechecked), ([], []))

    async def test_a_notification_does_not_contain_the_change(self) -> None:
        self.admin.run("LISTEN posd_control")
        self.tell("key 5")
        self.tell(f"disconnect {uuid4()}")
        self.assertEqual({*self.admin.notifications()}, {("posd_control", "")})

    async def test_a_change_is_read_once(self) -> None:
        await self.started()
        self.tell("key 5")
        await until(lambda: self.keys.keys == [5], "the change was read")
        self.tell("key 6")
        await until(lambda: self.keys.keys == [5, 6], "only the next change was read")

    async def test_changes_of_keys_are_read_each_time(self) -> None:
        await self.started()
        await until(lambda: self.keys.looks == 1, "the keys were read")
        for count, news in enumerate(("keys", "key 5", "tenant 2"), 2):
            self.tell(news)
            await until(lambda count=count: self.keys.looks == count, "the keys were read")  # type: ignore[misc]
        self.assertEqual(self.keys.distrusted, 1)

    async def test_a_superseded_connection_is_reported(self) -> None:
        await self.started()
        connection_id = uuid4()
        self.tell(f"superseded {connection_id}")
        await until(lambda: bool(self.tills.displaced), "the change was reported")
        self.assertEqual(self.tills.displaced, [connection_id])

    async def test_a_connection_that_an_operator_ends_is_reported(self) -> None:
        await self.started()
        connection_id = uuid4()
        self.tell(f"disconnect {connection_id}")
        await until(lambda: bool(self.tills.sent_away), "the change was reported")
        self.assertEqual((self.tills.sent_away, self.tills.displaced), ([connection_id], []))

    async def test_an_erasure_from_a_stream_is_reported(self) -> None:
        await self.started()
        self.tell("erased 1")
        await until(lambda: bool(self.tills.forgotten), "the change was reported")
        self.assertEqual(self.tills.forgotten, [1])

    async def test_invalid_notifications_are_ignored(self) -> None:
        feed = await self.started()
        for channel in ("posd_events", "posd_control", "posd_outbox"):
            for payload in ("", "1", "1 2 3", "key 5", f"1 {'9' * 5000}", f"disconnect {uuid4()}"):
                self.notify(channel, payload)
        await self.passed()
        self.assertEqual((self.keys.keys, self.keys.tenants, self.tills.displaced), ([], [], []))
        self.assertTrue(feed.up)


class PollTests(FeedCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(module, "_POLL_SECONDS", 0.05)

    async def without_notify(self) -> Feed:
        """Return a feed that receives no NOTIFY."""
        feed = await self.started()
        await feed._connection.execute("UNLISTEN *")
        return feed

    async def test_without_notify_the_poll_finds_rows_of_the_outbox(self) -> None:
        await self.without_notify()
        self.assertEqual(self.door.polled_at, 0)
        self.admin.run("SELECT dinedesk_main.pos_publish('kitchen', 'notice', '{}')")
        await until(lambda: self.door.polled_at > 0, "the change was found")
        self.assertEqual(self.door.rung, 0)

    async def test_the_poll_measures_the_age_of_the_oldest_row_of_the_outbox(self) -> None:
        feed = await self.started()
        self.admin.run("SELECT dinedesk_main.pos_publish('kitchen', 'notice', '{}')")
        self.admin.run("UPDATE dinedesk_main.pos_outbox SET created_at = now() - interval '1 hour'")
        await until(lambda: feed.outbox_seconds > 3000, "the outbox has a row")
        self.admin.run("DELETE FROM dinedesk_main.pos_outbox")
        await until(lambda: feed.outbox_seconds == 0, "the outbox is empty")

    async def test_without_notify_the_poll_finds_changes(self) -> None:
        self.patch(module, "_KEYS_SECONDS", 0.05)
        await self.without_notify()
        connection_id = uuid4()
        self.tell(f"superseded {connection_id}")
        await until(lambda: self.tills.displaced == [connection_id], "the change was reported")

    async def test_without_notify_the_poll_finds_moved_heads(self) -> None:
        await self.without_notify()
        self.admin.run("UPDATE dinedesk_main.pos_heads SET last_seq = 42")
        await until(
            lambda: [head.last_seq for head in self.tills.checked[-1]] == [42], "the head was read"
        )
        self.assertEqual([head.tenant_id for head in self.tills.checked[-1]], [1])

    async def test_the_default_poll_interval_is_below_a_second(self) -> None:
        self.assertLess(1.25 * AS_INSTALLED, 1.0)

    async def test_the_poll_continues_after_an_error(self) -> None:
        await self.started()
        for trouble in (Unavailable("away"), ZeroDivisionError()):
            self.tills.trouble, self.tills.troubled = trouble, 0
            await until(lambda: self.tills.troubled > 2, "the poll has failed")
            self.tills.trouble = None
            self.tills.checked.clear()
            await until(lambda: bool(self.tills.checked), "the poll goes on")
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))

    async def test_keys_are_checked_periodically(self) -> None:
        self.patch(module, "_RECHECK_SECONDS", 0.05)
        await self.started()
        await until(lambda: len(self.tills.rechecked) > 2, "the keys were checked")
        self.assertEqual([each for each in self.tills.rechecked if each is not None], [])


class FirstCanaryTests(FeedCase):
    async def test_the_first_canary_is_sent_at_once(self) -> None:
        self.patch(module, "_CANARY_SECONDS", 3600)
        feed = await self.started()
        await until(lambda: feed.canary_seconds is not None, "the canary has arrived")
        await until(lambda: feed._clock.offset is not None, "the clocks are compared")

    async def test_a_canary_that_may_still_arrive_does_not_count_as_lost(self) -> None:
        self.patch(module, "_CANARY_SECONDS", 3600)
        feed = await self.started()
        await until(lambda: feed.canary_seconds is not None, "the canary has arrived")
        await feed._connection.execute("UNLISTEN *")
        await feed._send_canary()
        await feed._send_canary()
        self.assertEqual((feed.canaries_missed, feed.canary_is_missing, feed.up), (0, False, True))

    async def test_one_that_is_lost_is_counted_once_and_makes_it_listen_anew(self) -> None:
        self.patch(module, "_CANARY_SECONDS", 3600)
        feed = await self.started()
        await until(lambda: feed.canary_seconds is not None, "the canary came")
        await feed._connection.execute("UNLISTEN *")
        await feed._send_canary()
        # Whatever is on its way now has taken too long.
        self.patch(module, "_CANARY_SECONDS", 0)
        await feed._send_canary()
        self.assertEqual((feed.canaries_missed, feed.canary_is_missing), (1, True))
        self.patch(module, "_CANARY_SECONDS", 3600)
        await until(lambda: feed.up and not feed.canary_is_missing, "it hears again")
        await self.passed()
        self.assertEqual((feed.canaries_missed, feed.canary_is_missing), (1, False))

    async def test_a_connection_that_is_lost_is_not_a_canary_that_is(self) -> None:
        self.patch(module, "_CANARY_SECONDS", 3600)
        feed = await self.started()
        for _ in range(3):
            await until(lambda: feed.canary_seconds is not None, "the canary came")
            await feed._connection.execute("UNLISTEN *")
            await feed._send_canary()
            for pid in self.backends("posd feed"):
                self.admin.run("SELECT pg_terminate_backend(%s)", pid)
            await until(lambda: feed.canary_seconds is None, "the connection went")
            self.tills.checked.clear()
            await until(lambda: feed.up and bool(self.tills.checked), "it looks what it missed")
        self.assertEqual(feed.canaries_missed, 0)


class CanaryTests(FeedCase):
    """Canaries that are sent from time to time. On a busy machine, some of them take longer than that."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(module, "_CANARY_SECONDS", 0.1)

    async def test_the_travel_time_of_a_canary_is_measured(self) -> None:
        feed = await self.started()
        await until(lambda: feed.canary_seconds is not None, "the canary came")
        self.assertGreater(feed.canary_seconds or 0.0, 0.0)

    async def test_a_lost_canary_replaces_the_listening_connection(self) -> None:
        feed = await self.started()
        await until(lambda: feed.canary_seconds is not None, "the canary came")
        missed = feed.canaries_missed
        await feed._connection.execute("UNLISTEN *")
        await until(lambda: feed.canaries_missed > missed, "one was missed")
        await until(lambda: feed.up and feed.canary_seconds is not None, "it hears again")


class StoppingTests(FeedCase):
    async def test_stopping_waits_for_running_rounds_and_cancels_none(self) -> None:
        self.patch(module, "_POLL_SECONDS", 0.001)
        feed = await self.started()
        self.admin.run("BEGIN; LOCK TABLE dinedesk_main.pos_outbox")
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        await until(lambda: self.admin.value(blocked) == 1, "the poll is running")
        stopping = feed.stopService()
        self.assertNoResult(stopping)
        self.admin.run("COMMIT")
        await stopping
        self.assertTrue(self.database.up)

    async def test_without_a_database_the_feed_stops_at_once(self) -> None:
        database = Pool(REACTOR, self.dsn, size=1, statement_timeout=5.0)
        feed = self.new(database)
        feed.startService()
        await feed.stopService()
