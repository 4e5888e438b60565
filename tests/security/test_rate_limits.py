"""Rates, failed attempts, connections and addresses: what is let through, and what has to wait."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_network

from attrs import define
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import TooManyRequests, Unavailable
from posd.security.rate_limits import (
    Connections,
    FailedAttempts,
    Lease,
    TokenBucket,
    client_address,
)

Held = tuple[Lease, int, str | None]

_pauses = st.floats(0, 120)


@define
class TimeOfDay:
    """A clock that, unlike Twisted's, can be set back."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class TokenBucketTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = TimeOfDay()
        self.bucket = TokenBucket(2, 5, self.clock)

    def test_a_burst_is_let_through_and_then_the_rate(self) -> None:
        self.assertEqual([self.bucket.take() for _ in range(6)], [True] * 5 + [False])
        self.clock.now += 1
        self.assertEqual([self.bucket.take() for _ in range(3)], [True, True, False])

    def test_a_refused_request_costs_nothing(self) -> None:
        self.assertTrue(self.bucket.take(4))
        self.assertFalse(self.bucket.take(2))
        self.assertTrue(self.bucket.take(1))

    def test_the_wait_is_until_there_is_enough(self) -> None:
        self.assertEqual(self.bucket.wait(5), 0.0)
        self.bucket.take(5)
        self.assertEqual([self.bucket.wait(), self.bucket.wait(4)], [0.5, 2.0])

    def test_a_long_pause_saves_up_no_more_than_a_burst(self) -> None:
        self.clock.now += 3600
        self.assertEqual(sum(self.bucket.take() for _ in range(100)), 5)

    def test_more_than_a_burst_is_let_through_when_full_and_paid_for_later(self) -> None:
        self.assertTrue(self.bucket.take(25))
        self.assertEqual(self.bucket.wait(), 10.5)
        self.clock.now += 10.5
        self.assertTrue(self.bucket.take())
        self.assertFalse(self.bucket.take(25))

    def test_a_clock_that_is_set_back_stops_the_refill_only_for_that_moment(self) -> None:
        self.bucket.take(5)
        self.clock.now -= 3600
        self.assertFalse(self.bucket.take())
        self.clock.now += 1
        self.assertTrue(self.bucket.take(2))

    def test_a_new_rate_holds_from_now_on(self) -> None:
        self.bucket.take(5)
        self.bucket.rate = 100
        self.clock.now += 0.05
        self.assertTrue(self.bucket.take(5))

    @given(
        st.integers(1, 1000),
        st.integers(1, 1000),
        st.lists(st.tuples(_pauses, st.integers(1, 1500)), max_size=30),
    )
    def test_no_more_than_the_rate_and_one_burst_ever_passes(
        self, rate: int, burst: int, requests: list[tuple[float, int]]
    ) -> None:
        clock = TimeOfDay()
        began = clock.now
        bucket = TokenBucket(rate, burst, clock)
        taken = 0
        for pause, count in requests:
            clock.now += pause
            before = taken
            if bucket.take(count):
                taken += count
                allowed = burst + rate * (clock.now - began) + 0.01
                self.assertLessEqual(before + min(count, burst), allowed)

    @given(
        st.integers(1, 1000),
        st.integers(1, 1000),
        st.lists(st.tuples(_pauses, st.integers(1, 1500)), max_size=10),
        st.integers(1, 1500),
    )
    def test_whoever_waits_as_told_gets_what_was_asked_for(
        self, rate: int, burst: int, requests: list[tuple[float, int]], count: int
    ) -> None:
        clock = TimeOfDay()
        bucket = TokenBucket(rate, burst, clock)
        for pause, other in requests:
            clock.now += pause
            bucket.take(other)
        clock.now += bucket.wait(count)
        self.assertTrue(bucket.take(count))


class FailedAttemptsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = TimeOfDay()
        self.attempts = FailedAttempts(3, self.clock)

    def failed(self, *addresses: str) -> None:
        for address in addresses:
            self.attempts.failed(address)

    def test_an_address_is_blocked_after_its_last_attempt(self) -> None:
        told = []
        for _ in range(4):
            told.append(self.attempts.blocked("192.0.2.1"))
            self.failed("192.0.2.1")
        self.assertEqual(told, [None, None, None, 60])

    def test_the_block_ends_when_the_oldest_failure_is_a_minute_old(self) -> None:
        self.failed("192.0.2.1")
        self.clock.now += 20
        self.failed("192.0.2.1", "192.0.2.1")
        self.assertEqual(self.attempts.blocked("192.0.2.1"), 40)
        self.clock.now += 39.5
        self.assertEqual(self.attempts.blocked("192.0.2.1"), 1)
        self.clock.now += 0.5
        self.assertIsNone(self.attempts.blocked("192.0.2.1"))
        self.failed("192.0.2.1")
        self.assertEqual(self.attempts.blocked("192.0.2.1"), 20)

    def test_one_address_is_not_blocked_for_another(self) -> None:
        self.failed("192.0.2.1", "192.0.2.1", "192.0.2.1")
        self.assertIsNone(self.attempts.blocked("192.0.2.2"))

    def test_ipv6_counts_by_its_64(self) -> None:
        self.failed("2001:db8::1", "2001:db8::ffff:2", "2001:DB8:0:0:3::")
        self.assertEqual(self.attempts.blocked("2001:db8::4"), 60)
        self.assertIsNone(self.attempts.blocked("2001:db8:0:1::1"))

    def test_ipv4_through_an_ipv6_socket_counts_as_ipv4(self) -> None:
        self.failed("::ffff:192.0.2.1", "192.0.2.1", "::ffff:c000:201")
        self.assertEqual(self.attempts.blocked("192.0.2.1"), 60)
        self.assertIsNone(self.attempts.blocked("::ffff:192.0.2.2"))

    def test_link_local_addresses_count_without_their_zone(self) -> None:
        self.failed("fe80::1%eth0", "fe80::1%eth1", "fe80::2")
        self.assertEqual(self.attempts.blocked("fe80::3%lo"), 60)

    def test_what_has_no_address_is_counted_by_its_name(self) -> None:
        self.failed("", "", "", "unix")
        self.assertEqual([self.attempts.blocked(name) for name in ("", "unix")], [60, None])

    def test_memory_is_bounded_and_the_quietest_is_forgotten(self) -> None:
        attempts = FailedAttempts(1, self.clock, 3)
        for number in (1, 2, 3, 1, 4):
            attempts.failed(f"192.0.2.{number}")
        blocked = [attempts.blocked(f"192.0.2.{number}") for number in (1, 2, 3, 4)]
        self.assertEqual(blocked, [60, None, 60, 60])
        self.assertEqual(attempts.places, 3)

    def test_what_is_over_is_forgotten_with_the_next_failure(self) -> None:
        self.failed("192.0.2.1", "192.0.2.2", "192.0.2.3")
        self.clock.now += 60
        self.failed("192.0.2.2")
        self.assertEqual(self.attempts.places, 1)

    def test_a_clock_that_is_set_back_blocks_nobody_for_longer(self) -> None:
        self.failed("192.0.2.1", "192.0.2.1", "192.0.2.1")
        self.clock.now -= 3600
        self.assertIsNone(self.attempts.blocked("192.0.2.1"))

    def test_a_new_limit_holds_from_now_on(self) -> None:
        self.failed("192.0.2.1", "192.0.2.1")
        self.attempts.per_minute = 1
        self.assertEqual(self.attempts.blocked("192.0.2.1"), 60)
        self.attempts.per_minute = 3
        self.failed("192.0.2.1")
        self.assertEqual(self.attempts.blocked("192.0.2.1"), 60)

    @given(
        st.integers(1, 5),
        st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["10.0.0.1", "10.0.0.2"]))),
    )
    def test_exactly_those_with_so_many_failures_in_the_last_minute_are_blocked(
        self, per_minute: int, failures: list[tuple[float, str]]
    ) -> None:
        clock = TimeOfDay()
        attempts = FailedAttempts(per_minute, clock)
        past: list[tuple[float, str]] = []
        for pause, address in failures:
            clock.now += pause
            attempts.failed(address)
            past.append((clock.now, address))
            for each in ("10.0.0.1", "10.0.0.2"):
                recent = [at for at, who in past if who == each and at > clock.now - 60]
                wait = attempts.blocked(each)
                self.assertEqual(wait is not None, len(recent) >= per_minute)
                if wait is not None:
                    self.assertTrue(1 <= wait <= 60)
                    now, clock.now = clock.now, clock.now + wait
                    self.assertIsNone(attempts.blocked(each))
                    clock.now = now


