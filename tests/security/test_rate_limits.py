"""Tests of token buckets, failed attempts, and limits of log lines."""

from __future__ import annotations

from attrs import define
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.security.rate_limits import FailedAttempts, TokenBucket

_pauses = st.floats(0, 120)


@define
class TimeOfDay:
    """A clock that can be set back, unlike Twisted's Clock."""

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
        self.assertEqual(self.bucket.seconds_to_wait(5), 0.0)
        self.bucket.take(5)
        self.assertEqual(
            [self.bucket.seconds_to_wait(), self.bucket.seconds_to_wait(4)], [0.5, 2.0]
        )

    def test_a_long_pause_saves_up_no_more_than_a_burst(self) -> None:
        self.clock.now += 3600
        self.assertEqual(sum(self.bucket.take() for _ in range(100)), 5)

    def test_more_than_a_burst_is_let_through_when_full_and_paid_for_later(self) -> None:
        self.assertTrue(self.bucket.take(25))
        self.assertEqual(self.bucket.seconds_to_wait(), 10.5)
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
        clock.now += bucket.seconds_to_wait(count)
        self.assertTrue(bucket.take(count))


class FailedAttemptsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = TimeOfDay()
        self.attempts = FailedAttempts(3, self.clock)

    def record_failure(self, *addresses: str) -> None:
        for address in addresses:
            self.attempts.record_failure(address)

    def test_an_address_is_blocked_after_its_last_attempt(self) -> None:
        told = []
        for _ in range(4):
            told.append(self.attempts.seconds_blocked("192.0.2.1"))
            self.record_failure("192.0.2.1")
        self.assertEqual(told, [None, None, None, 60])

    def test_the_block_ends_when_the_oldest_failure_is_a_minute_old(self) -> None:
        self.record_failure("192.0.2.1")
        self.clock.now += 20
        self.record_failure("192.0.2.1", "192.0.2.1")
        self.assertEqual(self.attempts.seconds_blocked("192.0.2.1"), 40)
        self.clock.now += 39.5
        self.assertEqual(self.attempts.seconds_blocked("192.0.2.1"), 1)
        self.clock.now += 0.5
        self.assertIsNone(self.attempts.seconds_blocked("192.0.2.1"))
        self.record_failure("192.0.2.1")
        self.assertEqual(self.attempts.seconds_blocked("192.0.2.1"), 20)

    def test_one_address_is_not_blocked_for_another(self) -> None:
        self.record_failure("192.0.2.1", "192.0.2.1", "192.0.2.1")
        self.assertIsNone(self.attempts.seconds_blocked("192.0.2.2"))

    def test_ipv6_counts_by_its_64(self) -> None:
        self.record_failure("2001:db8::1", "2001:db8::ffff:2", "2001:DB8:0:0:3::")
        self.assertEqual(self.attempts.seconds_blocked("2001:db8::4"), 60)
        self.assertIsNone(self.attempts.seconds_blocked("2001:db8:0:1::1"))

    def test_ipv4_through_an_ipv6_socket_counts_as_ipv4(self) -> None:
        self.record_failure("::ffff:192.0.2.1", "192.0.2.1", "::ffff:c000:201")
        self.assertEqual(self.attempts.seconds_blocked("192.0.2.1"), 60)
        self.assertIsNone(self.attempts.seconds_blocked("::ffff:192.0.2.2"))

    def test_link_local_addresses_count_without_their_zone(self) -> None:
        self.record_failure("fe80::1%eth0", "fe80::1%eth1", "fe80::2")
        self.assertEqual(self.attempts.seconds_blocked("fe80::3%lo"), 60)

    def test_what_has_no_address_is_counted_by_its_name(self) -> None:
        self.record_failure("", "", "", "unix")
        self.assertEqual([self.attempts.seconds_blocked(name) for name in ("", "unix")], [60, None])

    def test_memory_is_bounded_and_the_quietest_is_forgotten(self) -> None:
        attempts = FailedAttempts(1, self.clock, 3)
        for number in (1, 2, 3, 1, 4):
            attempts.record_failure(f"192.0.2.{number}")
        seconds_blocked = [attempts.seconds_blocked(f"192.0.2.{number}") for number in (1, 2, 3, 4)]
        self.assertEqual(seconds_blocked, [60, None, 60, 60])
        self.assertEqual(attempts.remembered_buckets, 3)

    def test_what_is_over_is_forgotten_with_the_next_failure(self) -> None:
        self.record_failure("192.0.2.1", "192.0.2.2", "192.0.2.3")
        self.clock.now += 60
        self.record_failure("192.0.2.2")
        self.assertEqual(self.attempts.remembered_buckets, 1)

    def test_a_clock_that_is_set_back_blocks_nobody_for_longer(self) -> None:
        self.record_failure("192.0.2.1", "192.0.2.1", "192.0.2.1")
        self.clock.now -= 3600
        self.assertIsNone(self.attempts.seconds_blocked("192.0.2.1"))

    def test_a_new_limit_holds_from_now_on(self) -> None:
        self.record_failure("192.0.2.1", "192.0.2.1")
        self.attempts.per_minute = 1
        self.assertEqual(self.attempts.seconds_blocked("192.0.2.1"), 60)
        self.attempts.per_minute = 3
        self.record_failure("192.0.2.1")
        self.assertEqual(self.attempts.seconds_blocked("192.0.2.1"), 60)

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
            attempts.record_failure(address)
            past.append((clock.now, address))
            for each in ("10.0.0.1", "10.0.0.2"):
                recent = [at for at, who in past if who == each and at > clock.now - 60]
                seconds_to_wait = attempts.seconds_blocked(each)
                self.assertEqual(seconds_to_wait is not None, len(recent) >= per_minute)
                if seconds_to_wait is not None:
                    self.assertTrue(1 <= seconds_to_wait <= 60)
                    now, clock.now = clock.now, clock.now + seconds_to_wait
                    self.assertIsNone(attempts.seconds_blocked(each))
                    clock.now = now
