"""Tests of `pos-status` with a running posd: the numbers are those of all nodes."""

from __future__ import annotations

from datetime import datetime
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import Shop


class StatusTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.shop = Shop.open(["kitchen", "grill"])
        self.addCleanup(self.shop.close)
        self.daemon = self.shop.start()

    def test_a_shop_where_nothing_happens_says_so(self) -> None:
        reply = self.daemon.request("GET", "/api/grill/pos-status", key=self.shop.key(slug="grill"))
        self.assertEqual(reply.status, 200)
        moment = reply.json.pop("timestamp")
        self.assertIsNotNone(datetime.fromisoformat(moment).utcoffset())
        self.assertEqual(
            reply.json,
            {
                "success": True,
                "tenant": "grill",
                "websocket": {
                    "connected": False,
                    "active": 0,
                    "url": f"wss://localhost:{self.daemon.port}/ws/pos/grill",
                    "terminals": [],
                },
                "lastEventId": 0,
                "undelivered": 0,
                "events24h": [],
                "recentEvents": [],
            },
        )

    def test_terminals_events_and_what_is_undelivered_are_counted_on_all_nodes(self) -> None:
        platform = self.shop.key("platform")
        self.shop.key("device", device="front")
        for number in range(12):
            event = {"type": "notice" if number else "alarm", "data": {"n": number}}
            reply = self.daemon.request("POST", "/api/kitchen/events", event, key=platform)
            self.assertEqual(reply.status, 201)
        node = str(uuid4())
        self.shop.query(
            "INSERT INTO dinedesk_main.pos_nodes VALUES (%s, now() + interval '1 minute')", (node,)
        )
        self.shop.query(
            "INSERT INTO dinedesk_main.pos_connections"
            " (connection_id, node_id, tenant_id, device_id, connected_at, last_seen_at, sent_seq)"
            " SELECT gen_random_uuid(), %s, id, 'front', now(), now(), 9"
            "   FROM dinedesk_main.tenants WHERE slug = 'kitchen'",
            (node,),
        )
        self.shop.query("UPDATE dinedesk_main.pos_devices SET first_acked_at = now()")
        self.shop.query("UPDATE dinedesk_main.pos_cursors SET acked_seq = 8")
        self.shop.query(
            "UPDATE dinedesk_main.pos_heads SET sent_seq = 9, received_seq = 8 WHERE last_seq = 12"
        )
        status = self.daemon.request("GET", "/api/kitchen/pos-status", key=platform).json
        self.assertEqual((status["lastEventId"], status["undelivered"]), (12, 4))
        sockets = status["websocket"]
        self.assertEqual((sockets["connected"], sockets["active"]), (True, 1))
        ((front),) = sockets["terminals"]
        self.assertEqual(
            [front[name] for name in ("deviceId", "lastSentId", "lastAckId", "behind")],
            ["front", 9, 8, 4],
        )
        self.assertTrue(front["connectedSince"] and front["lastSeen"])
        counts = [(each["event_type"], each["count"]) for each in status["events24h"]]
        self.assertEqual(counts, [("alarm", 1), ("notice", 11)])
        recent = [(each["id"], each["status"]) for each in status["recentEvents"]]
        self.assertEqual(
            recent[:4], [(12, "pending"), (11, "pending"), (10, "pending"), (9, "broadcast")]
        )
        self.assertEqual((len(recent), recent[-1]), (10, (3, "success")))
        self.assertNotIn("data", status["recentEvents"][0])

    def test_every_kind_of_key_may_ask_and_nobody_else(self) -> None:
        keys = (
            self.shop.key("tenant"),
            self.shop.key("device", device="back"),
            self.shop.key("platform"),
            self.shop.key("admin", None),
        )
        for key in keys:
            self.assertEqual(self.ask(key), 200)
        self.assertEqual(self.ask(None), 401)
        self.assertEqual(self.ask(self.shop.key(slug="grill")), 401)

    def test_the_tenant_in_the_header_must_be_that_of_the_address(self) -> None:
        reply = self.daemon.request(
            "GET",
            "/api/kitchen/pos-status",
            key=self.shop.key(),
            headers={"X-Tenant-ID": "grill"},
        )
        self.assertEqual((reply.status, reply.json["code"]), (403, "tenant_mismatch"))

    def test_other_methods_and_names_are_refused(self) -> None:
        reply = self.daemon.request("POST", "/api/kitchen/pos-status", {})
        self.assertEqual((reply.status, reply.headers["allow"]), (405, "GET, HEAD"))
        reply = self.daemon.request("GET", "/api/-/pos-status")
        self.assertEqual((reply.status, reply.json["code"]), (400, "invalid_tenant"))
        self.assertEqual(self.daemon.request("GET", "/api/kitchen/nothing").status, 404)

    def test_health_is_told_with_and_without_a_slash(self) -> None:
        admin = self.shop.key("admin", None)
        for path in ("/health", "/health/"):
            reply = self.daemon.request("GET", path, key=admin)
            self.assertEqual((reply.status, reply.json["service"]), (200, "WebSocket Server"))
            self.assertEqual(self.daemon.request("GET", path).status, 401)
        self.assertEqual(self.daemon.request("GET", "/health/other").status, 404)
        self.assertEqual(self.daemon.request("GET", "/").status, 404)

    def ask(self, key: str | None) -> int:
        return self.daemon.request("GET", "/api/kitchen/pos-status", key=key).status
