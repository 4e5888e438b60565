"""Every endpoint of the description: who may call it, and that tenants learn nothing of each other."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import Daemon, Reply, Shop
from tests.integration.shared import shared
from tests.integration.wire import Refused, Till

TILLS: Final = frozenset(("tenant", "device"))
PLATFORM: Final = frozenset(("platform",))
ADMIN: Final = frozenset(("admin",))
LEDGERS: Final = TILLS | PLATFORM
KINDS: Final = ("tenant", "device", "platform", "admin")

WHO: Final = {
    "GET /api/{tenant}/health": TILLS | PLATFORM | ADMIN,
    "GET /api/{tenant}/pos-status": TILLS | PLATFORM | ADMIN,
    # The stream, and reports of tills about orders.
    "GET /api/{tenant}/events": TILLS,
    "GET /api/{tenant}/events/stream": TILLS,
    "POST /api/{tenant}/events/ack": TILLS,
    "GET /api/{tenant}/orders/pending": TILLS,
    "POST /api/{tenant}/orders/received": TILLS,
    "POST /api/{tenant}/orders/accepted": TILLS,
    "POST /api/{tenant}/orders/print": TILLS,
    "POST /api/{tenant}/heartbeat": TILLS,
    "POST /api/{tenant}/reports/daily": TILLS,
    # Ledgers, which both use. Platforms sell.
    "GET /api/{tenant}/gift-cards/{cardNumber}/balance": LEDGERS,
    "POST /api/{tenant}/gift-cards/{cardNumber}/deduct": LEDGERS,
    "POST /api/{tenant}/gift-cards/{cardNumber}/reverse": LEDGERS,
    "GET /api/{tenant}/loyalty/{phone}/points": LEDGERS,
    "POST /api/{tenant}/loyalty/{phone}/add": LEDGERS,
    "POST /api/{tenant}/loyalty/{phone}/redeem": LEDGERS,
    "POST /api/{tenant}/loyalty/{phone}/reverse": LEDGERS,
    "POST /api/{tenant}/gift-cards": PLATFORM,
    # Calls of platforms.
    "POST /api/{tenant}/orders": PLATFORM,
    "GET /api/{tenant}/orders/{orderId}": PLATFORM,
    "PATCH /api/{tenant}/orders/{orderId}": PLATFORM,
    "POST /api/{tenant}/events": PLATFORM,
    "POST /broadcast": PLATFORM,
    # Operators.
    "GET /api/admin/tenants": ADMIN,
    "POST /api/admin/tenants": ADMIN,
    "GET /api/admin/tenants/{slug}/keys": ADMIN,
    "POST /api/admin/tenants/{slug}/keys": ADMIN,
    "DELETE /api/admin/tenants/{slug}/keys": ADMIN,
    "GET /api/admin/tenants/{slug}/terminals": ADMIN,
    "POST /api/admin/tenants/{slug}/terminals/{deviceId}/disconnect": ADMIN,
    "GET /health": ADMIN,
    "GET /metrics": ADMIN,
    # Public.
    "GET /health/live": frozenset[str](),
    "GET /health/ready": frozenset[str](),
    "GET /openapi.json": frozenset[str](),
    "GET /docs": frozenset[str](),
}
"""The kinds of keys that may call each operation. `nobody`: no key is needed."""

SECRET: Final = "Greta of the grill"
"""A customer's name that no answer about `kitchen` may contain."""

IN_BOTH: Final = {
    "cardNumber": "CARD-1",
    "phone": "+447700900123",
    "orderId": "A-1",
    "deviceId": "front",
    "slug": "kitchen",
}
"""The same names in both shops, so that a mix-up is found."""

OF_GRILL: Final = {
    "cardNumber": "CARD-GRILL",
    "phone": "+447700900999",
    "orderId": "G-1",
    "deviceId": "grill-till",
    "slug": "grill",
}


@frozen
class Called:
    """An operation: the description's path, and an address."""

    name: str
    method: str
    path: str
    kinds: frozenset[str]
    example: object

    def address(self, tenant: str, values: dict[str, str]) -> str:
        address = self.path.replace("{tenant}", tenant)
        for name, value in values.items():
            address = address.replace(f"{{{name}}}", urllib.parse.quote(value, safe=""))
        return address


