"""Tests of the admission of tills: refusals before the upgrade, and clients that disconnect meanwhile."""

from __future__ import annotations

import json
from typing import Any, cast
from uuid import UUID

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, succeed
from twisted.web.resource import Resource

from posd.errors import Forbidden, Refusal, TooManyRequests, Unauthorized, Unavailable
from posd.security.auth import Authenticator
from posd.security.connection_limits import ConnectionLimits
from posd.store.credentials import Credential
from posd.values import KeyKind, Position, Principal
from posd.web.admission import AdmissionCheck, WebSocketAdmission, WebSocketResource
from posd.web.http.http_request import ListenerContext
from posd.web.websocket import TillProtocol
from tests.delivery_case import KITCHEN, NOON, STREAM, session_start
from tests.socket_case import Socket, SocketCase

HANDSHAKE = {
    "Host": "posd.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "X-API-Key": "pos_good",
}

NONCE = HANDSHAKE["Sec-WebSocket-Key"]
HANDSHAKES = {
    "RFC 6455": [
        *("Host: posd", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
    ],
    ".NET ClientWebSocket": [
        *("Host: posd:9010", "Connection: Upgrade", "Upgrade: websocket"),
        "Sec-WebSocket-Version: 13",
    ],
    ".NET Framework": [
        *("Connection: Upgrade,Keep-Alive", "Upgrade: Websocket", "Sec-WebSocket-Version: 13"),
        "Host: posd:9010",
    ],
    "OkHttp": [
        *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
        *("Sec-WebSocket-Extensions: permessage-deflate", "Host: posd", "Accept-Encoding: gzip"),
        "User-Agent: okhttp/4.12.0",
    ],
    "Firefox": [
        *("Host: posd", "Accept: */*", "Accept-Language: en", "Accept-Encoding: gzip, deflate, br"),
        *("Sec-WebSocket-Version: 13", "Origin: https://shop.example"),
        *("Sec-WebSocket-Extensions: permessage-deflate", "Connection: keep-alive, Upgrade"),
        *("Sec-Fetch-Dest: empty", "Sec-Fetch-Mode: websocket", "Sec-Fetch-Site: cross-site"),
        *("Pragma: no-cache", "Cache-Control: no-cache", "Upgrade: websocket"),
    ],
    "Electron": [
        *("Host: posd", "Connection: Upgrade", "Pragma: no-cache", "Upgrade: websocket"),
        *("Origin: file://", "Sec-WebSocket-Version: 13", "Cookie: a=b; c"),
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    ],
    "ws": [
        *("Sec-WebSocket-Version: 13", "Connection: Upgrade", "Upgrade: websocket"),
        *("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", "Host: posd"),
    ],
    "libwebsockets": [
        *("Pragma: no-cache", "Cache-Control: no-cache", "Host: posd", "Upgrade: websocket"),
        *("Connection: Upgrade", "Sec-WebSocket-Protocol: till", "Sec-WebSocket-Version: 13"),
    ],
    "nginx": [
        *("Upgrade: websocket", "Connection: upgrade", "Host: posd"),
        *("X-Forwarded-For: 192.0.2.1, 192.0.2.2", "Sec-WebSocket-Version: 13"),
    ],
    "Apache": [
        *("Host: posd", "Sec-WebSocket-Version: 13", "X-Forwarded-For: 192.0.2.1"),
        *("X-Forwarded-Host: posd", "Upgrade: WebSocket", "Connection: Upgrade"),
    ],
    "Envoy, HAProxy, lower case": [
        *("host: posd", "upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13"),
        *("x-forwarded-for: 192.0.2.1", "x-forwarded-proto: https", "x-request-id: 1"),
    ],
    "a proxy with a line of its own": [
        *("Host: posd", "Connection: keep-alive", "Connection: Upgrade", "Upgrade: websocket"),
        "Sec-WebSocket-Version: 13",
    ],
    "a proxy that joins and leaves blanks": [
        *("Host:posd", "Connection:\tTE ,,  upgrade\t", "Upgrade: h2c ,websocket", "TE: trailers"),
        *("Sec-WebSocket-Version:  13 ", "Sec-WebSocket-Version: 13", "Expect:"),
    ],
    "a proxy that closes": [
        *("Host: posd", "Connection: close, Upgrade", "Upgrade: websocket"),
        "Sec-WebSocket-Version: 13",
    ],
}
"""Header lines of handshakes by client, without Sec-WebSocket-Key and the API key."""


@define(eq=False)
class Keys:
    """An authenticator with one valid key. `answers` delays its results."""

    kind: KeyKind = KeyKind.TENANT
    key_device: str | None = None
    refusal: Refusal | None = None
    answers: list[Deferred[None]] = field(factory=list)
    asked: list[tuple[str, str | None, str | None, str]] = field(factory=list)

    async def find_credential(
        self, slug: str, key: str | None, device_id: str | None, address: str
    ) -> Credential:
        self.asked.append((slug, key, device_id, address))
        if self.answers:
            await self.answers[-1]
        if self.refusal is not None:
            raise self.refusal
        if key != "pos_good" or slug != "kitchen":
            raise Unauthorized
        principal = Principal(1, self.kind, KITCHEN, self.key_device)
        return Credential(principal, KITCHEN, None, False, True, ())


class AdmissionCase(SocketCase):
    listener_context = ListenerContext()

    def setUp(self) -> None:
        super().setUp()
        self.store.session_start = session_start(10)
        self.keys = Keys()
        self.connections = ConnectionLimits(total=100, per_tenant=3, per_device=2)
        websocket_admission = WebSocketAdmission(
            cast(Authenticator, self.keys),
            AdmissionCheck(self.hub, self.connections),
            self.factory,
        )
        root, ws = Resource(), Resource()
        root.putChild(b"ws", ws)
        ws.putChild(b"pos", WebSocketResource(self.listener_context, websocket_admission))
        self.serve(root)

    def ask(
        self,
        target: str = "/ws/pos/kitchen",
        *,
        method: str = "GET",
        version: str = "HTTP/1.1",
        **headers: str | None,
    ) -> Socket:
        """Send a request; a header that is None is left out, `_` in its name is a hyphen."""
        sent: dict[str, str | None] = {**HANDSHAKE}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in sent.items() if value is not None]
        socket = self.dial()
        socket.send("\r\n".join([f"{method} {target} {version}", *lines, "", ""]).encode())
        return socket

    def refused(self, *arguments: Any, **more: Any) -> tuple[int, str]:
        """Return the status and the code of a refusal. Assert that it is complete and JSON."""
        return self.refusal(self.ask(*arguments, **more))

    def refusal(self, socket: Socket) -> tuple[int, str]:
        head, _, body = socket.value().partition(b"\r\n\r\n")
        self.assertIn(b"Content-Type: application/json", head)
        answer = json.loads(body)
        self.assertIs(answer["success"], False)
        self.assertIsInstance(answer["error"], str)
        self.assertEqual((self.connections.open, len(self.hub)), (0, 0))
        return int(head.split(b" ")[1]), answer["code"]

    def admitted(self, *arguments: Any, **more: Any) -> Socket:
        socket = self.ask(*arguments, **more)
        self.assertTrue(socket.upgraded, socket.value())
        self.assertIsInstance(socket.protocol, TillProtocol)
        return socket


