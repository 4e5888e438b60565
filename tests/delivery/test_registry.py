"""Tests of the registry: silent connections are dropped, quiet ones pinged, and each device has one."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from uuid import UUID

from attrs import define, evolve
from twisted.internet.defer import Deferred, fail, succeed

from posd.delivery import registry
from posd.delivery.registry import ConnectionRegistry
from posd.delivery.session import Session
from posd.errors import StatementFailed, Unavailable
from posd.values import SUPERSEDED, TOO_SLOW, CloseReason, Terminal
from tests.delivery_case import NOON, FakeTransport, SessionCase, session_start, terminal


@define(eq=False)
class Till:
    """A registered connection."""

    session: Session
    transport: FakeTransport

    @property
    def endings(self) -> list[CloseReason]:
        return self.transport.closings


class Broken(FakeTransport):
    """A connection whose methods raise an exception."""

    def ping(self) -> None:
        raise ZeroDivisionError


class RegistryCase(SessionCase):
    heartbeat = 30.0

    def setUp(self) -> None:
        super().setUp()
        self.claims: list[Terminal] = []
        self.answers: list[Deferred[bool]] = []
        self.registry = ConnectionRegistry(self.clock, self.heartbeat, self.claim)
        self.registry.startService()
        self.addCleanup(self.registry.stopService)

    def claim(self, terminal: Terminal) -> Awaitable[bool]:
        self.claims.append(terminal)
        return self.answers.pop(0) if self.answers else succeed(True)

    def till(self, device: str | None = "BAR", *, later: float = 0) -> Till:
        """Connect a till. `later` orders the connections of a device, in seconds."""
        transport = FakeTransport(heard_at=self.clock.seconds())
        connected = terminal(device, connected_at=NOON + timedelta(seconds=later))
        session = self.begin(
            connected, session_start(10, 10 if device else None), 10, transport=transport
        )
        self.registry.enter(session, transport)
        return Till(session, transport)

    def pass_seconds(self, seconds: int, *tills: Till) -> None:
        """Advance the clock. The given tills send data every second."""
        for _ in range(seconds):
            for till in tills:
                till.transport.heard_at = self.clock.seconds()
            self.clock.advance(1)


class PresenceTests(RegistryCase):
    def test_connections_are_found_by_id(self) -> None:
        first, second = self.till(), self.till(None)
        self.assertEqual(len(self.registry), 2)
        self.assertEqual({each.session for each in self.registry}, {first.session, second.session})
        there = self.registry.get(first.session.terminal.connection_id)
        assert there is not None
        self.assertIs(there.session, first.session)

    def test_a_connection_that_left_is_not_found(self) -> None:
        till = self.till()
        self.assertTrue(self.registry.leave(till.session))
        self.assertFalse(self.registry.leave(till.session))
        self.assertIsNone(self.registry.get(till.session.terminal.connection_id))
        self.assertEqual((len(self.registry), self.registry._by_device), (0, {}))
        self.assertEqual(sum(map(len, self.registry._groups)), 0)

    def test_connections_may_leave_during_an_iteration(self) -> None:
        tills = [self.till(None) for _ in range(3)]
        for each in self.registry:
            self.registry.leave(each.session)
        self.assertEqual((len(tills), len(self.registry)), (3, 0))


class LivenessTests(RegistryCase):
    def test_a_silent_till_is_dropped_after_65_seconds(self) -> None:
        till = self.till()
        self.pass_seconds(65)
        self.assertEqual(till.transport.drops, [])
        # One of five groups is checked each second.
        self.pass_seconds(6)
        self.assertEqual(till.transport.drops[:1], [True])

    def test_a_till_keeps_the_heartbeat_that_it_was_told(self) -> None:
        slow = self.till()
        self.registry.heartbeat = 5
        quick = self.till(None)
        self.pass_seconds(21)
        self.assertEqual((slow.transport.drops, quick.transport.drops[:1]), ([], [True]))
        self.pass_seconds(50)
        self.assertEqual(slow.transport.drops[:1], [True])

    def test_a_till_that_sends_data_stays(self) -> None:
        till = self.till()
        self.pass_seconds(600, till)
        self.assertEqual((till.transport.drops, till.endings), ([], []))

    def test_a_till_is_pinged_every_heartbeat(self) -> None:
        till = self.till()
        self.pass_seconds(35, till)
        self.assertEqual(till.transport.pings, 1)
        self.pass_seconds(350, till)
        self.assertIn(till.transport.pings, (12, 13))

    def test_a_silent_till_is_pinged_before_it_is_dropped(self) -> None:
        tills = [self.till(None) for _ in range(20)]
        self.pass_seconds(64)
        self.assertTrue(all(till.transport.pings for till in tills))

    def test_tills_that_connect_together_are_pinged_at_different_times(self) -> None:
        tills = [self.till(None) for _ in range(200)]
        most = before = 0
        for _ in range(40):
            self.pass_seconds(1, *tills)
            pinged = sum(till.transport.pings for till in tills)
            most, before = max(most, pinged - before), pinged
        self.assertGreaterEqual(before, 200)
        self.assertLess(most, 50)

    def test_a_till_that_does_not_read_is_closed(self) -> None:
        till = self.till()
        till.transport.stall()
        self.pass_seconds(66, till)
        self.assertEqual(till.endings, [TOO_SLOW])

    def test_a_connection_whose_check_fails_stops_no_other(self) -> None:
        broken = Broken(heard_at=self.clock.seconds())
        self.registry.enter(self.begin(terminal(), session_start(10), 10, transport=broken), broken)
        tills = [self.till(None) for _ in range(20)]
        self.pass_seconds(60, *tills)
        self.assertTrue(all(till.transport.pings for till in tills))
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))

    def test_no_connection_is_checked_after_the_stop(self) -> None:
        till = self.till()
        self.registry.stopService()
        self.pass_seconds(100)
        self.assertEqual((till.transport.drops, self.clock.getDelayedCalls()), ([], []))


class DeviceTests(RegistryCase):
    """A device has one live connection: the newest that has sent a frame or was open for ten seconds."""

    def test_a_frame_claims_the_device(self) -> None:
        old, new = self.till(), self.till(later=1)
        self.registry.heard(new.session)
        self.assertEqual((old.endings, new.endings), ([SUPERSEDED], []))
        self.assertEqual(self.claims, [new.session.terminal])

    def contend(self, times: int) -> Till:
        """Let connections of one device displace each other. Return the last one."""
        till = self.till()
        for number in range(1, times + 1):
            displaced, till = till, self.till(later=number)
            self.registry.heard(till.session)
            self.assertEqual(displaced.endings, [SUPERSEDED])
            self.registry.leave(displaced.session)
        return till

    def test_a_contested_device_is_claimed_only_after_ten_seconds(self) -> None:
        """mqttjs/MQTT.js#684, emqx/emqx#935: two clients of one name displaced each other without end."""
        till = self.contend(5)
        rival = self.till(later=6)
        self.registry.heard(rival.session)
        self.assertEqual((till.endings, rival.endings), ([], []))
        self.pass_seconds(16, till, rival)
        self.assertEqual((till.endings, rival.endings), ([SUPERSEDED], []))

    def test_a_device_is_not_contested_after_a_quiet_minute(self) -> None:
        till = self.contend(5)
        self.pass_seconds(61, till)
        new = self.till(later=62)
        self.registry.heard(new.session)
        self.assertEqual(till.endings, [SUPERSEDED])

    def test_fewer_displacements_or_those_of_other_devices_do_not_count(self) -> None:
        self.contend(4)
        other, new = self.till("KITCHEN"), self.till("KITCHEN", later=1)
        self.registry.heard(new.session)
        self.assertEqual(other.endings, [SUPERSEDED])
        self.contend(1)

    def test_a_connection_open_for_ten_seconds_claims_the_device(self) -> None:
        old = self.till()
        self.pass_seconds(20, old)
        new = self.till(later=20)
        self.pass_seconds(9, old, new)
        self.assertEqual(old.endings, [])
        self.pass_seconds(6, old, new)
        self.assertEqual((old.endings, new.endings), ([SUPERSEDED], []))

    def test_a_connection_that_ends_before_displaces_no_other(self) -> None:
        old = self.till()
        self.pass_seconds(20, old)
        test = self.till(later=20)
        self.pass_seconds(2, old, test)
        self.registry.leave(test.session)
        self.pass_seconds(60, old)
        self.assertEqual(old.endings, [])
        self.assertEqual(self.claims, [old.session.terminal])

    def test_an_older_connection_does_not_displace_a_newer_one(self) -> None:
        old, new = self.till(), self.till(later=1)
        self.registry.heard(old.session)
        self.assertEqual((old.endings, new.endings), ([], []))

    def test_of_two_connections_of_the_same_moment_one_stays(self) -> None:
        tills = [self.till(), self.till()]
        for till in tills:
            self.registry.heard(till.session)
        self.assertEqual(sorted(len(till.endings) for till in tills), [0, 1])

    def test_connections_of_other_devices_and_tenants_stay(self) -> None:
        others = [self.till("KITCHEN"), self.till(None)]
        elsewhere = terminal("BAR", tenant=evolve(others[0].session.terminal.tenant, id=8))
        transport = FakeTransport()
        self.registry.enter(
            self.begin(elsewhere, session_start(10, 10), 10, transport=transport), transport
        )
        self.registry.heard(self.till(later=1).session)
        self.assertEqual([till.endings for till in others] + [transport.closings], [[]] * 3)

    def test_a_till_without_a_device_name_claims_nothing(self) -> None:
        till = self.till(None)
        self.registry.heard(till.session)
        self.pass_seconds(20, till)
        self.assertEqual(self.claims, [])

    def test_a_connection_claims_its_device_once(self) -> None:
        till = self.till()
        for _ in range(5):
            self.registry.heard(till.session)
        self.pass_seconds(30, till)
        self.assertEqual(len(self.claims), 1)

    def test_a_connection_that_is_not_the_newest_of_all_nodes_is_closed(self) -> None:
        self.answers.append(succeed(False))
        till = self.till()
        self.registry.heard(till.session)
        self.assertEqual(till.endings, [SUPERSEDED])

    def test_a_claim_without_a_database_is_repeated(self) -> None:
        self.answers.append(fail(Unavailable("away")))
        till = self.till()
        self.pass_seconds(20, till)
        self.assertEqual((len(self.claims), till.endings), (2, []))

    def test_a_claim_that_raises_closes_no_connection(self) -> None:
        answer: Deferred[bool] = Deferred()
        self.answers.append(answer)
        till = self.till()
        self.registry.heard(till.session)
        answer.errback(StatementFailed("no such view", "42P01"))
        self.assertEqual(till.endings, [])
        self.assertEqual(len(self.flushLoggedErrors(StatementFailed)), 1)

    def test_the_result_of_a_claim_is_ignored_after_the_connection_ended(self) -> None:
        answer: Deferred[bool] = Deferred()
        self.answers.append(answer)
        till = self.till()
        self.registry.heard(till.session)
        self.registry.leave(till.session)
        till.session.closed()
        answer.callback(False)
        self.assertEqual(till.endings, [])

    def test_an_unregistered_connection_claims_nothing(self) -> None:
        till = self.till()
        self.registry.leave(till.session)
        self.registry.heard(till.session)
        self.assertEqual(self.claims, [])


