"""`GET /metrics` of a running posd."""

from __future__ import annotations

import http.client
from contextlib import closing

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import Shop, free_port


class MetricsTests(SynchronousTestCase):
    def test_an_admin_reads_them_or_anybody_on_a_trusted_listener(self) -> None:
        port = free_port()
        shop = Shop.open()
        self.addCleanup(shop.close)
        posd = shop.start(
            f'[[listen]]\nname = "local"\nendpoint = "tcp:port={port}:interface=127.0.0.1"\n'
            "trusted = true"
        )
        answered = posd.request("GET", "/metrics", key=shop.key("admin", None))
        self.assertEqual(answered.status, 200)
        self.assertTrue(answered.headers["content-type"].startswith("text/plain;"))
        lines = answered.content.decode().splitlines()
        for line in ("posd_database_up 1.0", "posd_ready 1.0", "posd_sequencer_up 1.0"):
            self.assertIn(line, lines)
        self.assertIn('posd_stream_last_id{tenant="kitchen"} 0.0', lines)
        self.assertEqual(posd.request("GET", "/metrics").status, 401)
        for key in (shop.key("tenant"), shop.key("platform")):
            self.assertEqual(posd.request("GET", "/metrics", key=key).status, 403)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            self.assertEqual(answer.status, 200)
            self.assertIn(b"posd_build_info", answer.read())