class Scene:
    """Two shops with the same names, and keys of every kind for each."""

    def __init__(self, shop: Shop, posd: Daemon) -> None:
        self.shop, self.posd = shop, posd
        self.keys = {
            slug: {
                "tenant": self.shop.key("tenant", slug),
                "device": self.shop.key("device", slug, device="front"),
                "platform": self.shop.key("platform", slug),
                "admin": self.shop.key("admin", None),
            }
            for slug in ("kitchen", "grill")
        }
        self.fill("kitchen", "Ken of the kitchen", IN_BOTH)
        self.fill("grill", SECRET, IN_BOTH)
        self.fill("grill", SECRET, OF_GRILL)
        self.operations = [*self.described()]

    def fill(self, slug: str, customer: str, names: dict[str, str]) -> None:
        platform = self.keys[slug]["platform"]

        def post(path: str, body: object) -> None:
            reply = self.posd.request("POST", f"/api/{slug}{path}", body, key=platform)
            assert reply.status in (200, 201), (path, reply.status, reply.json)

        order = {"orderId": names["orderId"], "totalAmount": 12.5, "customerName": customer}
        post("/orders", order)
        card = {"cardNumber": names["cardNumber"], "amount": 50, "recipientName": customer}
        post("/gift-cards", card)
        self.shop.query(
            f"INSERT INTO dinedesk_{slug}.loyalty_accounts (phone, customer_name) VALUES (%s, %s)"
            " ON CONFLICT DO NOTHING",
            (names["phone"], customer),
        )
        phone = urllib.parse.quote(names["phone"])
        post(f"/loyalty/{phone}/add", {"points": 100, "reason": customer})

    def described(self) -> Iterator[Called]:
        whole = self.posd.request("GET", "/openapi.json").json
        for path, methods in whole["paths"].items():
            for method, operation in methods.items():
                content = operation.get("requestBody", {}).get("content", {})
                example = content.get("application/json", {}).get("example", {})
                name = f"{method.upper()} {path}"
                kinds = frozenset(operation.get("x-key-kinds", ()))
                yield Called(name, method.upper(), path, kinds, example)

    def ask(
        self, called: Called, tenant: str, values: dict[str, str], key: str | None, **headers: str
    ) -> Reply:
        if called.path.endswith("/events/stream"):
            # It has no end, unless it is refused.
            return self.begin_stream(called.address(tenant, values), key)
        body = None if called.method in ("GET", "DELETE") else called.example
        address = called.address(tenant, values)
        return self.posd.request(called.method, address, body, key=key, headers=headers)

    def begin_stream(self, address: str, key: str | None) -> Reply:
        """Return the head of an answer, and the beginning of a stream."""
        connection = http.client.HTTPSConnection(
            "localhost", self.posd.port, timeout=300, context=self.posd.tls()
        )
        try:
            connection.request("GET", address, headers={"X-API-Key": key} if key else {})
            answer = connection.getresponse()
            if answer.status != 200:
                content = answer.read()
                return Reply(answer.status, json.loads(content), {}, content)
            return Reply(200, None, {}, answer.readline() + answer.readline())
        finally:
            connection.close()

    def state(self, slug: str) -> dict[str, object]:
        """Return the content of a shop's schema, without the print statuses of its orders."""
        tables = self.shop.query(
            "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'v')",
            (f"dinedesk_{slug}",),
        )
        columns = {
            "pos_orders": "order_id, snapshot::text, status, version",
            "pos_sync_logs": "id, seq, event_type, event_data::text, device_id, failure",
        }
        return {
            name: self.shop.query(
                f"SELECT {columns.get(name, 't::text')} FROM dinedesk_{slug}.{name} AS t ORDER BY 1"
            )
            for (name,) in tables
        }


@shared
def scene(stack: ExitStack) -> Scene:
    shop = Shop.open(["kitchen", "grill"])
    stack.callback(shop.close)
    return Scene(shop, shop.start("[limits]\nfailed_auth_per_minute = 100000\n"))


class EveryEndpointCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.scene = scene()
        self.kitchen, self.grill = self.scene.keys["kitchen"], self.scene.keys["grill"]

    def at_tenants(self) -> Iterator[Called]:
        for called in self.scene.operations:
            if "{tenant}" in called.path:
                yield called


class KindTests(EveryEndpointCase):
    def test_the_description_has_these_and_says_who_may(self) -> None:
        described = {called.name: called.kinds for called in self.scene.operations}
        self.assertEqual(described, WHO)

    def test_a_key_of_another_kind_is_403_and_of_these_kinds_is_not(self) -> None:
        for called in self.scene.operations:
            for kind in KINDS if called.kinds else ():
                with self.subTest(operation=called.name, kind=kind):
                    # Nothing has this name, so nothing is changed.
                    values = {**OF_GRILL, "slug": "nobody"}
                    reply = self.scene.ask(called, "kitchen", values, self.kitchen[kind])
                    code = (reply.json or {}).get("code")
                    if kind in called.kinds:
                        self.assertNotIn(code, ("forbidden", "unauthorized"))
                    else:
                        self.assertEqual((reply.status, code), (403, "forbidden"))

    def test_no_key_is_401(self) -> None:
        for called in self.scene.operations:
            if called.kinds:
                with self.subTest(operation=called.name):
                    reply = self.scene.ask(called, "kitchen", IN_BOTH, None)
                    self.assertEqual((reply.status, reply.json["code"]), (401, "unauthorized"))


