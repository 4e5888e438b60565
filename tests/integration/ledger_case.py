"""The base of the tests of gift cards and points: a shop, its keys, and calls of a till."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from posd.protocol import jsontext
from tests.integration.harness import Reply
from tests.integration.wire_case import WireCase

PHONE = "+447700900123"


class LedgerCase(WireCase):
    """A tenant for each test, with the key of a device (`key`) and that of a platform."""

    def setUp(self) -> None:
        super().setUp()
        self.tenant_key = self.key
        self.key = self.shop.key("device", self.slug, "POS_1")
        self.platform = self.shop.key("platform", self.slug)

    def tearDown(self) -> None:
        """Assert that the description of the API declares all refusals of the test."""
        self.assertNotIn("does not declare", self.posd.log())

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] = {},
    ) -> Reply:
        """Call an address of this tenant, with the key of its till by default."""
        # Amounts as they are written in the test, not as binary floats.
        sent = None if body is None else jsontext.encode(body)
        return self.posd.request(
            method, f"/api/{self.slug}/{path}", sent, key=key or self.key, headers=headers
        )

    def post(
        self,
        path: str,
        body: object,
        *,
        key: str | None = None,
        once: str | None = None,
        headers: Mapping[str, str] = {},
    ) -> Reply:
        """POST. `once` is the Idempotency-Key."""
        named = {} if once is None else {"Idempotency-Key": once}
        return self.ask("POST", path, body, key=key, headers={**named, **headers})

    def sell(self, amount: str = "50", card: str | None = "GC-1", **more: object) -> str:
        """Sell a card as a platform. Return its number."""
        body = {"amount": Decimal(amount), "cardNumber": card, **more}
        sold = self.post("gift-cards", body, key=self.platform)
        self.assertEqual(sold.status, 201, sold.content)
        return str(sold.json["cardNumber"])

    def earn(self, points: int, phone: str = PHONE, **more: object) -> Reply:
        """Add points as a platform."""
        earned = self.post(
            f"loyalty/{quote(phone)}/add", {"points": points, **more}, key=self.platform
        )
        self.assertEqual(earned.status, 200, earned.content)
        return earned

    def balances(self, table: str = "pos_gift_card_transactions") -> list[Any]:
        """Return the movements in the ledger: changes and balances."""
        change = "amount" if table == "pos_gift_card_transactions" else "points"
        rows = self.rows(f"SELECT {change}, balance_after FROM {{schema}}.{table} ORDER BY id")
        return [tuple(row) for row in rows]

    def assert_refused(self, reply: Reply, status: int, code: str, **details: object) -> None:
        """Assert that an answer has the form of an error, and return its other members."""
        self.assertEqual((reply.status, reply.json["code"]), (status, code), reply.content)
        self.assertIs(reply.json["success"], False)
        self.assertLessEqual(details.items(), exact(reply).items())

    def assert_twice(self, reply: Reply) -> None:
        """Assert that the members of an answer are repeated under `data`."""
        data = reply.json["data"]
        members = {n: v for n, v in reply.json.items() if n not in ("success", "data")}
        self.assertLessEqual(members.items(), data.items())

    def assert_replayed(self, first: Reply, again: Reply) -> None:
        """Assert that an answer is a repetition and says so."""
        self.assertNotIn("idempotent-replayed", first.headers)
        self.assertEqual(again.headers.get("idempotent-replayed"), "true")
        self.assertEqual((again.status, again.json), (first.status, first.json))

    def send_and_leave(self, path: str, body: object, *, once: str, key: str | None = None) -> None:
        """Send a call and disconnect without reading.

        The socket is closed for writing only. A full close with unread data would become a reset, which
        may overtake the call.
        """
        text = json.dumps(body)
        request = (
            f"POST /api/{self.slug}/{path} HTTP/1.1\r\nHost: localhost\r\n"
            f"X-API-Key: {key or self.key}\r\nIdempotency-Key: {once}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
        )
        plain = socket.create_connection(("127.0.0.1", self.posd.port), 10)
        secure = self.posd.tls().wrap_socket(plain, server_hostname="localhost")
        self.addCleanup(secure.close)
        secure.sendall(request.encode())
        secure.shutdown(socket.SHUT_WR)


def exact(reply: Reply) -> dict[str, Any]:
    """Return an answer with its numbers as they are written."""
    members: dict[str, Any] = json.loads(reply.content, parse_float=Decimal)
    return members