class ConnectionsTests(SynchronousTestCase):
    def test_a_device_may_have_a_few_at_once(self) -> None:
        connections = Connections(100, 50)
        leases = [connections.admit(1, "POS_1") for _ in range(4)]
        error = self.assertRaises(TooManyRequests, connections.admit, 1, "POS_1")
        self.assertEqual((error.code, error.retry_after), ("too_many_connections", 60))
        self.assertIn("terminal", error.message)
        connections.admit(1, "POS_2")
        connections.admit(2, "POS_1")
        connections.admit(1, None)
        leases[0].release()
        connections.admit(1, "POS_1")

    def test_a_tenant_that_is_full_is_told_so_and_others_come_in(self) -> None:
        connections = Connections(100, 2)
        connections.admit(1, None)
        connections.admit(1, "POS_1")
        error = self.assertRaises(TooManyRequests, connections.admit, 1, None)
        self.assertEqual((error.code, error.retry_after), ("too_many_connections", 60))
        self.assertIn("tenant", error.message)
        connections.admit(2, None)

    def test_a_full_server_is_overloaded_for_everybody(self) -> None:
        connections = Connections(2, 2)
        lease = connections.admit(1, None)
        connections.admit(2, None)
        error = self.assertRaises(Unavailable, connections.admit, 3, "POS_1")
        self.assertEqual((error.status, error.code, error.retry_after), (503, "overloaded", 10))
        lease.release()
        connections.admit(3, "POS_1")

    def test_a_lease_is_given_back_once(self) -> None:
        connections = Connections(100, 50)
        first, _ = connections.admit(1, "POS_1"), connections.admit(1, "POS_1")
        first.release()
        first.release()
        counts = (connections.open, connections.of_tenant(1), connections.of_device(1, "POS_1"))
        self.assertEqual(counts, (1, 1, 1))

    def test_a_lower_limit_closes_nothing_and_lets_nobody_in(self) -> None:
        connections = Connections(100, 50)
        leases = [connections.admit(1, None) for _ in range(3)]
        connections.per_tenant = 2
        leases[0].release()
        self.assertRaises(TooManyRequests, connections.admit, 1, None)
        leases[1].release()
        connections.admit(1, None)


class ConnectionsMachine(RuleBasedStateMachine):
    """Comings and goings in any order, held against a plain list of who is there."""

    leases: Bundle[Held] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.connections = Connections(6, 4, 2)
        self.present: list[tuple[int, str | None]] = []

    @rule(
        target=leases,
        tenant=st.integers(1, 3),
        device=st.none() | st.sampled_from(["POS_1", "POS_2"]),
    )
    def admit(self, tenant: int, device: str | None) -> Held | MultipleResults[Held]:
        of_tenant = sum(who == tenant for who, _ in self.present)
        try:
            lease = self.connections.admit(tenant, device)
        except TooManyRequests:
            assert of_tenant == 4 or self.present.count((tenant, device)) == 2
            return multiple()
        except Unavailable:
            assert len(self.present) == 6
            return multiple()
        assert len(self.present) < 6
        assert of_tenant < 4
        assert device is None or self.present.count((tenant, device)) < 2
        self.present.append((tenant, device))
        return lease, tenant, device

    @rule(held=consumes(leases), times=st.integers(1, 3))
    def release(self, held: Held, times: int) -> None:
        lease, tenant, device = held
        for _ in range(times):
            lease.release()
        self.present.remove((tenant, device))

    @invariant()
    def counts_are_those_of_who_is_there(self) -> None:
        assert self.connections.open == len(self.present)
        tenants = Counter(tenant for tenant, _ in self.present)
        devices = Counter(each for each in self.present if each[1] is not None)
        assert self.connections._of_tenant == tenants
        assert dict(self.connections._of_tenant) == dict(tenants)  # no zeros stay behind
        assert dict(self.connections._of_device) == dict(devices)


