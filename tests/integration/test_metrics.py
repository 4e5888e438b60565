"""`GET /metrics` of a running posd: who may read it, its counts, and the description of all metrics."""

from __future__ import annotations

import http.client
import re
from contextlib import closing

from tests import documents
from tests.integration.harness import free_port
from tests.integration.wire_case import WireCase, until
from tests.scrapes import Series, families, read_samples
from tests.test_docs_metrics import metric_rows

LOCAL = free_port()


def described() -> set[str]:
    """Return every name in the tables of docs/metrics.md, as it is served."""
    return {
        re.sub(r"\{.*", "", word)
        for row in metric_rows()
        for word in documents.words_in_code(row[0])
    }


class MetricsTests(WireCase):
    configuration = (
        "[limits]\nfailed_auth_per_minute = 10000\n"
        f'[[listen]]\nname = "local"\nendpoint = "tcp:port={LOCAL}:interface=127.0.0.1"\n'
        "trusted = true"
    )

    def scrape(self) -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", LOCAL, timeout=300)) as connection:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            self.assertEqual(answer.status, 200)
            return answer.read().decode()

    def scraped(self) -> dict[Series, float]:
        return read_samples(self.scrape())

    def test_an_admin_reads_them_or_anybody_on_a_trusted_listener(self) -> None:
        answered = self.posd.request("GET", "/metrics", key=self.shop.key("admin", None))
        self.assertEqual(answered.status, 200)
        self.assertTrue(answered.headers["content-type"].startswith("text/plain;"))
        self.assertIn(b"posd_build_info", answered.content)
        self.assertEqual(self.posd.request("GET", "/metrics").status, 401)
        for kind in ("tenant", "platform"):
            key = self.shop.key(kind, self.slug)
            self.assertEqual(self.posd.request("GET", "/metrics", key=key).status, 403)
        self.assertIn("posd_build_info", self.scrape())

    def test_what_runs_well_says_so(self) -> None:
        found = until(lambda: self._with_canary(), "a canary came back")
        for name in ("database_up", "feed_up", "sequencer_up", "readers_up", "ready"):
            self.assertEqual(found[f"posd_{name}",], 1, name)
        left = found["posd_tls_certificate_expiry_seconds",]
        self.assertGreater(left, 24 * 3600)
        self.assertGreater(found["posd_tls_certificate_lifetime_seconds",], left)
        self.assertLess(abs(found["posd_database_clock_offset_seconds",]), 60)

    def _with_canary(self) -> dict[Series, float]:
        found = self.scraped()
        return found if ("posd_feed_canary_seconds",) in found else {}

    def test_an_event_is_followed_from_the_shop_to_the_till(self) -> None:
        before = self.scraped()
        till = self.dial(device="FRONT")
        position = self.publish()
        self.assertEqual(till.receive()["id"], position)
        till.send({"type": "ack", "id": position})
        self.reaches("FRONT", position)
        found = self.scraped()
        for series in (
            ("posd_events_published_total", "sql"),
            ("posd_events_delivered_total", "live"),
            ("posd_delivery_seconds_count", "socket"),
            ("posd_delivery_seconds_count", "ack"),
            ("posd_batch_seconds_count",),
        ):
            self.assertGreater(found[series], before[series], series)
        self.assertEqual(found["posd_connections", self.slug], 1)
        self.assertGreater(found["posd_received_frames_total",], 0)
        self.assertGreater(found["posd_sent_bytes_total",], 0)

    def test_how_a_connection_ended_is_counted(self) -> None:
        series = ("posd_connections_ended_total", "till", "closed")
        before = self.scraped()[series]
        self.dial().leave()
        until(lambda: self.scraped()[series] > before, "the end was counted")

    def test_who_was_not_let_in_is_counted_and_has_a_line_without_the_key(self) -> None:
        self.refused(key="pos_0123456789abcdef")
        found = self.scraped()
        self.assertGreater(found["posd_handshakes_refused_total", "unauthorized"], 0)
        self.assertGreater(found["posd_failed_authentications_total", "unauthorized"], 0)
        refused = ("posd_http_requests_total", "GET /ws/pos/{tenant}", "4xx")
        self.assertGreater(found[refused], 0)
        (line, *_) = [each for each in self.posd.log().splitlines() if self.slug in each]
        self.assertIn("not let in: operation='GET /ws/pos/{tenant}'", line)
        self.assertIn("address=127.0.0.1 status=401 code=unauthorized", line)
        self.assertNotIn("0123456789abcdef", self.posd.log())

    def test_every_metric_is_described_and_every_one_that_is_described_is_there(self) -> None:
        until(lambda: self._with_canary(), "a canary came back")
        served = families(self.scrape())
        self.assertEqual({name for name in served if name.startswith("posd_")}, described())

    def test_nothing_tells_who_or_which(self) -> None:
        for line in self.scrape().splitlines():
            for label in re.findall(r'(\w+)="', line.partition(" ")[0] if line[0] != "#" else ""):
                self.assertIn(label, LABELS, line)


class BalanceTests(WireCase):
    """A daemon that is scraped once, so that all values are of the same time."""

    configuration = "[limits]\nconnections = 500"

    def test_what_became_of_events_is_counted_and_balances(self) -> None:
        till = self.dial(device="FRONT")
        self.publish(3)
        till.send({"type": "ack", "id": till.receive()["id"]})
        received = "SELECT received_seq FROM dinedesk_main.pos_heads WHERE {mine}"
        until(lambda: self.value(received) == 1, "it was acknowledged")
        key = self.shop.key("admin", None)
        found = read_samples(self.posd.request("GET", "/metrics", key=key).content.decode())
        states = {
            state: found["posd_stream_events", state, self.slug]
            for state in ("acknowledged", "waiting", "expired")
        }
        self.assertEqual(states, {"acknowledged": 1, "waiting": 2, "expired": 0})
        self.assertEqual(found["posd_stream_last_id", self.slug], 3)
        self.assertEqual(found["posd_stream_imbalance", self.slug], 0)
        self.assertGreater(found["posd_oldest_unacked_seconds", self.slug], 0)
        self.assertEqual(found["posd_connections_limit",], 500)


LABELS = {
    *("tenant", "version", "road", "way", "stage", "state", "by", "reason", "code"),
    *("operation", "status", "le", "generation"),
}