class IsolationTests(EveryEndpointCase):
    def test_another_tenants_keys_get_what_they_would_get_if_there_were_no_tenant(self) -> None:
        before = self.scene.state("kitchen")
        for called in self.at_tenants():
            for kind in ("tenant", "device", "platform"):
                with self.subTest(operation=called.name, kind=kind):
                    key = self.grill[kind]
                    replies = [
                        self.scene.ask(called, slug, IN_BOTH, key) for slug in ("kitchen", "nobody")
                    ]
                    bodies = [{**reply.json, "requestId": None} for reply in replies]
                    self.assertEqual([reply.status for reply in replies], [401, 401])
                    self.assertEqual(bodies[0], bodies[1])
        self.assertEqual(self.scene.state("kitchen"), before)

    def test_another_tenants_names_lead_nowhere(self) -> None:
        before = self.scene.state("grill")
        for called in self.at_tenants():
            for kind in sorted(called.kinds - ADMIN):
                with self.subTest(operation=called.name, kind=kind):
                    reply = self.scene.ask(called, "kitchen", OF_GRILL, self.kitchen[kind])
                    self.assertNotIn(SECRET.encode(), reply.content)
                    self.assertLess(reply.status, 500)
                    if "{orderId}" in called.path or called.path.endswith(("/balance", "/points")):
                        self.assertEqual(reply.status, 404)
        self.assertEqual(self.scene.state("grill"), before)

    def test_the_same_names_are_each_tenants_own(self) -> None:
        before = self.scene.state("grill")
        for called in self.at_tenants():
            for kind in sorted(called.kinds - ADMIN):
                with self.subTest(operation=called.name, kind=kind):
                    reply = self.scene.ask(called, "kitchen", IN_BOTH, self.kitchen[kind])
                    self.assertNotIn(SECRET.encode(), reply.content)
                    self.assertLess(reply.status, 500)
        self.assertEqual(self.scene.state("grill"), before)

    def test_a_header_that_names_another_tenant_is_403(self) -> None:
        for called in self.at_tenants():
            if called.path.endswith("/events/stream"):
                continue
            with self.subTest(operation=called.name):
                kind = sorted(called.kinds)[-1]
                headers = {"X-Tenant-ID": "grill"}
                reply = self.scene.ask(called, "kitchen", IN_BOTH, self.kitchen[kind], **headers)
                self.assertEqual((reply.status, reply.json["code"]), (403, "tenant_mismatch"))

    def test_a_broadcast_for_another_tenant_is_401(self) -> None:
        before = self.scene.state("kitchen")
        event = {"type": "new_order", "data": {"orderId": "forged", "totalAmount": 1}}
        reply = self.scene.posd.request(
            "POST", "/broadcast", {"tenant": "kitchen", "event": event}, key=self.grill["platform"]
        )
        self.assertEqual(reply.status, 401)
        self.assertEqual(self.scene.state("kitchen"), before)

    def test_a_till_is_let_in_to_its_own_tenant_only_and_hears_of_no_other(self) -> None:
        posd = self.scene.posd
        with self.assertRaises(Refused) as refused:
            self.dial("kitchen", self.grill["tenant"])
        self.assertEqual(refused.exception.status, 401)
        till = self.dial("kitchen", self.kitchen["tenant"], "?last_event_id=0")
        event = {"type": "notice", "data": {"for": SECRET}}
        for slug in ("grill", "kitchen"):
            body = {**event, "data": {"for": slug}} if slug == "kitchen" else event
            key = self.scene.keys[slug]["platform"]
            self.assertEqual(posd.request("POST", f"/api/{slug}/events", body, key=key).status, 201)
        heard = till.take(till.connected["lastEventId"] + 1)
        self.assertEqual(heard[-1]["data"], {"for": "kitchen"})
        self.assertNotIn(SECRET, str(heard))

    def dial(self, slug: str, key: str, query: str = "") -> Till:
        till = Till.dial(self.scene.posd, f"/ws/pos/{slug}{query}", {"X-API-Key": key})
        self.addCleanup(till.hang_up)
        return till
