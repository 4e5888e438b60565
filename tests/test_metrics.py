"""What Prometheus is told, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from posd import __version__
from posd.errors import Unavailable
from posd.metrics import MOST_TENANTS, Metrics, Stream


async def streams(most: int) -> Sequence[Stream]:
    return [("kitchen", 307, 4), ("grill", 0, 0)][:most]


async def away(most: int) -> Sequence[Stream]:
    raise Unavailable("The database is away.")


class MetricsTests(SynchronousTestCase):
    def scraped(self, **more: Any) -> dict[tuple[str, str], float]:
        """Values by name and label."""
        default: dict[str, Any] = {
            "up": {"database_up": lambda: True, "ready": lambda: False},
            "connections": lambda: {"kitchen": 2},
            "canary": lambda: 0.25,
            "streams": streams,
        }
        metrics = Metrics(**(default | more))
        text = self.successResultOf(Deferred.fromCoroutine(metrics.text())).decode()
        return {
            (sample.name, "".join(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def test_it_has_the_node_its_tills_and_the_streams(self) -> None:
        found = self.scraped()
        own = {key: value for key, value in found.items() if key[0].startswith("posd_")}
        self.assertEqual(
            own,
            {
                ("posd_build_info", __version__): 1,
                ("posd_database_up", ""): 1,
                ("posd_ready", ""): 0,
                ("posd_feed_canary_seconds", ""): 0.25,
                ("posd_connections", "kitchen"): 2,
                ("posd_stream_last_id", "kitchen"): 307,
                ("posd_stream_last_id", "grill"): 0,
                ("posd_undelivered", "kitchen"): 4,
                ("posd_undelivered", "grill"): 0,
            },
        )

    def test_it_has_the_process_and_its_garbage(self) -> None:
        found = self.scraped()
        self.assertIn(("python_gc_collections_total", "0"), found)
        self.assertGreater(found["process_resident_memory_bytes", ""], 0)

    def test_while_the_database_is_away_it_has_the_rest(self) -> None:
        found = self.scraped(up={"database_up": lambda: False}, streams=away)
        self.assertEqual(found["posd_database_up", ""], 0)
        self.assertEqual(found["posd_connections", "kitchen"], 2)
        self.assertNotIn(("posd_stream_last_id", "kitchen"), found)

    def test_a_canary_that_is_lost_has_no_value(self) -> None:
        self.assertNotIn(("posd_feed_canary_seconds", ""), self.scraped(canary=lambda: None))

    def test_there_are_series_of_so_many_tenants_only(self) -> None:
        asked: list[int] = []

        async def of(most: int) -> Sequence[Stream]:
            asked.append(most)
            return []

        many = {f"shop-{number}": 1 for number in range(MOST_TENANTS + 5)}
        found = self.scraped(connections=lambda: many, streams=of)
        self.assertEqual(sum(name == "posd_connections" for name, _ in found), MOST_TENANTS)
        self.assertEqual(asked, [MOST_TENANTS])