class AdmittedTests(AdmissionCase):
    def test_a_till_with_a_key_is_admitted(self) -> None:
        socket = self.admitted()
        self.assertEqual(socket.messages[0]["type"], "connected")
        self.assertEqual(self.keys.asked, [("kitchen", "pos_good", None, "192.0.2.7")])

    def test_a_till_counts_until_it_disconnects(self) -> None:
        socket = self.admitted()
        self.assertEqual(self.connections.open, 1)
        self.assertEqual(self.site.open_channels, 0)
        socket.hang_up()
        self.assertEqual(self.connections.open, 0)

    def test_a_bearer_token_is_accepted(self) -> None:
        self.admitted(X_API_Key=None, Authorization="Bearer pos_good")

    def test_handshakes_as_clients_and_proxies_send_them(self) -> None:
        for sender, lines in HANDSHAKES.items():
            with self.subTest(sender=sender):
                socket = self.dial()
                key = "X-API-Key: pos_good"
                nonce = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
                request = ["GET /ws/pos/kitchen HTTP/1.1", *lines, nonce, key, "", ""]
                socket.send("\r\n".join(request).encode())
                self.assertTrue(socket.upgraded, socket.value())
                self.assertEqual(socket.messages[0]["type"], "connected")
                socket.hang_up()

    def test_requests_without_an_upgrade_to_websocket_are_refused(self) -> None:
        for changed, status in (
            ({"Connection": "close, keep-alive"}, 426),
            ({"Connection": "upgrade-insecure"}, 426),
            ({"Connection": ""}, 426),
            ({"Upgrade": "websockets"}, 426),
            ({"Upgrade": "h2c, websocket/13"}, 426),
            ({"Upgrade": ""}, 426),
            ({"Sec-WebSocket-Version": "13, 8"}, 426),
            ({"Sec-WebSocket-Version": "13\r\nSec-WebSocket-Version: 8"}, 426),
            ({"Sec-WebSocket-Version": "8\r\nSec-WebSocket-Version: 13"}, 426),
            ({"Sec-WebSocket-Version": None}, 426),
            ({"Sec-WebSocket-Key": None}, 400),
            ({"Sec-WebSocket-Key": f"{NONCE}\r\nSec-WebSocket-Key: {NONCE}"}, 400),
            ({"X-API-Key": "pos_good\r\nX-API-Key: pos_bad"}, 400),
            ({"X-Tenant-ID": "kitchen\r\nX-Tenant-ID: bar"}, 403),
            ({"Host": None}, 400),
        ):
            with self.subTest(changed=changed):
                headers = {name.replace("-", "_"): value for name, value in changed.items()}
                self.assertEqual(self.refused(**headers)[0], status)

    def test_a_till_may_name_itself(self) -> None:
        self.store.session_start = session_start(10, 4)
        self.admitted(X_Device_ID="BAR")
        self.assertEqual(self.session().terminal.device_id, "BAR")
        self.assertEqual(self.progress_store.settled, [(KITCHEN.id, "BAR")])

    def test_a_devices_key_names_it(self) -> None:
        self.keys.kind, self.keys.key_device = KeyKind.DEVICE, "BAR"
        self.store.session_start = session_start(10, 4)
        self.admitted()
        self.assertEqual(self.session().terminal.device_id, "BAR")

    def test_a_till_without_a_name_has_none(self) -> None:
        self.admitted()
        self.assertIsNone(self.session().terminal.device_id)

    def test_the_time_of_the_connection_is_that_of_the_database(self) -> None:
        self.admitted()
        self.assertEqual(self.session().terminal.connected_at, NOON)

    def test_connection_and_upgrade_may_be_written_in_any_case_among_others(self) -> None:
        self.admitted(Connection="keep-alive, upgrade", Upgrade="WebSocket")

    def test_any_origin_is_accepted(self) -> None:
        self.admitted(Origin="https://elsewhere.example")

    def test_a_key_in_the_url_is_ignored(self) -> None:
        self.admitted("/ws/pos/kitchen?apiKey=whatever")
        self.assertEqual(self.keys.asked[0][1], "pos_good")