class HeartbeatTests(RegistryCase):
    def sighted(self) -> dict[UUID, tuple[float, int]]:
        return {connection: (ago, seq) for connection, ago, seq in self.registry.heartbeats()}

    def test_only_changed_connections_are_reported(self) -> None:
        self.clock.advance(1)
        first, second = self.till("BAR"), self.till("KITCHEN")
        self.assertEqual(len(self.sighted()), 2)
        self.assertEqual(self.sighted(), {})
        self.clock.advance(5)
        first.transport.heard_at = self.clock.seconds()
        self.assertEqual({*self.sighted()}, {first.session.terminal.connection_id})
        self.channel.wake(self.log.commit())
        sighted = self.sighted()
        self.assertEqual(
            {*sighted},
            {first.session.terminal.connection_id, second.session.terminal.connection_id},
        )
        self.assertEqual({seq for _, seq in sighted.values()}, {11})

    def test_the_time_of_the_last_data_is_reported_as_seconds_ago(self) -> None:
        till = self.till()
        self.clock.advance(100)
        ((ago, _),) = self.sighted().values()
        self.assertEqual(ago, 100)
        self.assertEqual(till.transport.heard_at, 0)

    def test_all_groups_are_checked_within_the_grace_period(self) -> None:
        self.assertEqual(registry._GROUPS * registry._GROUP_SECONDS, registry._GRACE_SECONDS)
