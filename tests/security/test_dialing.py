from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.security.dialing import Backoff, BaseUrl, retry_after

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)


class Servers(SynchronousTestCase):
    def parse(self, url: str) -> BaseUrl:
        return BaseUrl.parse(url, "https", "http")

    def test_a_url_gives_host_port_and_prefix(self) -> None:
        self.assertEqual(
            self.parse("https://pos.example.com:9010/shop/"),
            BaseUrl("https", "pos.example.com", 9010, "/shop"),
        )

    def test_the_schemes_have_their_usual_ports(self) -> None:
        self.assertEqual(self.parse("https://pos.example.com").port, 443)
        self.assertEqual(self.parse("http://localhost").port, 80)

    def test_a_path_is_made_of_single_segments(self) -> None:
        server = self.parse("https://pos.example.com/shop")
        self.assertEqual(server.path("api", "a/b c?", "events"), "/shop/api/a%2Fb%20c%3F/events")

    def test_an_ipv6_address_is_written_in_brackets(self) -> None:
        self.assertEqual(self.parse("https://[2001:db8::1]:9010").authority, "[2001:db8::1]:9010")

    def test_clear_text_stays_on_this_machine(self) -> None:
        for host in ("localhost", "127.0.0.1", "127.9.9.9", "[::1]"):
            self.assertFalse(self.parse(f"http://{host}:9010").secure)
        for host in ("pos.example.com", "10.0.0.7", "[2001:db8::1]", "localhost.example.com"):
            with self.assertRaisesRegex(ValueError, "only over TLS: https://"):
                self.parse(f"http://{host}:9010")

    def test_other_parts_of_a_url_are_refused(self) -> None:
        for url, reason in {
            "ftp://pos.example.com": "https:// or http://",
            "pos.example.com:9010": "https:// or http://",
            "https://": "no host",
            "https://key@pos.example.com": "no user",
            "https://pos.example.com?apiKey=1": "no parameters",
            "https://pos.example.com#x": "no fragment",
            "https://pos.example.com:port": "invalid literal|Port",
        }.items():
            with self.assertRaisesRegex(ValueError, reason):
                self.parse(url)


class Pauses(SynchronousTestCase):
    def test_pauses_double_up_to_the_maximum(self) -> None:
        backoff = Backoff(initial=1, factor=2, maximum=10)
        pauses = [backoff.pause(n, lambda: 1.0) for n in range(7)]
        self.assertEqual(pauses, [1, 1, 2, 4, 8, 10, 10])

    @given(st.integers(min_value=0), st.floats(0, 1, exclude_max=True))
    def test_a_pause_is_at_least_half_and_never_more_than_the_maximum(
        self, failures: int, chance: float
    ) -> None:
        backoff = Backoff(initial=1, factor=2, maximum=60)
        pause = backoff.pause(failures, lambda: chance)
        full = backoff.pause(failures, lambda: 1.0)
        self.assertTrue(full / 2 <= pause <= full <= 60)


class RetryAfter(SynchronousTestCase):
    def test_a_number_of_seconds_is_understood(self) -> None:
        self.assertEqual(retry_after(" 20 ", NOW), 20)

    def test_a_date_is_understood(self) -> None:
        later = format_datetime(NOW + timedelta(seconds=90), usegmt=True)
        self.assertEqual(retry_after(later, NOW), 90)

    def test_a_date_in_the_past_means_now(self) -> None:
        self.assertEqual(retry_after(format_datetime(NOW - timedelta(days=1)), NOW), 0)

    def test_a_date_without_a_zone_is_utc(self) -> None:
        self.assertEqual(retry_after("Sun, 22 Nov 2026 10:00:05 -0000", NOW), 5)

    def test_an_invalid_header_gives_none(self) -> None:
        for value in (None, "", "soon", "-5", "1.5", "٣"):
            self.assertIsNone(retry_after(value, NOW), value)

    @given(st.text())
    def test_no_text_is_an_error(self, text: str) -> None:
        asked = retry_after(text, NOW)
        self.assertTrue(asked is None or asked >= 0)
