"""Tests of operators' requests about tenants and terminals, with a running posd."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import Any

from tests.integration.harness import Daemon, Reply, Shop
from tests.integration.leaving import leave
from tests.integration.shared import shared
from tests.integration.wire_case import WireCase, until

_numbers = itertools.count(1)


class OperatorCase(WireCase):
    """An operator with an admin key for all tenants."""

    def setUp(self) -> None:
        super().setUp()
        self.admin = self.shop.key("admin", None)

    def ask(
        self,
        method: str,
        path: str = "",
        body: object = None,
        *,
        key: str | None = None,
        **headers: str,
    ) -> Reply:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.posd.request(
            method, f"/api/admin/tenants{path}", body, key=key or self.admin, headers=sent
        )

    def assert_refused(
        self, reply: Reply, status: int, code: str, field: str | None = None
    ) -> None:
        self.assertEqual(
            (reply.status, reply.json["code"], reply.json.get("field")), (status, code, field)
        )


class TenantTests(OperatorCase):
    def setUp(self) -> None:
        super().setUp()
        self.new = f"new-shop-{next(_numbers)}"

    def make(self, **more: object) -> Reply:
        return self.ask("POST", body={"slug": self.new, "name": "A new shop", **more})

    def listed(self) -> dict[str, Any]:
        return {each["slug"]: each for each in self.ask("GET").json["tenants"]}

    def test_a_tenant_that_was_made_can_be_used_at_once(self) -> None:
        reply = self.make()
        self.assertEqual((reply.status, reply.json["success"]), (201, True))
        key = self.shop.key("platform", self.new)
        event = {"type": "new_order", "data": {"orderId": "1", "totalAmount": 5}}
        published = self.posd.request("POST", f"/api/{self.new}/events", event, key=key)
        self.assertEqual((published.status, published.json["id"]), (201, 1))
        till = self.dial(key=self.shop.key(slug=self.new), path=f"/ws/pos/{self.new}", after=0)
        self.assertEqual(till.receive()["data"]["orderId"], "1")

    def test_what_was_made_is_told_and_listed(self) -> None:
        reply = self.make(currency="EUR", timezone="Europe/Paris", defaultRegion="FR")
        tenant = reply.json["tenant"]
        self.assertEqual(self.listed()[self.new], tenant)
        self.assertTrue(tenant.pop("createdAt"))
        self.assertEqual(
            tenant,
            {
                "slug": self.new,
                "name": "A new shop",
                "schema": f"dinedesk_{self.new.replace('-', '_')}",
                "currency": "EUR",
                "timezone": "Europe/Paris",
                "defaultRegion": "FR",
                "active": True,
                "ready": True,
                "connected": 0,
            },
        )

    def test_the_region_is_that_of_the_time_zone(self) -> None:
        for slug, timezone, region in (
            ("paris", "Europe/Paris", "FR"),
            ("kyiv", "Europe/Kiev", "UA"),
            ("everywhere", "UTC", "GB"),
        ):
            tenant = self.make(slug=slug, timezone=timezone).json["tenant"]
            self.assertEqual(tenant["defaultRegion"], region)

    def test_without_more_it_is_a_british_shop(self) -> None:
        tenant = self.make(default_region="IE").json["tenant"]
        self.assertEqual(
            [tenant[name] for name in ("currency", "timezone", "defaultRegion")],
            ["GBP", "Europe/London", "IE"],
        )

    def test_the_same_again_is_answered_with_the_tenant(self) -> None:
        made = self.make(timezone="Europe/Paris")
        again = self.make(timezone="Europe/Paris")
        self.assertEqual((again.status, again.json), (200, made.json))
        self.assert_refused(self.make(), 409, "tenant_exists")

    def test_a_key_gets_the_first_answer_again_and_makes_one_tenant(self) -> None:
        key = {"Idempotency_Key": f"make {self.new}".replace(" ", "-")}
        body = {"slug": self.new, "name": "A new shop"}
        made = self.ask("POST", body=body, **key)
        again = self.ask("POST", body=body, **key)
        self.assertEqual((made.status, again.status, again.json), (201, 201, made.json))
        self.assertNotIn("idempotent-replayed", made.headers)
        self.assertEqual(again.headers.get("idempotent-replayed"), "true")
        for changed in ({"slug": f"{self.new}-b"}, {"name": "Another"}):
            reply = self.ask("POST", body={**body, **changed}, **key)
            self.assert_refused(reply, 422, "idempotency_mismatch")
        self.assertNotIn(f"{self.new}-b", self.listed())
        self.assertEqual(self.ask("POST", body=body).status, 200)

    def test_a_key_that_comes_after_the_tenant_is_remembered_too(self) -> None:
        made = self.make()
        key, body = (
            {"Idempotency_Key": f"late-{self.new}"},
            {"slug": self.new, "name": "A new shop"},
        )
        first, again = (self.ask("POST", body=body, **key) for _ in range(2))
        self.assertEqual((first.status, first.json), (200, made.json))
        self.assertEqual((again.status, again.json), (200, made.json))
        self.assertEqual(again.headers.get("idempotent-replayed"), "true")
        other = self.ask("POST", body={**body, "slug": f"{self.new}-b"}, **key)
        self.assert_refused(other, 422, "idempotency_mismatch")

    def test_a_refused_call_leaves_its_key_free(self) -> None:
        self.make()
        key, body = {"Idempotency_Key": f"free-{self.new}"}, {"slug": self.new, "name": "Another"}
        self.assert_refused(self.ask("POST", body=body, **key), 409, "tenant_exists")
        reply = self.ask("POST", body={**body, "slug": f"{self.new}-c"}, **key)
        self.assertEqual(reply.status, 201)

    def test_a_shops_own_schema_is_left_to_posctl(self) -> None:
        self.shop.query(f"CREATE SCHEMA dinedesk_{self.new.replace('-', '_')}")
        reply = self.make()
        self.assert_refused(reply, 409, "schema_exists")
        self.assertIn("posctl tenant add", reply.json["error"])

    def test_what_cannot_be_a_tenant_is_refused_and_named(self) -> None:
        for field, wrong in (
            ("slug", "Kitchen"),
            ("slug", "kitchen\n"),
            ("slug", "super-admin"),
            ("name", ""),
            ("currency", "gbp"),
            ("currency", "XXQ"),
            ("currency", "XAU"),
            ("timezone", "Mars/Olympus"),
            ("timezone", "../UTC"),
            ("defaultRegion", "GBR"),
            ("defaultRegion", "QQ"),
        ):
            with self.subTest(field=field, value=wrong):
                self.assert_refused(self.make(**{field: wrong}), 400, "invalid_field", field)
        for field in ("slug", "name"):
            body = {"slug": self.new, "name": "A new shop"}
            del body[field]
            self.assert_refused(self.ask("POST", body=body), 400, "missing_field", field)
        self.assertNotIn(self.new, self.listed())

    def test_disabled_ones_are_listed_and_so_is_who_is_connected(self) -> None:
        self.dial()
        until(lambda: self.listed()[self.slug]["connected"] == 1, "the till is counted")
        self.shop.query(
            "UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = %s", (self.slug,)
        )
        self.assertFalse(self.listed()[self.slug]["active"])

    def test_the_list_comes_in_pages(self) -> None:
        self.make()
        whole = [*self.listed()]
        self.assertGreater(len(whole), 1)
        found, query = [], "?limit=1"
        while query:
            page = self.ask("GET", query).json
            found += [each["slug"] for each in page["tenants"]]
            query = f"?limit=1&after={page['next']}" if page["hasMore"] else ""
        self.assertEqual(found, whole)

    def test_one_whose_schema_is_not_what_is_needed_is_not_ready(self) -> None:
        self.shop.query(
            "DELETE FROM dinedesk_main.schema_versions WHERE schema_name = %s", (self.schema,)
        )
        self.assertFalse(self.listed()[self.slug]["ready"])

    def test_while_schemas_are_changed_it_is_for_later(self) -> None:
        connection = self.shop.connect()
        self.addCleanup(connection.close)
        with connection.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE dinedesk_main.schema_changes IN EXCLUSIVE MODE")
            reply = self.make()
        self.assert_refused(reply, 503, "busy")
        self.assertIn("retry-after", reply.headers)

    def test_a_client_that_goes_away_gets_its_tenant_all_the_same(self) -> None:
        body = {"slug": self.new, "name": "A new shop"}
        path = "/api/admin/tenants"
        leave(self.shop, self.posd, "dinedesk_main.tenants", path, body, self.admin)
        until(lambda: self.new in self.listed(), "the tenant is there")


class TerminalTests(OperatorCase):
    def terminals(self) -> list[dict[str, Any]]:
        reply = self.ask("GET", f"/{self.slug}/terminals")
        self.assertEqual((reply.status, reply.json["tenant"]), (200, self.slug))
        terminals: list[dict[str, Any]] = reply.json["terminals"]
        return terminals

    def disconnect(self, device: str, slug: str | None = None) -> Reply:
        return self.ask("POST", f"/{slug or self.slug}/terminals/{device}/disconnect", {})

    def test_a_terminal_is_shown_with_what_operators_need(self) -> None:
        self.dial(key=self.shop.key("device", self.slug, "BAR"))
        self.rows(
            "UPDATE dinedesk_main.pos_devices SET device_name = 'The bar', app_version = '4.1'"
            " WHERE {mine}"
        )
        until(lambda: self.terminals()[0]["connectedSince"], "it is in the books")
        (terminal,) = self.terminals()
        self.assertTrue(terminal.pop("connectedSince") and terminal.pop("lastSeen"))
        self.assertIn(
            terminal.pop("node"),
            [row[0] for row in self.rows("SELECT node_id::text FROM dinedesk_main.pos_nodes")],
        )
        self.assertEqual(
            terminal,
            {
                "deviceId": "BAR",
                "lastSentId": None,
                "lastAckId": 0,
                "behind": None,
                "deviceName": "The bar",
                "hasKey": True,
                "active": True,
                "appVersion": "4.1",
                "firstAckedAt": None,
            },
        )

    def test_those_that_are_away_are_shown_too(self) -> None:
        self.rows(
            "INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id, is_active, first_acked_at)"
            " SELECT id, 'OLD', false, now() FROM dinedesk_main.tenants WHERE slug = %s",
            self.slug,
        )
        (terminal,) = self.terminals()
        shown = {name: terminal[name] for name in ("connectedSince", "node", "hasKey", "active")}
        self.assertEqual(
            shown, {"connectedSince": None, "node": None, "hasKey": False, "active": False}
        )
        self.assertTrue(terminal["firstAckedAt"])

    def test_a_terminal_that_is_disconnected_may_come_back(self) -> None:
        till, other = self.dial(device="BAR", after=0), self.dial(device="DOOR", after=0)
        until(lambda: all(each["connectedSince"] for each in self.terminals()), "in the books")
        reply = self.disconnect("BAR")
        self.assertEqual(
            (reply.status, reply.json),
            (200, {"success": True, "deviceId": "BAR", "wasConnected": True}),
        )
        self.assert_ended(till.ended(), 1001, "disconnected by the operator")
        self.assertTrue(other.next_is_pong(1))
        self.assertTrue(self.dial(device="BAR").next_is_pong(1))

    def test_a_deployed_till_is_dropped_without_a_close_frame(self) -> None:
        till = self.dial(key=self.shop.key("device", self.slug, "BAR"))
        until(lambda: self.terminals()[0]["connectedSince"], "it is in the books")
        self.disconnect("BAR")
        self.assert_ended(till.ended(), 1006)

    def test_it_is_found_on_whichever_node_it_is(self) -> None:
        till = self.dial(device="BAR", after=0, to=another_node(self.shop))
        until(lambda: self.terminals()[0]["connectedSince"], "it is in the books")
        self.assertTrue(self.disconnect("BAR").json["wasConnected"])
        self.assert_ended(till.ended(), 1001)

    def test_one_that_is_away_is_no_mistake(self) -> None:
        self.shop.key("device", self.slug, "BÄR / 1")
        reply = self.disconnect("B%C3%84R%20%2F%201")
        self.assertEqual((reply.json["deviceId"], reply.json["wasConnected"]), ("BÄR / 1", False))

    def test_terminals_and_tenants_that_nobody_knows(self) -> None:
        self.assert_refused(self.disconnect("NOBODY"), 404, "unknown_terminal")
        self.assert_refused(self.disconnect("BAR", "nowhere"), 404, "unknown_tenant")
        for nowhere in ("nowhere", "No-Where", "%00", "a%2Fb"):
            with self.subTest(slug=nowhere):
                reply = self.ask("GET", f"/{nowhere}/terminals")
                self.assert_refused(reply, 404, "unknown_tenant")
        self.assert_refused(self.disconnect("%00"), 404, "unknown_terminal")

    def test_a_device_of_another_tenant_is_nobody_here(self) -> None:
        other = f"{self.slug}-other"
        self.shop.add_tenant(other)
        till = self.dial(key=self.shop.key(slug=other), device="BAR", path=f"/ws/pos/{other}")
        self.assert_refused(self.disconnect("BAR"), 404, "unknown_terminal")
        self.assertTrue(till.next_is_pong(1))


class DisablingTests(OperatorCase):
    """Tests of `pos_devices.is_active`, which operators change by SQL."""

    def disable(self, device: str, active: bool = False) -> None:
        self.rows(
            "UPDATE dinedesk_main.pos_devices SET is_active = %s WHERE {mine} AND device_id = %s",
            active,
            device,
        )

    def test_a_device_that_is_disabled_is_disconnected_at_once_and_kept_out(self) -> None:
        till, other = self.dial(device="BAR"), self.dial(device="DOOR")
        self.disable("BAR")
        self.assert_ended(till.ended(), 4001, "the device is disabled")
        self.assertTrue(other.next_is_pong(1))
        self.assertEqual(self.refused(device="BAR").json["code"], "device_disabled")

    def test_one_that_is_enabled_again_gets_in_at_once(self) -> None:
        self.dial(device="BAR")
        self.disable("BAR")
        until(lambda: self.is_refused("BAR"), "it is kept out")
        self.disable("BAR", True)
        until(lambda: not self.is_refused("BAR"), "it is let in")

    def is_refused(self, device: str) -> bool:
        status = self.posd.request(
            "GET", f"/api/{self.slug}/pos-status", key=self.key, headers={"X-Device-ID": device}
        ).status
        self.assertIn(status, (200, 403))
        return status == 403


class RightsTests(OperatorCase):
    """Tests of the keys that may call the endpoints."""

    def calls(self, slug: str) -> list[tuple[str, str, object]]:
        return [
            ("GET", f"/{slug}/keys", None),
            ("POST", f"/{slug}/keys", {"kind": "tenant"}),
            ("DELETE", f"/{slug}/keys?id=2147483647", None),
            ("GET", f"/{slug}/terminals", None),
            ("POST", f"/{slug}/terminals/BAR/disconnect", {}),
        ]

    def everywhere(self) -> list[tuple[str, str, object]]:
        return [("GET", "", None), ("POST", "", {"slug": "mine", "name": "Mine"})]

    def test_other_kinds_of_keys_may_nothing(self) -> None:
        keys = {kind: self.shop.key(kind, self.slug) for kind in ("tenant", "platform")}
        keys["device"] = self.shop.key("device", self.slug, "BAR")
        keys["platform of all"] = self.shop.key("platform", None)
        for method, path, body in (*self.everywhere(), *self.calls(self.slug)):
            for kind, key in keys.items():
                with self.subTest(method=method, path=path, kind=kind):
                    self.assert_refused(self.ask(method, path, body, key=key), 403, "forbidden")

    def test_without_a_valid_key_nothing_is_told(self) -> None:
        for method, path, body in (*self.everywhere(), *self.calls("nowhere")):
            with self.subTest(method=method, path=path):
                self.assert_refused(self.ask(method, path, body, key="wrong"), 401, "unauthorized")

    def test_an_operator_of_one_tenant_may_do_what_concerns_that_one(self) -> None:
        key = self.shop.key("admin", self.slug)
        other = f"{self.slug}-other"
        self.shop.add_tenant(other)
        for method, path, body in self.calls(self.slug):
            with self.subTest(method=method, path=path):
                self.assertIn(self.ask(method, path, body, key=key).status, (200, 201, 404))
        for method, path, body in (*self.everywhere(), *self.calls(other), *self.calls("nowhere")):
            with self.subTest(method=method, path=path):
                self.assert_refused(self.ask(method, path, body, key=key), 403, "forbidden")

    def test_a_tenant_that_is_named_besides_must_be_the_one(self) -> None:
        reply = self.ask("GET", f"/{self.slug}/keys", X_Tenant_ID="grill")
        self.assert_refused(reply, 403, "tenant_mismatch")
        self.assertEqual(self.ask("GET", f"/{self.slug}/keys", X_Tenant_ID=self.slug).status, 200)


@shared
def another_node(stack: ExitStack, shop: Shop) -> Daemon:
    """A second posd with the same shop, shared by all tests of that shop."""
    node = shop.start(OperatorCase.configuration)
    stack.callback(node.kill)
    return node
