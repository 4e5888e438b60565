"""Tests of creating, listing and revoking a tenant's keys, with a running posd."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.integration.harness import Reply
from tests.integration.leaving import leave
from tests.integration.wire_case import until
from tests.web.api.test_tenants import OperatorCase


class KeysCase(OperatorCase):
    def make(self, slug: str | None = None, **wanted: Any) -> Reply:
        headers = {name: wanted.pop(name) for name in list(wanted) if name[0].isupper()}
        return self.ask("POST", f"/{slug or self.slug}/keys", wanted, **headers)

    def keys(self) -> list[dict[str, Any]]:
        reply = self.ask("GET", f"/{self.slug}/keys")
        self.assertEqual((reply.status, reply.json["tenant"]), (200, self.slug))
        keys: list[dict[str, Any]] = reply.json["keys"]
        return keys

    def revoke(self, key_id: object, slug: str | None = None) -> Reply:
        return self.ask("DELETE", f"/{slug or self.slug}/keys?id={key_id}")

    def enters(self, key: str) -> bool:
        status = self.posd.request("GET", f"/api/{self.slug}/pos-status", key=key).status
        self.assertIn(status, (200, 401))
        return status == 200


class MakingTests(KeysCase):
    def test_a_key_is_shown_once_and_works(self) -> None:
        reply = self.make(kind="device", deviceId="BAR")
        self.assertEqual(reply.status, 201)
        key = reply.json["key"]
        self.assertRegex(key, "^pos_[0-9a-f]{64}$")
        till = self.dial(key=key)
        self.assertEqual(till.connected["deviceId"], "BAR")
        listed = self.keys()
        self.assertNotIn(key, str(listed))
        self.assertEqual(listed[-1]["preview"], f"{key[:8]}…{key[-4:]}")
        self.assertEqual((listed[-1]["id"], listed[-1]["deviceId"]), (reply.json["id"], "BAR"))

    def test_every_kind_that_is_a_tenants_can_be_made(self) -> None:
        for wanted in (
            {"kind": "tenant"},
            {"kind": "platform"},
            {"kind": "device", "device_id": "D"},
        ):
            with self.subTest(**wanted):
                reply = self.make(**wanted)
                self.assertEqual((reply.status, reply.json["kind"]), (201, wanted["kind"]))
                self.assertTrue(self.enters(reply.json["key"]))

    def test_a_key_may_expire(self) -> None:
        reply = self.make(kind="tenant", expires="90d")
        expires = datetime.fromisoformat(reply.json["expiresAt"])
        self.assertLess(abs(expires - datetime.now(UTC) - timedelta(days=90)), timedelta(hours=1))
        self.assertEqual(self.keys()[-1]["expiresAt"], reply.json["expiresAt"])
        self.assertIsNone(self.make(kind="tenant", expires=None).json["expiresAt"])

    def test_a_retry_makes_no_second_key_and_does_not_show_the_first(self) -> None:
        first = self.make(kind="tenant", Idempotency_Key="K-1")
        again = self.make(kind="tenant", Idempotency_Key="K-1")
        self.assertEqual(again.headers.get("idempotent-replayed"), "true")
        key = first.json.pop("key")
        self.assertEqual((again.status, again.json), (201, first.json))
        self.assertEqual([each["id"] for each in self.keys()].count(first.json["id"]), 1)
        stored = str(
            self.rows("SELECT answer::text FROM dinedesk_main.idempotency_keys WHERE {mine}")
        )
        self.assertIn(first.json["preview"], stored)
        self.assertNotIn(key[8:-4], stored)
        reply = self.make(kind="platform", Idempotency_Key="K-1")
        self.assert_refused(reply, 422, "idempotency_mismatch")

    def test_keys_of_operators_and_unknown_kinds_are_not_made_here(self) -> None:
        for kind in ("admin", "root", "", None):
            with self.subTest(kind=kind):
                self.assert_refused(self.make(kind=kind), 400, "invalid_field", "kind")
        self.assert_refused(self.make(), 400, "missing_field", "kind")

    def test_a_device_key_names_a_device_and_no_other_does(self) -> None:
        for wanted in (
            {"kind": "device"},
            {"kind": "device", "deviceId": None},
            {"kind": "device", "deviceId": ""},
            {"kind": "device", "deviceId": "x" * 129},
            {"kind": "device", "deviceId": " BAR"},
            {"kind": "device", "deviceId": "B\tR"},
            {"kind": "tenant", "deviceId": "BAR"},
            {"kind": "device", "deviceId": "BAR", "device_id": "DOOR"},
        ):
            with self.subTest(**wanted):
                self.assert_refused(self.make(**wanted), 400, "invalid_field", "deviceId")

    def test_a_lifetime_is_a_time_that_will_pass(self) -> None:
        for wrong in ("0s", "90", "36501d", "999999999999999d", "soon", 90):
            with self.subTest(expires=wrong):
                reply = self.make(kind="tenant", expires=wrong)
                self.assert_refused(reply, 400, "invalid_field", "expires")

    def test_nobody_makes_keys_of_a_tenant_that_is_not_there(self) -> None:
        self.assert_refused(self.make("nowhere", kind="tenant"), 404, "unknown_tenant")

    def test_a_key_of_a_disabled_tenant_can_be_made_and_does_not_open_it(self) -> None:
        self.rows("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = %s", self.slug)
        reply = self.make(kind="tenant")
        self.assertEqual(reply.status, 201)
        self.assertFalse(self.enters(reply.json["key"]))

    def test_a_client_that_goes_away_has_made_a_key_all_the_same(self) -> None:
        before = len(self.keys())
        path = f"/api/admin/tenants/{self.slug}/keys"
        body = {"kind": "platform"}
        leave(self.shop, self.posd, "dinedesk_main.pos_api_keys", path, body, self.admin)
        until(lambda: len(self.keys()) == before + 1, "the key is there")

    def test_the_log_names_both_keys_by_their_ids_and_shows_neither(self) -> None:
        made = self.make(kind="tenant").json
        ((admin,),) = self.shop.query(
            "SELECT id FROM dinedesk_main.pos_api_keys WHERE key_sha256 = sha256(%s)",
            (self.admin.encode(),),
        )
        log = self.posd.log()
        self.assertRegex(log, rf"key {admin} \w+ key {made['id']} of tenant {self.slug}")
        self.assertNotIn(made["key"], log)


class RevokingTests(KeysCase):
    def test_a_revoked_key_opens_nothing_and_its_tills_are_disconnected(self) -> None:
        made = self.make(kind="device", deviceId="BAR").json
        till = self.dial(key=made["key"])
        reply = self.revoke(made["id"])
        self.assertEqual((reply.status, reply.json["id"]), (200, made["id"]))
        self.assert_ended(till.ended(), 4001, "the credential is no longer valid")
        until(lambda: not self.enters(made["key"]), "the key is refused")
        (listed,) = (each for each in self.keys() if each["id"] == made["id"])
        self.assertEqual(
            (listed["state"], listed["revokedAt"]), ("revoked", reply.json["revokedAt"])
        )

    def test_again_it_is_revoked_since_it_was(self) -> None:
        key_id = self.make(kind="tenant").json["id"]
        self.assertEqual(self.revoke(key_id).json, self.revoke(key_id).json)

    def test_a_key_of_another_tenant_or_of_all_is_none_of_this_one(self) -> None:
        other = f"{self.slug}-other"
        self.shop.add_tenant(other)
        key_id = self.make(kind="tenant").json["id"]
        self.assert_refused(self.revoke(key_id, other), 404, "unknown_key")
        ((everywhere,),) = self.shop.query(
            "SELECT max(id) FROM dinedesk_main.pos_api_keys WHERE tenant_id IS NULL"
        )
        self.assert_refused(self.revoke(everywhere), 404, "unknown_key")
        self.assertEqual(self.ask("GET").status, 200)
        self.assertEqual(self.keys()[-1]["state"], "valid")

    def test_what_is_no_key_of_a_tenant_is_said(self) -> None:
        self.assert_refused(self.revoke(2**31 - 1), 404, "unknown_key")
        self.assert_refused(self.revoke(1, "nowhere"), 404, "unknown_tenant")
        for wrong in ("0", "-1", "x", str(2**31), ""):
            with self.subTest(id=wrong):
                self.assert_refused(self.revoke(wrong), 400, "invalid_field", "id")
        self.assert_refused(self.ask("DELETE", f"/{self.slug}/keys"), 400, "missing_field", "id")


class ListTests(KeysCase):
    def test_a_key_is_shown_with_all_that_is_known_of_it(self) -> None:
        self.rows(
            "UPDATE dinedesk_main.tenants SET pos_api_key = 'an-old-key' WHERE slug = %s", self.slug
        )
        weak = self.keys()[-1]
        self.assertTrue(weak.pop("id") and weak.pop("notBefore"))
        self.assertEqual(
            weak,
            {
                "kind": "tenant",
                "deviceId": None,
                "preview": "a…",
                "weak": True,
                "state": "valid",
                "expiresAt": None,
                "revokedAt": None,
                "lastUsedAt": None,
            },
        )

    def test_the_list_comes_in_pages(self) -> None:
        for number in range(4):
            self.ask("POST", f"/{self.slug}/keys", {"kind": "device", "deviceId": f"P{number}"})
        whole = [each["id"] for each in self.keys()]
        self.assertGreater(len(whole), 3)
        found, query = [], "?limit=2"
        while query:
            page = self.ask("GET", f"/{self.slug}/keys{query}").json
            self.assertLessEqual(len(page["keys"]), 2)
            found += [each["id"] for each in page["keys"]]
            query = f"?limit=2&after={page['next']}" if page["hasMore"] else ""
        self.assertEqual(found, whole)
        for wrong in ("limit=0", "limit=1001", "after=x", "after=-1"):
            field = wrong.partition("=")[0]
            reply = self.ask("GET", f"/{self.slug}/keys?{wrong}")
            self.assert_refused(reply, 400, "invalid_field", field)

    def test_a_tenant_that_is_not_there_has_none(self) -> None:
        self.assert_refused(self.ask("GET", "/nowhere/keys"), 404, "unknown_tenant")
