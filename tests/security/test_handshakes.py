"""Tests of the limit of TLS handshakes per address."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.security.handshakes import HandshakeRates


class HandshakeRatesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.rates = HandshakeRates(self.clock.seconds)

    def begun(self, where: str) -> int:
        """Return how many handshakes may begin now."""
        count = 0
        while not self.rates.begin(where):
            count += 1
        return count

    def test_two_thousand_at_once_and_then_fifty_a_second(self) -> None:
        self.assertEqual(self.begun("192.0.2.1"), 2000)
        self.assertAlmostEqual(self.rates.begin("192.0.2.1"), 1 / 50)
        self.clock.advance(1)
        self.assertEqual(self.begun("192.0.2.1"), 50)

    def test_each_address_has_its_own(self) -> None:
        self.begun("192.0.2.1")
        self.assertEqual(self.begun("192.0.2.2"), 2000)

    def test_the_handshake_of_a_client_with_a_valid_key_does_not_count(self) -> None:
        self.begun("192.0.2.1")
        for _ in range(6):
            self.rates.refund_handshake("192.0.2.1")
        self.assertEqual(self.begun("192.0.2.1"), 6)
