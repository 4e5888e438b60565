"""Tests of the metrics of tenants, and of the rate of their reads."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unavailable
from posd.monitoring.tenant_survey import MOST_TENANTS, TenantSurvey
from posd.store.survey import ShopSurvey, TenantSurveyRow
from tests.scrapes import Series, nonzero_samples

KITCHEN = TenantSurveyRow(
    "kitchen",
    published=307,
    acknowledged=290,
    expired=10,
    undelivered=7,
    outbox_rows=3,
    oldest_outbox=0.5,
    shop=ShopSurvey(
        waiting=7, oldest_unacked=12.0, unprinted=2, oldest_unprinted=600.0, prints=True
    ),
)


class Read(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self.families = families

    def collect(self) -> Sequence[Metric]:
        return self.families


class SurveyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.tenants = [KITCHEN]
        self.asked: list[int] = []
        self.seconds = 0.0
        self.away = False
        self.survey = TenantSurvey(self.read, self.clock, lambda: 1000.0)

    async def read(self, most: int) -> Sequence[TenantSurveyRow]:
        if self.away:
            raise Unavailable("The database is away.")
        self.asked.append(most)
        self.clock.advance(self.seconds)
        return self.tenants

    def found(self) -> dict[Series, float]:
        """Return the metrics that are not 0."""
        families = self.successResultOf(Deferred.fromCoroutine(self.survey.families()))
        registry = CollectorRegistry()
        registry.register(Read(families))
        return nonzero_samples(registry)

    def test_the_metrics_of_each_tenant_are_shown(self) -> None:
        self.assertEqual(
            self.found(),
            {
                ("posd_survey_timestamp_seconds",): 1000.0,
                ("posd_tenants",): 1,
                ("posd_stream_last_id", "kitchen"): 307,
                ("posd_undelivered", "kitchen"): 7,
                ("posd_outbox_rows", "kitchen"): 3,
                ("posd_outbox_oldest_seconds", "kitchen"): 0.5,
                ("posd_stream_events", "acknowledged", "kitchen"): 290,
                ("posd_stream_events", "waiting", "kitchen"): 7,
                ("posd_stream_events", "expired", "kitchen"): 10,
                ("posd_oldest_unacked_seconds", "kitchen"): 12.0,
                ("posd_orders_unprinted", "kitchen"): 2,
                ("posd_orders_unprinted_oldest_seconds", "kitchen"): 600.0,
                ("posd_tills_print", "kitchen"): 1,
            },
        )

    def test_an_event_that_is_lost_is_an_imbalance(self) -> None:
        self.tenants = [evolve(KITCHEN, published=308)]
        self.assertEqual(self.found()["posd_stream_imbalance", "kitchen"], 1)

    def test_an_event_counted_twice_is_an_imbalance(self) -> None:
        self.tenants = [evolve(KITCHEN, acknowledged=291)]
        self.assertEqual(self.found()["posd_stream_imbalance", "kitchen"], -1)

    def test_the_database_is_asked_for_so_many_tenants_only(self) -> None:
        self.found()
        self.assertEqual(self.asked, [MOST_TENANTS])

    def test_scrapes_in_quick_succession_ask_once(self) -> None:
        self.found()
        self.clock.advance(9)
        self.assertIn(("posd_undelivered", "kitchen"), self.found())
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(1)
        self.found()
        self.assertEqual(len(self.asked), 2)

    def test_a_slow_survey_is_read_rarely(self) -> None:
        self.seconds = 2.0
        self.found()
        self.clock.advance(99)
        self.found()
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(1)
        self.found()
        self.assertEqual(len(self.asked), 2)

    def test_two_scrapes_at_once_ask_once(self) -> None:
        waiting: Deferred[Sequence[TenantSurveyRow]] = Deferred()

        async def slowly(most: int) -> Sequence[TenantSurveyRow]:
            self.asked.append(most)
            return await waiting

        self.survey = TenantSurvey(slowly, self.clock)
        both = [Deferred.fromCoroutine(self.survey.families()) for _ in range(2)]
        waiting.callback([KITCHEN])
        for each in both:
            self.assertTrue(self.successResultOf(each))
        self.assertEqual(len(self.asked), 1)

    def test_while_the_database_is_away_nothing_old_is_told(self) -> None:
        self.found()
        self.away = True
        self.clock.advance(10)
        with capturedLogs() as logged:
            for _ in range(3):
                self.assertEqual(self.found(), {})
        self.assertEqual([each["error"] for each in logged], ["The database is away."])
        self.away = False
        self.assertIn(("posd_undelivered", "kitchen"), self.found())
