"""Tests of counters and their labels."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client import generate_latest
from twisted.trial.unittest import SynchronousTestCase

from posd import values
from posd.monitoring.counters import DROPPED, SILENT, Counters
from posd.monitoring.database_clock import DatabaseClock
from posd.values import GOING_AWAY, REVOKED, TOO_SLOW, CloseReason
from tests.scrapes import nonzero_samples, read_samples


class InstrumentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.counters = Counters(DatabaseClock(lambda: 1_000_000.0))

    def counted(self) -> dict[tuple[str, ...], float]:
        return nonzero_samples(self.counters.registry)

    def ended(self) -> list[tuple[str, ...]]:
        """Return the labels of ended connections."""
        return [
            series[1:] for series in self.counted() if series[0] == "posd_connections_ended_total"
        ]

    def test_events_are_counted_by_the_road_they_came_and_the_way_they_went(self) -> None:
        self.counters.published("hook", 2)
        self.counters.delivered("live", 200)
        self.assertEqual(
            self.counted(),
            {
                ("posd_events_published_total", "hook"): 2,
                ("posd_events_delivered_total", "live"): 200,
            },
        )

    def test_a_delay_is_measured_from_when_the_database_has_dated_the_event(self) -> None:
        self.counters.reached("ack", [datetime.fromtimestamp(999_999.8, UTC)])
        found = self.counted()
        self.assertAlmostEqual(found["posd_delivery_seconds_sum", "ack"], 0.2, places=5)
        self.assertNotIn(("posd_delivery_seconds_bucket", "0.1", "ack"), found)
        self.assertEqual(found["posd_delivery_seconds_bucket", "0.25", "ack"], 1)

    def test_a_request_is_counted_by_its_operation_and_the_class_of_its_answer(self) -> None:
        self.counters.served("GET /health/live", 204, 0.002)
        self.counters.served("GET /health/live", 503, 0.002)
        found = self.counted()
        for status in ("2xx", "5xx"):
            self.assertEqual(found["posd_http_requests_total", "GET /health/live", status], 1)
        self.assertEqual(found["posd_http_request_seconds_count", "GET /health/live"], 2)

    def test_the_reasons_of_closes_by_posd_are_single_words(self) -> None:
        for closing in (GOING_AWAY, REVOKED, TOO_SLOW):
            self.counters.ended("posd", closing.code, closing.reason)
        for why in (SILENT, DROPPED):
            self.counters.ended("posd", None, why)
        self.assertEqual(
            {reason for _, reason in self.ended()},
            {"restart", "revoked", "too_slow", "silent", "sent_home"},
        )

    def test_texts_of_clients_are_not_labels(self) -> None:
        self.counters.ended("posd", 1002, "received a reserved bit of pos_0123456789")
        self.counters.ended("till", 4321, "")
        self.counters.ended("till", None, "")
        self.assertEqual(
            {*self.ended()}, {("posd", "protocol"), ("till", "closed"), ("till", "lost")}
        )

    def test_every_closing_has_a_word_of_its_own(self) -> None:
        closings = [each for each in vars(values).values() if isinstance(each, CloseReason)]
        for closing in closings:
            self.counters.ended("posd", closing.code, closing.reason)
        self.assertGreater(len(closings), 8)
        self.assertEqual(len(self.ended()), len(closings))
        self.assertNotIn(("posd", "protocol"), self.ended())

    def test_series_of_alerts_exist_from_the_start(self) -> None:
        found = read_samples(generate_latest(self.counters.registry).decode())
        for series in (
            ("posd_events_published_total", "sql"),
            ("posd_failed_authentications_total", "too_many_attempts"),
            ("posd_connections_ended_total", "posd", "internal_error"),
            ("posd_events_failed_total",),
        ):
            self.assertEqual(found[series], 0, series)
