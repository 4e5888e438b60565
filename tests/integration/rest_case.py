"""The base of the tests of REST: a daemon, and a tenant with keys for each test."""

from __future__ import annotations

import json
import socket
import ssl
from decimal import Decimal
from typing import Any

from tests.integration.harness import Reply
from tests.integration.wire import WAIT
from tests.integration.wire_case import WireCase, next_slug

KINDS = ("tenant", "device", "platform", "admin")


class RestCase(WireCase):
    """`key` is the default key of requests: at first that of the tenant."""

    def setUp(self) -> None:
        super().setUp()
        self.platform = self.shop.key("platform", self.slug)

    def ask(
        self, method: str, path: str, body: object = None, key: str | None = None, **headers: str
    ) -> Reply:
        """Send a request for this test's tenant. Bytes are sent as they are."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.posd.request(
            method, f"/api/{self.slug}{path}", body, key=key or self.key, headers=named
        )

    def another(self) -> str:
        """Return the keys of another tenant."""
        slug = next_slug()
        self.shop.add_tenant(slug)
        return slug

    def events(self) -> list[tuple[int, str, Any]]:
        """Return the tenant's stream: position, type and data."""
        rows = self.rows(
            "SELECT seq, event_type, event_data::text FROM {schema}.pos_events"
            " WHERE seq IS NOT NULL ORDER BY seq"
        )
        return [(seq, kind, json.loads(data, parse_float=Decimal)) for seq, kind, data in rows]

    def assert_refused(self, reply: Reply, status: int, code: str) -> None:
        self.assertEqual((reply.status, reply.json["code"]), (status, code), reply.json)
        self.assertIs(reply.json["success"], False)

    def assert_only(self, kinds: str, method: str, path: str) -> None:
        """Assert that other kinds of keys, keys of other tenants and a missing key are refused."""
        body: object = None if method == "GET" else {}
        for kind in KINDS:
            if kind not in kinds.split(", "):
                slug = None if kind == "admin" else self.slug
                key = self.shop.key(kind, slug, "POS_9" if kind == "device" else None)
                self.assert_refused(self.ask(method, path, body, key), 403, "forbidden")
        kind = kinds.split(", ")[0]
        stranger = self.shop.key(kind, self.another())
        self.assert_refused(self.ask(method, path, body, stranger), 401, "unauthorized")
        self.assert_refused(
            self.ask(method, path, body, self.shop.key(kind, self.slug), X_Tenant_ID="others"),
            403,
            "tenant_mismatch",
        )
        nobody = self.posd.request(method, f"/api/{self.slug}{path}", body)
        self.assert_refused(nobody, 401, "unauthorized")

    def send_and_leave(
        self, method: str, path: str, body: object, key: str | None = None, **headers: str
    ) -> None:
        """Send a whole request and disconnect without reading the answer."""
        content = json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [
            f"{method} /api/{self.slug}{path} HTTP/1.1",
            *("Host: localhost", "Content-Type: application/json"),
            f"X-API-Key: {key or self.key}",
            f"Content-Length: {len(content)}",
            *(f"{name}: {value}" for name, value in named.items()),
        ]
        trust = self.posd.tls()
        # TLS 1.3 would leave unread session tickets here. Then the kernel resets the connection and
        # discards the request.
        trust.maximum_version = ssl.TLSVersion.TLSv1_2
        plain = socket.create_connection(("127.0.0.1", self.posd.port), WAIT)
        with trust.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