class ConnectionsLifeTests(SynchronousTestCase):
    def test_counts_are_right_whoever_comes_and_goes(self) -> None:
        run_state_machine_as_test(ConnectionsMachine)


PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"))


class ClientAddressTests(SynchronousTestCase):
    def test_without_proxies_nobody_is_believed(self) -> None:
        self.assertEqual(client_address("10.0.0.1", ["192.0.2.9"], ()), "10.0.0.1")

    def test_a_stranger_is_not_believed(self) -> None:
        self.assertEqual(client_address("192.0.2.1", ["192.0.2.9"], PROXIES), "192.0.2.1")

    def test_the_last_hop_that_is_no_proxy_of_ours_is_the_client(self) -> None:
        for forwarded, client in (
            ([], "10.0.0.1"),
            (["192.0.2.9"], "192.0.2.9"),
            (["198.51.100.1, 192.0.2.9"], "192.0.2.9"),
            (["198.51.100.1", "192.0.2.9"], "192.0.2.9"),
            (["192.0.2.9, 10.0.0.2", "2001:db8:ffff::1"], "192.0.2.9"),
            (["10.0.0.3,10.0.0.2"], "10.0.0.3"),
            (["2001:DB8::9"], "2001:db8::9"),
        ):
            with self.subTest(forwarded=forwarded):
                self.assertEqual(client_address("10.0.0.1", forwarded, PROXIES), client)

    def test_ports_brackets_and_blanks_are_understood(self) -> None:
        for hop, client in (
            (" 192.0.2.9 ", "192.0.2.9"),
            ("192.0.2.9:4711", "192.0.2.9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("[2001:db8::9]:4711", "2001:db8::9"),
            ("::ffff:192.0.2.9", "192.0.2.9"),
            ("192.0.2.9,", "192.0.2.9"),
            ("192.0.2.9, ,", "192.0.2.9"),
        ):
            with self.subTest(hop=hop):
                self.assertEqual(client_address("10.0.0.1", [hop], PROXIES), client)

    def test_a_proxy_whose_word_is_not_understood_is_the_client(self) -> None:
        for hop in (
            "unknown",
            "_hidden",
            "192.0.2",
            "192.0.2.9:x",
            "[192.0.2.9",
            "a:b:c",
            "٣.1.1.1",
        ):
            with self.subTest(hop=hop):
                told = client_address("10.0.0.1", [f"192.0.2.9, {hop}, 10.0.0.2"], PROXIES)
                self.assertEqual(told, "10.0.0.2")

    def test_a_proxy_is_known_by_ipv4_through_an_ipv6_socket(self) -> None:
        self.assertEqual(client_address("::ffff:10.0.0.1", ["192.0.2.9"], PROXIES), "192.0.2.9")
        self.assertEqual(client_address("::ffff:192.0.2.1", ["192.0.2.9"], PROXIES), "192.0.2.1")

    def test_the_peer_of_a_unix_socket_is_a_proxy_where_there_are_any(self) -> None:
        self.assertEqual(client_address("", ["192.0.2.9"], PROXIES), "192.0.2.9")
        self.assertEqual(client_address("", [], PROXIES), "")
        self.assertEqual(client_address("", ["192.0.2.9"], ()), "")

    _addresses = st.ip_addresses().map(str)
    _hops = _addresses | st.sampled_from(["10.0.0.1", "10.9.9.9"]) | st.text(max_size=20)

    @given(_addresses | st.just(""), st.lists(_hops, max_size=6))
    def test_whatever_is_sent_the_answer_is_the_peer_or_an_address(
        self, peer: str, forwarded: list[str]
    ) -> None:
        told = client_address(peer, forwarded, PROXIES)
        if told != peer:
            ip_address(told)

    @given(st.lists(_hops, max_size=6), _addresses, st.lists(st.just("10.0.0.2"), max_size=3))
    def test_nothing_that_a_client_writes_itself_changes_who_it_is(
        self, written: list[str], client: str, ours: list[str]
    ) -> None:
        assume(not any(ip_address(client) in proxy for proxy in PROXIES))
        alone = client_address("10.0.0.1", [", ".join([client, *ours])], PROXIES)
        told = client_address("10.0.0.1", [*written, ", ".join([client, *ours])], PROXIES)
        self.assertEqual(told, alone)