class PositionTests(AdmissionCase):
    def position(self, target: str, **headers: str) -> Position | None:
        socket = self.admitted(target, **headers)
        terminal = self.session().terminal
        socket.hang_up()
        return terminal.position

    def test_the_position_is_in_the_query_or_in_the_header(self) -> None:
        self.assertEqual(self.position("/ws/pos/kitchen?last_event_id=7"), Position(7))
        self.assertEqual(self.position("/ws/pos/kitchen", Last_Event_ID="8"), Position(8))
        self.assertEqual(
            self.position("/ws/pos/kitchen?last_event_id=7", Last_Event_ID="8"), Position(8)
        )
        self.assertEqual(
            self.position("/ws/pos/kitchen?last_event_id=7", Last_Event_ID=""), Position(7)
        )
        self.assertIsNone(self.position("/ws/pos/kitchen", Last_Event_ID=""))
        self.assertIsNone(self.position("/ws/pos/kitchen"))

    def test_the_position_may_have_a_stream_id(self) -> None:
        target = f"/ws/pos/kitchen?last_event_id=7&stream_id={STREAM}"
        self.assertEqual(self.position(target), Position(7, STREAM))
        self.assertEqual(
            self.position(f"/ws/pos/kitchen?stream_id={STREAM}", Last_Event_ID="7"),
            Position(7, UUID(str(STREAM))),
        )
        self.assertEqual(self.position("/ws/pos/kitchen?last_event_id=7&stream_id="), Position(7))

    def test_events_after_the_position_come_first(self) -> None:
        self.assertEqual(self.admitted("/ws/pos/kitchen?last_event_id=8").ids, [9, 10])

    def test_an_invalid_position_is_400(self) -> None:
        for named in ("", "-1", "+1", "1.5", "x", "1" * 19, "%D9%A1", "1%20"):
            target = f"/ws/pos/kitchen?last_event_id={named}"
            self.assertEqual(self.refused(target), (400, "invalid_position"), named)
        self.assertEqual(self.refused(Last_Event_ID="x"), (400, "invalid_position"))
        target = "/ws/pos/kitchen?last_event_id=7&stream_id=kitchen"
        self.assertEqual(self.refused(target), (400, "invalid_position"))
        self.assertEqual(self.keys.asked, [])


