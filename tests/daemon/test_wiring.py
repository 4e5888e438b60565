"""Tests of the check of the database before numbering, of start and stop, and of reloads."""

from __future__ import annotations

from functools import partial
from uuid import UUID, uuid4

from attrs import evolve, fields_dict
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import Config, DatabaseConfig, DeliveryConfig, LimitsConfig
from posd.daemon.shutdown import Shutdown
from posd.daemon.wiring import Application
from posd.database.connection import Parameters, Row
from posd.delivery.channel import TenantChannel
from posd.values import Event, Seq, StreamHead, Tenant
from tests.delivery_case import STREAM, terminal

TENANT = Tenant(7, "kitchen", "Kitchen", "dinedesk_kitchen")


class ScriptedSession:
    """A fake database with a fingerprint and a head, which records changes."""

    def __init__(self, head: StreamHead, *, known: bool = True) -> None:
        self.head = head
        self.known = known
        self.changes: list[tuple[str, Parameters]] = []

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        if "pos_recognise" in sql:
            return [(self.known,)]
        head = self.head
        return [(head.tenant_id, str(head.stream_id), head.last_seq, head.pruned_seq)]

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        self.changes.append((sql, parameters))


class RecognitionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.parts = Application(
            MemoryReactorClock(), Config(database=DatabaseConfig(dsn="dbname=posd"))
        )
        self.stream_id = uuid4()
        delivered = StreamHead(TENANT.id, self.stream_id, 10)
        self.parts.hub.channels._by_tenant[TENANT.id] = TenantChannel(
            TENANT, delivered, self.nothing
        )

    async def nothing(self, seq: Seq, limit: int) -> list[Event]:
        return []

    def recognise(self, last_seq: Seq, stream_id: UUID) -> list[tuple[str, Parameters]]:
        session = ScriptedSession(StreamHead(TENANT.id, stream_id, last_seq))
        self.successResultOf(Deferred.fromCoroutine(self.parts._identify_database(session)))
        return session.changes

    def test_a_head_behind_delivered_events_gives_the_stream_a_new_id(self) -> None:
        ((sql, parameters),) = self.recognise(9, self.stream_id)
        self.assertIn("pos_begin_epochs", sql)
        self.assertEqual(parameters, ([TENANT.id], [str(self.stream_id)], [9], [9]))

    def test_a_head_at_the_delivered_position_changes_nothing(self) -> None:
        self.assertEqual(self.recognise(10, self.stream_id), [])

    def test_events_delivered_while_heads_are_read_change_nothing(self) -> None:
        session = ScriptedSession(StreamHead(TENANT.id, self.stream_id, 10))
        channel, look = self.parts.hub.channels._by_tenant[TENANT.id], session.query

        async def query(sql: str, parameters: Parameters = ()) -> list[Row]:
            rows = await look(sql, parameters)
            if "pos_recognise" not in sql:
                # Another node has numbered an event meanwhile, and this node has delivered it.
                channel.tail = 11
            return rows

        self.patch(session, "query", query)
        self.successResultOf(Deferred.fromCoroutine(self.parts._identify_database(session)))
        self.assertEqual(session.changes, [])

    def test_a_stream_with_another_id_keeps_it(self) -> None:
        self.assertEqual(self.recognise(3, uuid4()), [])

    def test_another_database_is_told_how_far_devices_were_sent(self) -> None:
        self.parts.hub.sent_by_poll(terminal("BAR"), 9)
        session = ScriptedSession(StreamHead(TENANT.id, self.stream_id, 10), known=False)
        with capturedLogs() as logged:
            self.successResultOf(Deferred.fromCoroutine(self.parts._identify_database(session)))
        self.assertEqual([each["log_level"].name for each in logged], ["warn"])
        self.assertEqual(session.changes, [])
        self.assertEqual(
            self.parts.presence._pending_writes.sent_positions, {(TENANT.id, "BAR", STREAM): 9}
        )


class LifeTests(SynchronousTestCase):
    def test_all_services_are_started_and_stopped(self) -> None:
        parts = Application(
            MemoryReactorClock(), Config(database=DatabaseConfig(dsn="dbname=posd"))
        )
        services = {
            name: part
            for name in fields_dict(Application)
            if isinstance(part := getattr(parts, name), Service)
        }
        started: list[str] = []
        stopped: list[str] = []
        for name, part in services.items():
            self.patch(part, "startService", partial(started.append, name))
            self.patch(part, "stopService", partial(stopped.append, name))
        parts.start()
        self.assertCountEqual(started, services)
        self.assertIn("retention", started)
        self.successResultOf(Deferred.fromCoroutine(parts.stop(Shutdown(parts.reactor, 30.0), 0)))
        self.assertCountEqual(stopped, services)
        self.assertEqual((started[0], stopped[-1]), ("database", "database"))


class ReloadTests(SynchronousTestCase):
    """All limits can be changed while posd runs."""

    def setUp(self) -> None:
        self.settings = Config(database=DatabaseConfig(dsn="dbname=posd"))
        self.parts = Application(MemoryReactorClock(), self.settings)

    def limits(self) -> dict[str, object]:
        """Return the values in force by key."""
        parts, hub = self.parts, self.parts.hub
        return {
            "event_bytes": parts.sequencer.event_bytes,
            "send_queue_total": hub._send_budget.limit,
            "connections": parts.connections.total,
            "connections_per_tenant": parts.connections.per_tenant,
            "failed_auth_per_minute": parts.failed_attempts.per_minute,
            "publish_per_second_per_tenant": parts.publishing_endpoints.per_second,
            "requests_per_second_per_credential": parts.rates.requests_per_credential,
            "bytes_per_second_per_credential": parts.rates.bytes_per_credential,
            "requests_per_second_per_address": parts.rates.requests_per_address,
            "points_per_day_per_till": parts.loyalty.points_per_day,
            "heartbeat": (hub._heartbeat, hub._registry.heartbeat),
            "send_queue_bytes": hub._send_queue_bytes,
            "retention": parts.retention.seconds,
        }

    def test_each_of_them_alone(self) -> None:
        before = self.limits()
        self.assertEqual(before.keys(), {*fields_dict(LimitsConfig), *fields_dict(DeliveryConfig)})
        for table in ("limits", "delivery"):
            for key in fields_dict(type(getattr(self.settings, table))):
                tables = getattr(self.settings, table)
                changed = evolve(tables, **{key: getattr(tables, key) + 1})
                self.parts.apply(evolve(self.settings, **{table: changed}))
                now = self.limits()
                self.assertEqual({each for each in now if now[each] != before[each]}, {key})
                self.assertNotIn(None, now.values())
        self.parts.apply(self.settings)
        self.assertEqual(self.limits(), before)


class RetriesTests(SynchronousTestCase):
    def test_all_links_of_a_node_try_when_one_has_reached_the_server(self) -> None:
        parts = Application(
            MemoryReactorClock(), Config(database=DatabaseConfig(dsn="dbname=posd"))
        )
        links = [*parts.database._connections, parts.numbering, parts.feed._connection]
        self.assertEqual({connection._retries for connection in links}, {parts.database.retries})
