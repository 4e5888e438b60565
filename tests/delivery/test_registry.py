"""Connections are looked after in turn: the silent dropped, the quiet pinged, one for each device."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from uuid import UUID

from attrs import define, evolve
from twisted.internet.defer import Deferred, fail, succeed

from posd.delivery import registry as rosters
from posd.delivery.registry import ConnectionRegistry
from posd.delivery.session import Session
from posd.errors import StatementFailed, Unavailable
from posd.values import SUPERSEDED, TOO_SLOW, CloseReason, Terminal
from tests.delivery_case import NOON, FakeTransport, SessionCase, session_start, terminal


@define(eq=False)
class Till:
    """A connection that is looked after."""

    session: Session
    transport: FakeTransport

    @property
    def endings(self) -> list[CloseReason]:
        return self.transport.closings


class Broken(FakeTransport):
    """A connection with a bug."""

    def ping(self) -> None:
        raise ZeroDivisionError


class RosterCase(SessionCase):
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
        """Connect one; `later` orders the connections of a device."""
        transport = FakeTransport(heard_at=self.clock.seconds())
        connected = terminal(device, connected_at=NOON + timedelta(seconds=later))
        session = self.begin(
            connected, session_start(10, 10 if device else None), 10, transport=transport
        )
        self.registry.enter(session, transport)
        return Till(session, transport)

    def pass_seconds(self, seconds: int, *tills: Till) -> None:
        """Let time pass, in which these tills are heard of."""
        for _ in range(seconds):
            for till in tills:
                till.transport.heard_at = self.clock.seconds()
            self.clock.advance(1)


class PresenceTests(RosterCase):
    def test_it_knows_who_is_there(self) -> None:
        first, second = self.till(), self.till(None)
        self.assertEqual(len(self.registry), 2)
        self.assertEqual({each.session for each in self.registry}, {first.session, second.session})
        there = self.registry.get(first.session.terminal.connection_id)
        assert there is not None
        self.assertIs(there.session, first.session)

    def test_whoever_left_is_not_there(self) -> None:
        till = self.till()
        self.assertTrue(self.registry.leave(till.session))
        self.assertFalse(self.registry.leave(till.session))
        self.assertIsNone(self.registry.get(till.session.terminal.connection_id))
        self.assertEqual((len(self.registry), self.registry._by_device), (0, {}))
        self.assertEqual(sum(map(len, self.registry._groups)), 0)

    def test_somebody_may_leave_while_everybody_is_asked(self) -> None:
        tills = [self.till(None) for _ in range(3)]
        for each in self.registry:
            self.registry.leave(each.session)
        self.assertEqual((len(tills), len(self.registry)), (3, 0))


class LivenessTests(RosterCase):
    def test_a_till_that_is_not_heard_of_is_dropped_after_65_seconds(self) -> None:
        till = self.till()
        self.pass_seconds(65)
        self.assertEqual(till.transport.drops, [])
        # One group of five is looked at each second.
        self.pass_seconds(6)
        self.assertEqual(till.transport.drops[:1], [True])

    def test_a_till_that_was_told_of_a_slower_heartbeat_has_the_time_for_it(self) -> None:
        slow = self.till()
        self.registry.heartbeat = 5
        quick = self.till(None)
        self.pass_seconds(21)
        self.assertEqual((slow.transport.drops, quick.transport.drops[:1]), ([], [True]))
        self.pass_seconds(50)
        self.assertEqual(slow.transport.drops[:1], [True])

    def test_a_till_that_is_heard_of_stays(self) -> None:
        till = self.till()
        self.pass_seconds(600, till)
        self.assertEqual((till.transport.drops, till.endings), ([], []))

    def test_a_till_is_pinged_every_heartbeat(self) -> None:
        till = self.till()
        self.pass_seconds(35, till)
        self.assertEqual(till.transport.pings, 1)
        self.pass_seconds(350, till)
        self.assertIn(till.transport.pings, (12, 13))

    def test_a_silent_till_was_asked_before_it_is_dropped(self) -> None:
        tills = [self.till(None) for _ in range(20)]
        self.pass_seconds(64)
        self.assertTrue(all(till.transport.pings for till in tills))

    def test_tills_that_came_together_are_pinged_one_after_the_other(self) -> None:
        tills = [self.till(None) for _ in range(200)]
        most = before = 0
        for _ in range(40):
            self.pass_seconds(1, *tills)
            pinged = sum(till.transport.pings for till in tills)
            most, before = max(most, pinged - before), pinged
        self.assertGreaterEqual(before, 200)
        self.assertLess(most, 50)

    def test_a_till_that_takes_nothing_is_closed(self) -> None:
        till = self.till()
        till.transport.stall()
        self.pass_seconds(66, till)
        self.assertEqual(till.endings, [TOO_SLOW])

    def test_one_that_cannot_be_looked_after_keeps_no_other_from_it(self) -> None:
        broken = Broken(heard_at=self.clock.seconds())
        self.registry.enter(self.begin(terminal(), session_start(10), 10, transport=broken), broken)
        tills = [self.till(None) for _ in range(20)]
        self.pass_seconds(60, *tills)
        self.assertTrue(all(till.transport.pings for till in tills))
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))

    def test_nobody_is_looked_after_when_it_has_stopped(self) -> None:
        till = self.till()
        self.registry.stopService()
        self.pass_seconds(100)
        self.assertEqual((till.transport.drops, self.clock.getDelayedCalls()), ([], []))


class DeviceTests(RosterCase):
    """One live connection for each device: the newest that means to stay."""

    def test_a_frame_takes_the_devices_place(self) -> None:
        old, new = self.till(), self.till(later=1)
        self.registry.heard(new.session)
        self.assertEqual((old.endings, new.endings), ([SUPERSEDED], []))
        self.assertEqual(self.claims, [new.session.terminal])

    def contend(self, times: int) -> Till:
        """Let connections of one device displace one another at once; the one that stays."""
        till = self.till()
        for number in range(1, times + 1):
            displaced, till = till, self.till(later=number)
            self.registry.heard(till.session)
            self.assertEqual(displaced.endings, [SUPERSEDED])
            self.registry.leave(displaced.session)
        return till

    def test_where_two_machines_contend_only_ten_seconds_count(self) -> None:
        """mqttjs/MQTT.js#684, emqx/emqx#935: two clients of one name sent each other away without end."""
        till = self.contend(5)
        rival = self.till(later=6)
        self.registry.heard(rival.session)
        self.assertEqual((till.endings, rival.endings), ([], []))
        self.pass_seconds(16, till, rival)
        self.assertEqual((till.endings, rival.endings), ([SUPERSEDED], []))

    def test_that_is_over_after_a_quiet_minute(self) -> None:
        till = self.contend(5)
        self.pass_seconds(61, till)
        new = self.till(later=62)
        self.registry.heard(new.session)
        self.assertEqual(till.endings, [SUPERSEDED])

    def test_less_is_a_poor_network_and_another_device_is_not_concerned(self) -> None:
        self.contend(4)
        other, new = self.till("KITCHEN"), self.till("KITCHEN", later=1)
        self.registry.heard(new.session)
        self.assertEqual(other.endings, [SUPERSEDED])
        self.contend(1)

    def test_so_do_ten_seconds(self) -> None:
        old = self.till()
        self.pass_seconds(20, old)
        new = self.till(later=20)
        self.pass_seconds(9, old, new)
        self.assertEqual(old.endings, [])
        self.pass_seconds(6, old, new)
        self.assertEqual((old.endings, new.endings), ([SUPERSEDED], []))

    def test_one_that_is_gone_before_displaces_nobody(self) -> None:
        old = self.till()
        self.pass_seconds(20, old)
        test = self.till(later=20)
        self.pass_seconds(2, old, test)
        self.registry.leave(test.session)
        self.pass_seconds(60, old)
        self.assertEqual(old.endings, [])
        self.assertEqual(self.claims, [old.session.terminal])

    def test_an_older_one_does_not_displace_a_newer_one(self) -> None:
        old, new = self.till(), self.till(later=1)
        self.registry.heard(old.session)
        self.assertEqual((old.endings, new.endings), ([], []))

    def test_of_two_that_came_at_the_same_moment_one_stays(self) -> None:
        tills = [self.till(), self.till()]
        for till in tills:
            self.registry.heard(till.session)
        self.assertEqual(sorted(len(till.endings) for till in tills), [0, 1])

    def test_other_devices_and_other_tenants_are_left_alone(self) -> None:
        others = [self.till("KITCHEN"), self.till(None)]
        elsewhere = terminal("BAR", tenant=evolve(others[0].session.terminal.tenant, id=8))
        transport = FakeTransport()
        self.registry.enter(
            self.begin(elsewhere, session_start(10, 10), 10, transport=transport), transport
        )
        self.registry.heard(self.till(later=1).session)
        self.assertEqual([till.endings for till in others] + [transport.closings], [[]] * 3)

    def test_a_till_without_a_name_claims_nothing(self) -> None:
        till = self.till(None)
        self.registry.heard(till.session)
        self.pass_seconds(20, till)
        self.assertEqual(self.claims, [])

    def test_a_place_is_claimed_once(self) -> None:
        till = self.till()
        for _ in range(5):
            self.registry.heard(till.session)
        self.pass_seconds(30, till)
        self.assertEqual(len(self.claims), 1)

    def test_whoever_is_not_the_newest_of_all_nodes_goes(self) -> None:
        self.answers.append(succeed(False))
        till = self.till()
        self.registry.heard(till.session)
        self.assertEqual(till.endings, [SUPERSEDED])

    def test_a_claim_that_the_database_did_not_hear_is_made_again(self) -> None:
        self.answers.append(fail(Unavailable("away")))
        till = self.till()
        self.pass_seconds(20, till)
        self.assertEqual((len(self.claims), till.endings), (2, []))

    def test_a_claim_that_fails_by_a_bug_ends_nothing(self) -> None:
        answer: Deferred[bool] = Deferred()
        self.answers.append(answer)
        till = self.till()
        self.registry.heard(till.session)
        answer.errback(StatementFailed("no such view", "42P01"))
        self.assertEqual(till.endings, [])
        self.assertEqual(len(self.flushLoggedErrors(StatementFailed)), 1)

    def test_an_answer_that_comes_when_the_till_is_gone_changes_nothing(self) -> None:
        answer: Deferred[bool] = Deferred()
        self.answers.append(answer)
        till = self.till()
        self.registry.heard(till.session)
        self.registry.leave(till.session)
        till.session.closed()
        answer.callback(False)
        self.assertEqual(till.endings, [])

    def test_a_till_that_is_not_there_claims_nothing(self) -> None:
        till = self.till()
        self.registry.leave(till.session)
        self.registry.heard(till.session)
        self.assertEqual(self.claims, [])


class SightingTests(RosterCase):
    def sighted(self) -> dict[UUID, tuple[float, int]]:
        return {connection: (ago, seq) for connection, ago, seq in self.registry.heartbeats()}

    def test_only_what_is_new_is_told(self) -> None:
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

    def test_when_a_till_was_heard_of_is_told_as_so_long_ago(self) -> None:
        till = self.till()
        self.clock.advance(100)
        ((ago, _),) = self.sighted().values()
        self.assertEqual(ago, 100)
        self.assertEqual(till.transport.heard_at, 0)

    def test_the_turns_add_up(self) -> None:
        self.assertEqual(rosters._GROUPS * rosters._GROUP_SECONDS, rosters._GRACE_SECONDS)
