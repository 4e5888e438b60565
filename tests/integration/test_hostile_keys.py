"""Invalid keys: one answer for all, no information about other tenants, and closed connections."""

from __future__ import annotations

import itertools
import os

from tests.integration.hostile_case import HostileCase
from tests.integration.peer import Answer, HungUp

_KEY = "key_sha256 = sha256(convert_to(%s, 'UTF8'))"
_NOTE = {"type": "note", "data": {"n": 1}}


class WrongKeyTests(HostileCase):
    """An invalid key reveals nothing, whatever is wrong with it."""

    def everywhere(self, key: str | None, slug: str) -> list[Answer]:
        """Return the answers of three interfaces of posd to a key at one tenant."""
        return [
            self.try_handshake(key, slug=slug),
            self.ask("POST", f"/api/{slug}/events", _NOTE, key=key),
            self.ask("POST", "/broadcast", {"tenant": slug, "event": _NOTE}, key=key),
        ]

    def test_every_key_that_does_not_fit_gets_one_answer(self) -> None:
        expired, early, revoked = (self.make_key() for _ in range(3))
        keys = "UPDATE dinedesk_main.pos_api_keys SET {} WHERE " + _KEY
        self.shop.query(keys.format("expires_at = now()"), (expired,))
        self.shop.query(keys.format("not_before = now() + interval '1 hour'"), (early,))
        self.shop.query(keys.format("revoked_at = now()"), (revoked,))
        wrong = {
            "none": None,
            "empty": "",
            "unknown": f"pos_{'0' * 64}",
            "expired": expired,
            "not valid yet": early,
            "revoked": revoked,
            "another tenant's": self.make_key(slug=self.neighbour),
            "another tenant's platform": self.make_key("platform", slug=self.neighbour),
            "another tenant's device": self.make_key("device", "till-1", slug=self.neighbour),
            "in capitals": self.key.upper(),
            "without its end": self.key[:-1],
            "very long": "k" * 5000,
            "SQL": "' OR '1'='1' --",
            "a wildcard": "%",
            "binary": "\x80\xff\xfe",
            "its hash": self.key.encode().hex(),
        }
        said = set()
        for name, key in wrong.items():
            with self.subTest(key=name):
                for answer in self.everywhere(key, self.slug):
                    self.assert_refused(answer, 401, "unauthorized")
                    said.add((answer.json["error"], answer.headers.get("www-authenticate")))
        for answer in self.everywhere(self.key, "no-such-tenant"):
            self.assert_refused(answer, 401, "unauthorized")
            said.add((answer.json["error"], answer.headers.get("www-authenticate")))
        self.assertEqual(len(said), 1)

    def test_a_key_in_the_url_is_none(self) -> None:
        for name in ("apiKey", "api_key", "key", "token", "access_token"):
            path = f"/ws/pos/{self.slug}?{name}={self.key}"
            self.assert_refused(self.try_handshake(None, path=path), 401, "unauthorized")

    def test_other_ways_to_present_a_key_are_none(self) -> None:
        for name, value in (
            ("Authorization", f"Basic {self.key}"),
            ("Authorization", f"Bearer{self.key}"),
            ("Authorization", self.key),
            ("Cookie", f"X-API-Key={self.key}"),
            ("X-Api_Key", self.key),
            ("Proxy-Authorization", f"Bearer {self.key}"),
        ):
            answer = self.try_handshake(None, headers=[(name, value)])
            self.assert_refused(answer, 401, "unauthorized")

    def test_each_kind_of_key_does_what_it_may_and_nothing_of_another_tenant(self) -> None:
        kinds = {
            "tenant": (self.key, 101, 403),
            "device": (self.make_key("device", "till-1"), 101, 403),
            "platform": (self.make_key("platform"), 403, 201),
            "admin": (self.make_key("admin"), 403, 403),
            "platform of all": (self.make_key("platform", slug=None), 403, 201),
            "admin of all": (self.make_key("admin", slug=None), 403, 403),
        }
        for (name, (key, till, publishing)), slug in itertools.product(
            kinds.items(), (self.slug, self.neighbour)
        ):
            with self.subTest(key=name, slug=slug):
                foreign = slug == self.neighbour and "of all" not in name
                door, events, broadcast = self.everywhere(key, slug)
                self.assertEqual(door.status, 401 if foreign else till)
                self.assertEqual(events.status, 401 if foreign else publishing)
                expected = {201: 200}.get(publishing, publishing)
                self.assertEqual(broadcast.status, 401 if foreign else expected)

    def test_the_connections_of_all_are_for_an_admin_of_all(self) -> None:
        self.assertEqual(self.ask("GET", "/health").status, 401)
        for key in (self.key, self.make_key("admin"), self.make_key("platform")):
            self.assertEqual(self.ask("GET", "/health", key=key).status, 403)
        for kind, status in (("platform", 403), ("admin", 200)):
            key = self.make_key(kind, slug=None)
            self.assertEqual(self.ask("GET", "/health", key=key).status, status)

    def test_no_header_makes_one_tenant_of_another(self) -> None:
        platform, foreign = self.make_key("platform"), [("X-Tenant-ID", self.neighbour)]
        path = f"/api/{self.slug}/events"
        answer = self.ask("POST", path, _NOTE, key=platform, headers=foreign)
        self.assert_refused(answer, 403, "tenant_mismatch")
        self.assert_refused(self.try_handshake(self.key, headers=foreign), 403, "tenant_mismatch")
        path = f"/api/{self.neighbour}/events"
        own = [("X-Tenant-ID", self.slug)]
        answer = self.ask("POST", path, _NOTE, key=platform, headers=own)
        self.assert_refused(answer, 401, "unauthorized")

    def test_malformed_names_are_told_so_before_anything_is_looked_up(self) -> None:
        names = ("", "UPPER", "-a", "a-", "a" * 49, "a_b", "a.b", "..", "%2e%2e", "a%00", "a%0d%0a")
        sql = ("'--", "%27%20OR%201=1--", "kitchen%22;DROP%20SCHEMA%20dinedesk_main;--")
        for name in (*names, *sql):
            with self.subTest(name=name):
                door = self.try_handshake(self.key, path=f"/ws/pos/{name}")
                self.assert_refused(door, 400, "invalid_tenant")
                answer = self.ask("POST", f"/api/{name}/events", _NOTE, key=self.key)
                self.assert_refused(answer, 400, "invalid_tenant")

    def test_malformed_names_of_devices_are_told_so(self) -> None:
        for name in ("", " ", "a" * 129, "\xc2\x85", "\x80\xff", "tab\there", "\xe2\x80\xae"):
            with self.subTest(name=name):
                answer = self.try_handshake(self.key, headers=[("X-Device-ID", name)])
                self.assert_refused(answer, 400, "invalid_device")
        sql = "'); DELETE FROM dinedesk_main.pos_devices; --"
        self.assertEqual(self.try_handshake(self.key, headers=[("X-Device-ID", sql)]).status, 101)
        named = "SELECT device_id FROM dinedesk_main.pos_devices WHERE device_id = %s"
        self.assertEqual(self.shop.query(named, (sql,)), [(sql,)])

    def test_malformed_positions_are_told_so(self) -> None:
        for query in (
            "last_event_id=-1",
            "last_event_id=1e3",
            "last_event_id=",
            "last_event_id=%31%00",
            "last_event_id=" + "9" * 5000,
            "last_event_id=%D9%A1",
            "last_event_id=1&stream_id=" + self.secret,
        ):
            with self.subTest(query=query[:40]):
                path = f"/ws/pos/{self.slug}?{query}"
                self.assert_refused(
                    self.try_handshake(self.key, path=path), 400, "invalid_position"
                )


