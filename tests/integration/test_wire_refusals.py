"""Refused connections (wire protocol §1.1): each status, always with a JSON body with the reason."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from typing import Any
from uuid import uuid4

from tests.integration.harness import Reply, Shop
from tests.integration.wire import Message, Refused, Till
from tests.integration.wire_case import WireCase, until

_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class RefusalCase(WireCase):
    def assert_error(self, refused: Refused, status: int, code: str) -> Message:
        """Assert that an answer has this status and code, and the body of all errors."""
        body = refused.json
        self.assertEqual((refused.status, body["code"]), (status, code))
        self.assertIs(body["success"], False)
        self.assertRegex(body["error"], r"^\S.*\.$")
        self.assertTrue(body["requestId"])
        self.assertEqual(refused.headers["content-type"], "application/json")
        self.assertEqual(int(refused.headers["content-length"]), len(refused.body))
        self.assertEqual(refused.headers["cache-control"], "no-store")
        return body

    def assert_retry(self, refused: Refused, at_most: int) -> None:
        self.assertIn(int(refused.headers["retry-after"]), range(1, at_most + 1))


class MalformedTests(RefusalCase):
    """400, 404, 426: invalid requests, for all callers."""

    def test_a_slug_has_one_form_only(self) -> None:
        for slug in ("Kitchen", "-kitchen", "kitchen-", "kit_chen", "kit.chen", "k" * 49, "k%20"):
            self.assert_error(self.refused(path=f"/ws/pos/{slug}"), 400, "invalid_tenant")

    def test_a_position_is_a_whole_number(self) -> None:
        for after in ("-1", "1.5", "1e3", "abc", "", " 1", "٣", "9" * 30):
            self.assert_error(self.refused(after=after), 400, "invalid_position")

    def test_a_position_in_the_header_too(self) -> None:
        refused = self.refused(headers={"Last-Event-ID": "latest"})
        self.assert_error(refused, 400, "invalid_position")

    def test_the_name_of_a_history_is_a_uuid(self) -> None:
        refused = self.refused(after=0, stream="yesterday")
        self.assert_error(refused, 400, "invalid_position")

    def test_a_name_of_a_device_has_its_bounds(self) -> None:
        for name in ("", "x" * 129, "POS\t1"):
            self.assert_error(self.refused(device=name), 400, "invalid_device")

    def test_a_key_of_the_handshake_has_sixteen_bytes(self) -> None:
        for key in ("", "c2hvcnQ=", "not base64"):
            reply = self.ask(f"/ws/pos/{self.slug}", {"Sec-WebSocket-Key": key})
            self.assertEqual((reply.status, reply.json["code"]), (400, "invalid_handshake"))

    def test_tills_connect_nowhere_else(self) -> None:
        for path in ("/ws", "/ws/pos", f"/ws/pos/{self.slug}/more", f"/ws/{self.slug}", "/nowhere"):
            self.assert_error(self.refused(path=path), 404, "not_found")

    def test_a_plain_request_is_told_what_is_spoken_here(self) -> None:
        for headers in ({}, {"Upgrade": "h2c", "Connection": "Upgrade"}, {"Upgrade": "websocket"}):
            reply = self.posd.request("GET", f"/ws/pos/{self.slug}", key=self.key, headers=headers)
            self.assertEqual((reply.status, reply.json["code"]), (426, "upgrade_required"))
            self.assertIs(reply.json["success"], False)
            # RFC 9110 §15.5.22: the answer MUST name the protocol.
            self.assertEqual(reply.headers["upgrade"], "websocket")

    def test_another_version_of_the_protocol_is_told_which_one_it_is(self) -> None:
        reply = self.ask(f"/ws/pos/{self.slug}", {"Sec-WebSocket-Version": "8"})
        self.assertEqual((reply.status, reply.json["code"]), (426, "upgrade_required"))
        # RFC 6455 §4.2.2.
        self.assertEqual(reply.headers["sec-websocket-version"], "13")

    def ask(self, path: str, headers: dict[str, str]) -> Reply:
        """Send a handshake with the given headers."""
        return self.posd.request("GET", path, key=self.key, headers={**_UPGRADE, **headers})


class CredentialTests(RefusalCase):
    """401 and 403: no key, a key of another tenant, or a key that is not for tills."""

    def test_every_key_that_does_not_fit_gets_one_answer(self) -> None:
        self.shop.add_tenant(f"{self.slug}-other")
        revoked, expired, early = (self.shop.key(slug=self.slug) for _ in range(3))
        for change, key in (
            ("revoked_at = now()", revoked),
            ("expires_at = now()", expired),
            ("not_before = now() + interval '1 hour'", early),
        ):
            self.rows(
                f"UPDATE dinedesk_main.pos_api_keys SET {change}"
                " WHERE key_sha256 = sha256(convert_to(%s, 'UTF8'))",
                key,
            )
        path = f"/ws/pos/{self.slug}"
        answers = [
            self.answer(path, None),
            self.answer(path, "pos_" + "0" * 64),
            self.answer(path, "free text"),
            self.answer(path, "x" * 300),
            self.answer(path, revoked),
            self.answer(path, expired),
            self.answer(path, early),
            self.answer(path, self.shop.key(slug=f"{self.slug}-other")),
            self.answer("/ws/pos/nobody-of-this-name", self.key),
            # A name that no tenant can have is treated like an unknown one.
            self.answer("/ws/pos/main", self.key),
        ]
        for other in answers[1:]:
            self.assertEqual(other, answers[0])

    def answer(self, path: str, key: str | None) -> tuple[object, ...]:
        """Return all parts of an answer that could distinguish refusals."""
        headers = {} if key is None else {"X-API-Key": key}
        with self.assertRaises(Refused) as raised:
            Till.dial(self.posd, path, headers)
        refused = raised.exception
        body = self.assert_error(refused, 401, "unauthorized")
        del body["requestId"]
        told = {name: value for name, value in refused.headers.items() if name != "date"}
        return sorted(body.items()), sorted(told.items())

    def test_a_tenant_that_is_disabled_is_as_good_as_none(self) -> None:
        self.rows("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = %s", self.slug)
        self.assert_error(self.refused(), 401, "unauthorized")

    def test_only_tills_may_connect(self) -> None:
        for kind in ("platform", "admin"):
            for slug in (self.slug, None):
                refused = self.refused(key=self.shop.key(kind, slug))
                self.assert_error(refused, 403, "forbidden")

    def test_a_till_that_names_another_tenant_is_not_let_in(self) -> None:
        refused = self.refused(headers={"X-Tenant-ID": "elsewhere"})
        self.assert_error(refused, 403, "tenant_mismatch")
        self.dial(headers={"X-Tenant-ID": self.slug})


class FailedAttemptTests(RefusalCase):
    """429 for an address that tries keys."""

    configuration = "[limits]\nfailed_auth_per_minute = 3"

    def test_an_address_may_fail_so_often_and_a_valid_key_is_let_in_all_the_same(self) -> None:
        for _ in range(3):
            self.assert_error(self.refused(key="no such key"), 401, "unauthorized")
        for _ in range(2):
            refused = self.refused(key="no such key")
            self.assert_error(refused, 429, "too_many_attempts")
            self.assert_retry(refused, 60)
        self.dial()


class CrowdTests(RefusalCase):
    """429 and 503 for too many connections."""

    configuration = "[limits]\nconnections_per_tenant = 6\nconnections = 8"

    def test_a_terminal_has_four_connections_at_most(self) -> None:
        tills = [self.dial(device="POS_BAR_1") for _ in range(4)]
        refused = self.refused(device="POS_BAR_1")
        self.assert_error(refused, 429, "too_many_connections")
        self.assert_retry(refused, 60)
        self.dial(device="POS_BAR_2")
        tills[0].leave()
        self.lets_in(device="POS_BAR_1")

    def test_a_tenant_has_as_many_as_are_configured(self) -> None:
        tills = [self.dial() for _ in range(6)]
        refused = self.refused()
        self.assert_error(refused, 429, "too_many_connections")
        self.assert_retry(refused, 60)
        tills[0].leave()
        self.lets_in()

    def test_posd_has_as_many_as_are_configured(self) -> None:
        self.shop.add_tenant(f"{self.slug}-other")
        other, path = self.shop.key(slug=f"{self.slug}-other"), f"/ws/pos/{self.slug}-other"
        tills = [self.dial() for _ in range(6)]
        tills += [self.dial(key=other, path=path) for _ in range(2)]
        refused = self.refused(key=other, path=path)
        self.assert_error(refused, 503, "overloaded")
        self.assert_retry(refused, 60)
        tills[0].leave()
        self.lets_in(key=other, path=path)

    def test_a_till_that_says_goodbye_but_does_not_hang_up_loses_its_place(self) -> None:
        tills = [self.dial(device="POS_BAR_1") for _ in range(4)]
        self.assertEqual(tills[0].say_goodbye().code, 1000)
        self.lets_in(device="POS_BAR_1")

    def test_who_is_refused_for_his_key_takes_nobodys_place(self) -> None:
        for _ in range(10):
            self.refused(key="no such key")
        for _ in range(6):
            self.dial()

    def lets_in(self, **how: Any) -> None:
        """Return whether posd accepts a till, now or when it has noticed that another one has gone."""

        def attempt() -> bool:
            try:
                self.dial(**how)
            except Refused:
                return False
            return True

        until(attempt, "a place is free")


class UnavailableTests(RefusalCase):
    """503 if posd cannot serve, or will soon stop."""

    def test_without_a_database_posd_answers_and_says_when_to_come_again(self) -> None:
        shop = Shop.open([])
        self.addCleanup(shop.close)
        posd = shop.start(dsn=f"host=/nowhere-{uuid4().hex} dbname=posd", wait=False)
        posd.wait_listening()
        refused = self.refused(to=posd)
        self.assert_error(refused, 503, "unavailable")
        self.assert_retry(refused, 60)

    def test_one_that_drains_lets_nobody_in_any_more(self) -> None:
        posd = self.shop.start()
        # Because their connections are closed one after the other, posd drains for more than a second.
        for _ in range(12):
            self.dial(to=posd, after=0)
        context = posd.tls()
        with closing(socket.create_connection(("127.0.0.1", posd.port), 20)) as plain:
            early = context.wrap_socket(plain, server_hostname="localhost")
            posd.terminate()
            until(lambda: "code=1001" in posd.log(), "the first of them is sent home")
            answer = self.try_handshake(early)
        self.assertIn(b"HTTP/1.1 503 ", answer)
        self.assertIn(b"Retry-After: 1\r\n", answer)
        self.assertIn(b'"success":false', answer)
        self.assertEqual(posd.stop(), 0)

    def try_handshake(self, early: ssl.SSLSocket) -> bytes:
        """Request an upgrade on an open connection."""
        lines = [f"GET /ws/pos/{self.slug} HTTP/1.1", "Host: localhost", f"X-API-Key: {self.key}"]
        lines += [f"{name}: {value}" for name, value in _UPGRADE.items()]
        early.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"}" not in answer and (more := early.recv(65536)):
            answer += more
        return answer