class RefusalTests(AdmissionCase):
    def test_an_invalid_slug_is_400(self) -> None:
        for slug in ("Kitchen", "-kitchen", "kitchen-", "k_tchen", "k" * 49, "k%C3%BCche", "."):
            self.assertEqual(self.refused(f"/ws/pos/{slug}"), (400, "invalid_tenant"), slug)

    def test_another_path_is_404(self) -> None:
        for target in ("/ws/pos", "/ws/pos/kitchen/more", "/ws/pos/kitchen/"):
            self.assertEqual(self.refused(target), (404, "not_found"), target)

    def test_a_plain_request_is_426_with_an_upgrade_header(self) -> None:
        for headers in (
            {"Upgrade": None},
            {"Upgrade": "h2c"},
            {"Connection": None},
            {"Connection": "close"},
            {"Sec_WebSocket_Version": None},
            {"Sec_WebSocket_Version": "8"},
            {"method": "POST"},
            {"version": "HTTP/1.0"},
        ):
            socket = self.ask(**cast("dict[str, Any]", headers))
            self.assertEqual(self.refusal(socket), (426, "upgrade_required"), headers)
            self.assertIn(b"\r\nupgrade: websocket\r\n", socket.value().lower())
            self.assertIn(b"\r\nsec-websocket-version: 13\r\n", socket.value().lower())

    def test_an_invalid_websocket_key_is_400(self) -> None:
        for key in (None, "", "short", "!" * 24, "AA==", "dGhlIHNhbXBsZSBub25jZQ"):
            refused = self.refused(Sec_WebSocket_Key=key)
            self.assertEqual(refused, (400, "invalid_handshake"), key)

    def test_two_websocket_keys_are_400(self) -> None:
        key = HANDSHAKE["Sec-WebSocket-Key"]
        twice = f"{key}\r\nSec-WebSocket-Key: {key}"
        self.assertEqual(self.refused(Sec_WebSocket_Key=twice), (400, "invalid_handshake"))

    def test_an_invalid_device_is_400(self) -> None:
        self.assertEqual(self.refused(X_Device_ID="x" * 129), (400, "invalid_device"))

    def test_an_invalid_request_is_refused_before_its_key_is_checked(self) -> None:
        self.refused("/ws/pos/Kitchen")
        self.refused(Upgrade=None)
        self.refused(Sec_WebSocket_Key=None)
        self.assertEqual(self.keys.asked, [])

    def test_a_missing_key_a_wrong_key_and_an_unknown_tenant_have_the_same_answer(self) -> None:
        answers = set()
        for target, key in (("kitchen", None), ("kitchen", "pos_bad"), ("nowhere", "pos_good")):
            socket = self.ask(f"/ws/pos/{target}", X_API_Key=key)
            self.assertEqual(self.refusal(socket), (401, "unauthorized"))
            self.assertIn(b"WWW-Authenticate: Bearer\r\n", socket.value())
            answers.add(json.loads(socket.value().partition(b"\r\n\r\n")[2])["error"])
        self.assertEqual(len(answers), 1)

    def test_a_key_of_another_kind_is_403(self) -> None:
        for kind in (KeyKind.PLATFORM, KeyKind.ADMIN):
            self.keys.kind = kind
            self.assertEqual(self.refused(), (403, "forbidden"))

    def test_a_header_that_names_another_tenant_is_403(self) -> None:
        self.assertEqual(self.refused(X_Tenant_ID="bar"), (403, "tenant_mismatch"))

    def test_a_refusal_of_the_key_is_its_own(self) -> None:
        for refusal in (
            Forbidden("This device has a key of its own.", code="device_key_required"),
            TooManyRequests("Too many.", code="too_many_attempts", retry_after=30),
            Unavailable("The database is away.", retry_after=2),
        ):
            self.keys.refusal = refusal
            socket = self.ask()
            self.assertEqual(self.refusal(socket), (refusal.status, refusal.code))
            if refusal.retry_after is not None:
                self.assertIn(b"Retry-After: %d\r\n" % refusal.retry_after, socket.value())

    def test_too_many_connections_of_a_tenant_are_429(self) -> None:
        sockets = [self.admitted() for _ in range(3)]
        socket = self.ask()
        self.assertIn(b"429 Too Many Requests", socket.value())
        self.assertIn(b"too_many_connections", socket.value())
        self.assertIn(b"Retry-After: ", socket.value())
        sockets[0].hang_up()
        self.admitted()

    def test_too_many_connections_of_a_terminal_are_429(self) -> None:
        self.store.session_start = session_start(10, 4)
        for _ in range(2):
            self.admitted(X_Device_ID="BAR")
        self.assertIn(b"429 Too Many Requests", self.ask(X_Device_ID="BAR").value())
        self.admitted(X_Device_ID="KITCHEN")

    def test_too_many_connections_of_the_node_are_503(self) -> None:
        self.connections.total = 1
        self.admitted()
        self.assertIn(b"503 Service Unavailable", self.ask().value())

    def test_an_unavailable_database_is_503_and_releases_the_connection(self) -> None:
        self.store.away = True
        self.assertEqual(self.refused(), (503, "unavailable"))

    def test_a_node_that_is_stopping_is_503(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.hub.drain(5)))
        socket = self.ask()
        self.assertEqual(self.refusal(socket), (503, "unavailable"))
        self.assertIn(b"Retry-After: 1\r\n", socket.value())

    def test_too_many_devices_are_429(self) -> None:
        self.store.session_start = None
        self.assertEqual(self.refused(X_Device_ID="NEW"), (429, "too_many_devices"))

    def test_a_refused_till_may_try_again_on_the_same_connection(self) -> None:
        socket = self.ask(X_API_Key="pos_bad")
        self.assertFalse(socket.disconnecting)
        self.assertEqual(self.site.open_channels, 1)