class RevokedKeyTests(HostileCase):
    """Connections of a key that becomes invalid are closed within a second, and cannot reconnect."""

    def assert_ends(self, key: str, statement: str, *parameters: object) -> None:
        till = self.till(key)
        self.shop.query(statement, parameters or None)
        self.assertEqual(till.close_code(), 4001)
        self.assert_refused(self.try_handshake(key), 401, "unauthorized")

    def column_key(self) -> str:
        """Set a key in the column, as operators used to."""
        key = f"pos_{os.urandom(32).hex()}"
        self.keys.append(key)
        self.shop.query(
            "UPDATE dinedesk_main.tenants SET pos_api_key = %s WHERE slug = %s", (key, self.slug)
        )
        return key

    def test_a_revoked_key(self) -> None:
        self.assert_ends(
            self.key,
            f"UPDATE dinedesk_main.pos_api_keys SET revoked_at = now() WHERE {_KEY}",
            self.key,
        )

    def test_a_devices_key(self) -> None:
        key = self.make_key("device", "till-1")
        self.assert_ends(
            key, f"UPDATE dinedesk_main.pos_api_keys SET revoked_at = now() WHERE {_KEY}", key
        )

    def test_a_key_that_ends_now(self) -> None:
        self.assert_ends(
            self.key,
            f"UPDATE dinedesk_main.pos_api_keys SET expires_at = now() WHERE {_KEY}",
            self.key,
        )

    def test_a_key_that_is_deleted(self) -> None:
        self.assert_ends(self.key, f"DELETE FROM dinedesk_main.pos_api_keys WHERE {_KEY}", self.key)

    def test_the_column_set_to_null(self) -> None:
        column = "UPDATE dinedesk_main.tenants SET pos_api_key = NULL WHERE slug = %s"
        self.assert_ends(self.column_key(), column, self.slug)

    def test_the_column_set_to_another_key(self) -> None:
        column = "UPDATE dinedesk_main.tenants SET pos_api_key = 'somebody-elses' WHERE slug = %s"
        self.assert_ends(self.column_key(), column, self.slug)

    def test_a_tenant_that_is_disabled(self) -> None:
        disable = "UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = %s"
        self.assert_ends(self.key, disable, self.slug)

    def test_a_key_that_ends_by_itself(self) -> None:
        till = self.till()
        self.shop.query(
            "UPDATE dinedesk_main.pos_api_keys SET expires_at = clock_timestamp() + interval '0.5 s'"
            f" WHERE {_KEY}",
            (self.key,),
        )
        self.assertEqual(till.close_code(), 4001)
        self.assert_refused(self.try_handshake(self.key), 401, "unauthorized")

    def test_nobody_elses_connection_ends_with_it(self) -> None:
        other, neighbour = self.till(self.make_key()), self.neighbours_till()
        self.test_a_revoked_key()
        self.assert_alive(other)
        self.assert_served(neighbour)

    def test_a_key_is_revoked_while_it_is_looked_up(self) -> None:
        """In both orders, no connection with a revoked key stays open."""
        for _ in range(10):
            key = self.make_key()
            peer = self.peer()
            revoke = f"UPDATE dinedesk_main.pos_api_keys SET revoked_at = now() WHERE {_KEY}"
            path, headers = f"/ws/pos/{self.slug}", [("X-API-Key", key)]
            peer.send_upgrade(path, headers)
            self.shop.query(revoke, (key,))
            try:
                status = peer.answer().status
            except HungUp:
                continue
            if status == 101:
                self.assertEqual(peer.close_code(), 4001)
            else:
                self.assertEqual(status, 401)


