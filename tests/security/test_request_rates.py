"""Tests of the accounts of keys and addresses, and of their limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import TooManyRequests
from posd.security.request_rates import RateAccount, RatePurpose, RequestRates, account

MIB = 1024 * 1024


class RatesCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.refused: Counter[str] = Counter()

        def note(by: str) -> None:
            self.refused[by] += 1

        self.rates = RequestRates(5, 1000, 20, self.clock.seconds, note)

    def granted(self, ask: Callable[[], None], tries: int = 1000) -> int:
        """Return how many calls are granted."""
        for count in range(tries):
            try:
                ask()
            except TooManyRequests as refusal:
                self.assertEqual(refusal.code, "too_many_requests")
                self.assertGreaterEqual(refusal.retry_after or 0, 1)
                return count
        return tries

    def requests(self, who: RateAccount, size: int = 0) -> int:
        return self.granted(lambda: self.rates.charge_request(who, size))


class CredentialTests(RatesCase):
    def test_ten_seconds_worth_at_once_and_then_the_rate(self) -> None:
        who = account(1, None, shared=False)
        self.assertEqual(self.requests(who), 50)
        self.clock.advance(1)
        self.assertEqual(self.requests(who), 5)
        self.assertEqual(self.refused, {"credential": 2})

    def test_whoever_waits_as_told_gets_what_was_asked_for(self) -> None:
        who = account(1, None, shared=False)
        self.requests(who, 300)
        with self.assertRaises(TooManyRequests) as raised:
            self.rates.charge_request(who, 3000)
        self.clock.advance(raised.exception.retry_after or 0)
        self.rates.charge_request(who, 3000)

    def test_bytes_count_beside_requests_and_what_is_refused_costs_nothing(self) -> None:
        who = account(1, None, shared=False)
        self.assertEqual(self.requests(who, 4000), 2)
        self.assertEqual(self.requests(who, 2000), 1)
        self.assertEqual(self.requests(who), 47)

    def test_a_body_of_unknown_length_is_charged_as_it_comes(self) -> None:
        who = account(1, None, shared=False)
        self.rates.charge_request(who, 0)
        self.assertEqual(self.granted(lambda: self.rates.charge_body(who, 1000)), 10)
        self.assertEqual(self.requests(who), 49)

    def test_a_body_longer_than_the_burst_is_taken_by_who_has_asked_nothing(self) -> None:
        who = account(1, None, shared=False)
        self.rates.charge_request(who, MIB)
        self.assertEqual(self.requests(who, 1), 0)

    def test_one_key_is_not_charged_for_another(self) -> None:
        self.requests(account(1, None, shared=False))
        self.assertEqual(self.requests(account(2, None, shared=False)), 50)

    def test_a_key_of_all_tenants_has_twenty_times_the_rate(self) -> None:
        platform = account(7, None, shared=False, all_tenants=True)
        granted = self.granted(lambda: self.rates.charge_request(platform, 0), tries=2000)
        self.assertEqual(granted, 20 * 50)

    def test_a_devices_key_has_one_rate_whatever_device_is_named(self) -> None:
        self.assertEqual(self.requests(account(1, "front", shared=False)), 50)
        self.assertEqual(self.requests(account(1, "bar", shared=False)), 0)

    def test_terminals_that_share_a_key_have_a_rate_each_and_four_times_that_together(self) -> None:
        granted = [
            self.requests(account(1, name, shared=True)) for name in ("front", "bar", "grill")
        ]
        self.assertEqual(granted, [50, 50, 50])
        # Terminals without a name count as one more terminal.
        self.assertEqual(self.requests(account(1, None, shared=True)), 50)
        self.assertEqual(self.requests(account(1, "pass", shared=True)), 0)

    def test_frames_of_terminals_without_a_name_have_the_rate_of_all_together(self) -> None:
        frames = account(1, None, shared=True, purpose=RatePurpose.FRAMES)
        for _ in range(800):
            self.assertEqual(self.rates.heard(frames, 0.25, 1), 0)
        self.assertGreater(self.rates.heard(frames, 0.25, 1), 0)
        # Requests of these terminals are not charged for it.
        self.assertEqual(self.requests(account(1, None, shared=True)), 50)

    def test_two_thousand_terminals_that_come_at_once_are_let_in(self) -> None:
        rates = RequestRates(50, MIB, 200, self.clock.seconds)
        for number in range(2000):
            who = account(1, f"till-{number}", shared=True, purpose=RatePurpose.HANDSHAKE)
            rates.charge_request(who, 0)
        # And their later requests are not charged for it.
        for number in range(1000):
            rates.charge_request(account(1, f"till-{number}", shared=True), 0)

    def test_so_are_two_thousand_without_a_name(self) -> None:
        rates = RequestRates(50, MIB, 200, self.clock.seconds)
        who = account(1, None, shared=True, purpose=RatePurpose.HANDSHAKE)
        for _ in range(2000):
            rates.charge_request(who, 0)

    def test_who_makes_up_names_has_no_more_than_all_together(self) -> None:
        count = self.granted(
            lambda: self.rates.charge_request(account(1, f"{self.clock.seconds()}", shared=True), 0)
        )
        self.assertEqual(count, 50)
        names = iter(range(1000))
        count = self.granted(
            lambda: self.rates.charge_request(account(1, f"till-{next(names)}", shared=True), 0)
        )
        self.assertEqual(count, 150)

    def test_a_rate_that_was_reloaded_counts_from_now_on(self) -> None:
        who = account(1, None, shared=False)
        self.requests(who)
        self.rates.requests_per_credential, self.rates.bytes_per_credential = 100, MIB
        self.clock.advance(1)
        self.assertEqual(self.requests(who, 3000), 100)


class StrangerTests(RatesCase):
    def asked(self, address: str, purpose: str = "all") -> int:
        return self.granted(lambda: self.rates.charge_address(address, purpose))

    def test_an_address_has_a_rate(self) -> None:
        self.assertEqual(self.asked("192.0.2.1"), 200)
        self.assertEqual(self.asked("192.0.2.2"), 200)
        self.clock.advance(1)
        self.assertEqual(self.asked("192.0.2.1"), 20)
        self.assertEqual(self.refused, {"address": 3})

    def test_ipv6_counts_by_its_64(self) -> None:
        self.assertEqual(self.asked("2001:db8::1"), 200)
        self.assertEqual(self.asked("2001:db8::ffff:2"), 0)
        self.assertEqual(self.asked("2001:db8:0:1::1"), 200)

    def test_load_balancers_are_answered_while_strangers_come_through_them(self) -> None:
        self.asked("192.0.2.1")
        self.assertEqual(self.asked("192.0.2.1", "health"), 200)

    def test_memory_is_bounded(self) -> None:
        for number in range(30_000):
            self.rates.charge_address(
                f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "all"
            )
        self.assertEqual(len(self.rates._addresses), 20_000)


class AnsweredTests(RatesCase):
    def test_an_answer_is_charged_and_what_is_over_is_owed(self) -> None:
        who = account(1, None, shared=False)
        free = int(self.rates.bytes_per_credential * 10)
        self.rates.charge_answer(who, free)
        self.rates.charge_request(who, 100)
        self.rates.charge_answer(who, 100)
        self.assertRaises(TooManyRequests, self.rates.charge_request, who, 0)
        connecting = account(1, None, shared=False, purpose=RatePurpose.HANDSHAKE)
        self.rates.charge_request(connecting, 0)
        self.clock.advance(100 / self.rates.bytes_per_credential)
        self.rates.charge_request(who, 0)


class HeardTests(RatesCase):
    def test_what_is_on_a_websocket_is_charged_into_debt(self) -> None:
        who = account(1, None, shared=False)
        owed = [self.rates.heard(who, 0.25, 10) for _ in range(204)]
        self.assertEqual(owed[:200], [0.0] * 200)
        self.assertEqual([round(each, 2) for each in owed[200:]], [0.05, 0.1, 0.15, 0.2])
        self.assertEqual(self.refused, {"till": 4})
        # A request waits until the debt is paid.
        self.assertEqual(self.requests(who), 0)
        self.clock.advance(0.4)
        self.assertEqual(self.requests(who), 1)

    def test_bytes_are_owed_too(self) -> None:
        who = account(1, None, shared=False)
        self.assertEqual(self.rates.heard(who, 0.25, 10_000), 0.0)
        self.assertEqual(self.rates.heard(who, 0.25, 500), 0.5)

    def test_a_debt_has_an_end(self) -> None:
        who = account(1, None, shared=True)
        for _ in range(100_000):
            owed = self.rates.heard(who, 0.25, 0)
        self.assertEqual(owed, 30.0)
        self.clock.advance(30.3)
        self.assertGreater(self.requests(who), 0)