class GhostTests(AdmissionCase):
    """Tests of clients that disconnect during the admission, and of exceptions."""

    def test_a_till_that_disconnects_during_the_check_of_its_key_leaves_nothing(self) -> None:
        answer: Deferred[None] = Deferred()
        self.keys.answers.append(answer)
        socket = self.ask()
        socket.hang_up()
        answer.callback(None)
        self.assert_nothing_is_left(socket)

    def test_a_till_that_disconnects_during_the_lookup_of_its_position_leaves_nothing(self) -> None:
        self.store.pending = []
        socket = self.ask()
        self.assertEqual(self.connections.open, 1)
        socket.hang_up()
        self.store.pending.pop().callback(None)
        self.assert_nothing_is_left(socket)

    def test_a_refused_till_that_has_disconnected_leaves_nothing(self) -> None:
        answer: Deferred[None] = Deferred()
        self.keys.answers.append(answer)
        socket = self.ask(X_API_Key="pos_bad")
        socket.hang_up()
        answer.callback(None)
        self.assert_nothing_is_left(socket)

    def test_a_failed_upgrade_closes_and_releases_the_connection(self) -> None:
        def upgrade(*arguments: object) -> object:
            raise ZeroDivisionError

        self.patch(self.factory, "upgrade", upgrade)
        socket = self.ask()
        self.assertTrue(socket.disconnected)
        self.assertEqual((self.connections.open, self.site.open_channels), (0, 0))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_exception_is_500_without_its_text(self) -> None:
        async def find_credential(*arguments: object) -> Credential:
            raise ValueError("pos_secret")

        self.patch(Keys, "find_credential", find_credential)
        socket = self.ask()
        self.assertEqual(self.refusal(socket), (500, "internal_error"))
        self.assertNotIn(b"secret", socket.value())
        self.flushLoggedErrors(ValueError)

    def test_input_before_the_upgrade_does_not_block_it(self) -> None:
        answer: Deferred[None] = Deferred()
        self.keys.answers.append(answer)
        socket = self.ask()
        socket.send(b"x" * 100)
        answer.callback(None)
        self.assertTrue(socket.upgraded)

    def test_the_key_of_one_connection_is_not_the_others(self) -> None:
        first: Deferred[None] = Deferred()
        self.keys.answers.append(first)
        slow = self.ask(X_Device_ID="SLOW")
        self.keys.answers.append(succeed(None))
        self.store.session_start = evolve(session_start(10), acked=3)
        self.admitted(X_Device_ID="QUICK")
        first.callback(None)
        self.assertTrue(slow.upgraded)
        names = {each.terminal.device_id for each in self.hub._registry}
        self.assertEqual(names, {"SLOW", "QUICK"})

    def assert_nothing_is_left(self, socket: Socket) -> None:
        self.assertEqual(socket.value(), b"")
        self.assertEqual((self.connections.open, self.site.open_channels), (0, 0))
        self.assertEqual((len(self.hub), self.progress_store.here), (0, []))
        self.assertEqual(self.flushLoggedErrors(), [])


class TrustedTests(AdmissionCase):
    listener_context = ListenerContext(trusted=True)

    def test_a_trusted_listener_requires_a_key_too(self) -> None:
        self.admitted(Host="localhost")
        self.assertEqual(self.ask(Host="localhost", X_API_Key=None).value()[9:12], b"401")

    def test_a_trusted_listener_refuses_web_pages(self) -> None:
        self.assertEqual(self.refused(Host="localhost", Origin="null"), (403, "forbidden"))
        self.assertEqual(self.refused(), (403, "forbidden"))