class FailedAttemptTests(HostileCase):
    """Attempts with guessed keys are slowed down, and attempts with valid keys are not."""

    configuration = "[limits]\nfailed_auth_per_minute = 5"
    _places = itertools.count(2)

    def setUp(self) -> None:
        super().setUp()
        self.place = f"127.0.0.{next(self._places)}"

    def exhaust(self) -> None:
        for _ in range(5):
            self.assert_refused(
                self.try_handshake(f"pos_{'0' * 64}", source=self.place), 401, "unauthorized"
            )

    def test_after_too_many_one_is_told_to_wait_on_every_face(self) -> None:
        self.exhaust()
        for answer in (
            self.try_handshake("wrong-key", source=self.place),
            self.try_handshake(None, source=self.place),
            self.ask("POST", f"/api/{self.slug}/events", _NOTE, source=self.place),
            self.ask("POST", "/broadcast", _NOTE, key="wrong-key", source=self.place),
            self.ask("GET", "/health", source=self.place),
        ):
            self.assert_refused(answer, 429, "too_many_attempts")
            self.assertTrue(0 < int(answer.headers["retry-after"]) <= 60)

    def test_a_valid_key_still_opens(self) -> None:
        self.exhaust()
        self.assertEqual(self.try_handshake(self.key, source=self.place).status, 101)
        platform = self.make_key("platform")
        answer = self.ask(
            "POST", f"/api/{self.slug}/events", _NOTE, key=platform, source=self.place
        )
        self.assertEqual(answer.status, 201)

    def test_other_addresses_are_not_concerned(self) -> None:
        self.exhaust()
        other = f"127.0.1.{self.place.rpartition('.')[2]}"
        self.assert_refused(self.try_handshake("wrong-key", source=other), 401, "unauthorized")

    def test_nobody_has_another_address_by_saying_so(self) -> None:
        self.exhaust()
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP"):
            answer = self.try_handshake(
                "wrong-key", headers=[(name, "192.0.2.1")], source=self.place
            )
            self.assert_refused(answer, 429, "too_many_attempts")
