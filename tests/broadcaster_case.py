"""The tests of both broadcasters, against a real server on the loopback interface."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, wrapServerTLS
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.trial.unittest import TestCase
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from posd.broadcaster import (
    CallFailed,
    PublishedEvent,
    PublishFailed,
    TerminalStats,
    calls,
)
from posd.broadcaster.calls import ATTEMPTS
from posd.security.dialing import Backoff
from posd.security.private_ca import make

KEY = "pos_" + "5e" * 32
ORDER = {"order_id": 17, "total": Decimal("12.50"), "items": [{"name": "Dal", "quantity": 1}]}

STATUS = {
    "success": True,
    "websocket": {
        "connected": True,
        "active": 2,
        "url": "wss://pos.example.com:9010",
        "terminals": [{"deviceId": "front", "behind": 3}, {"deviceId": None, "behind": None}],
    },
    "lastEventId": 1042,
    "undelivered": 5,
}


@frozen
class Asked:
    """A request as the server received it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Shop(Resource):
    """Answers each request with the next of `answers`, or with a success if there is none."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.answers: list[Callable[[Request], object]] = []
        self.peers: set[int] = set()

    def render(self, request: Any) -> Any:
        self.peers.add(request.getClientAddress().port)
        headers = {
            name.decode().lower(): values[0].decode()
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        body = request.content.read()
        self.asked.append(
            Asked(
                request.method.decode(),
                request.path.decode(),
                headers,
                json.loads(body, parse_float=Decimal) if body else None,
            )
        )
        if self.answers:
            return self.answers.pop(0)(request)
        return answer(201, {"success": True, "id": 1042, "connections": 3})(request)


def answer(status: int, body: object, **headers: str) -> Callable[[Request], object]:
    def render(request: Any) -> bytes:
        request.setResponseCode(status, b"")
        for name, value in headers.items():
            request.setHeader(name.replace("_", "-").encode(), value.encode())
        return body if isinstance(body, bytes) else json.dumps(body).encode()

    return render


def hang_up(request: Any) -> object:
    request.transport.abortConnection()
    return NOT_DONE_YET


def silence(request: Any) -> object:
    return NOT_DONE_YET


class BroadcasterCase(TestCase):
    """The requirements for both transports. A subclass creates and calls a broadcaster."""

    timeout = 300

    @abstractmethod
    def broadcaster(self, url: str, **options: Any) -> Any:
        """Make a broadcaster that is stopped at the end of the test."""

    @abstractmethod
    def constructed(self, url: str, key: str) -> tuple[object, ...]:
        """Return the arguments of the constructor."""

    @abstractmethod
    def call(self, name: str, *arguments: Any, **options: Any) -> Deferred[Any]:
        """Call a method of `self.made`."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return Deferred.fromCoroutine(self.set_up())

    async def set_up(self) -> None:
        self.patch(calls, "_BACKOFF", Backoff(initial=0.001, maximum=0.001))
        self.shop = Shop()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        await self.listen(Site(self.shop))

    async def listen(self, factory: Any, *, tls_name: str | None = None) -> None:
        """Serve on a new port, and make a broadcaster for it."""
        endpoint: Any = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        if tls_name is not None:
            made = make(self.folder, [tls_name])
            pem = made.key_path.read_bytes() + made.certificate_path.read_bytes()
            endpoint = wrapServerTLS(PrivateCertificate.loadPEM(pem).options(), endpoint)
        factory.noisy = False
        self.port = await endpoint.listen(factory)
        self.addCleanup(self.port.stopListening)
        scheme = "http" if tls_name is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port.getHost().port}"
        self.made = self.broadcaster(self.url, ca=self.folder / "ca.pem" if tls_name else None)

    async def failure(self, name: str, *arguments: Any) -> CallFailed:
        """Return the failure of a call, which must fail."""
        try:
            await self.call(name, *arguments)
        except CallFailed as failure:
            return failure
        raise AssertionError("the call has not failed")

    async def test_an_order_is_published_with_the_key_in_a_header(self) -> None:
        publication = await self.call("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual(publication, PublishedEvent(1042, 3))
        [asked] = self.shop.asked
        self.assertEqual((asked.method, asked.path), ("POST", "/api/kitchen/events"))
        self.assertEqual(asked.headers["x-api-key"], KEY)
        self.assertEqual(asked.headers["content-type"], "application/json")
        self.assertEqual(
            asked.body,
            {
                "type": "new_order",
                "data": {
                    "order_id": 17,
                    "total": Decimal("12.50"),
                    "items": [{"name": "Dal", "quantity": 1}],
                },
            },
        )

    async def test_each_method_publishes_its_own_type(self) -> None:
        for name in (
            "broadcast_order_update",
            "broadcast_gift_card_purchase",
            "broadcast_loyalty_update",
        ):
            await self.call(name, "kitchen", {"id": "1"})
        await self.call("publish", "kitchen", "table_booked", {"table": 4})
        self.assertEqual(
            [asked.body["type"] for asked in self.shop.asked],
            ["order_updated", "gift_card_purchased", "loyalty_updated", "table_booked"],
        )

    async def test_an_order_that_is_not_online_is_not_sent(self) -> None:
        order = {"id": 1, "order_source": "till"}
        for name in ("broadcast_new_order", "broadcast_order_update"):
            publication = await self.call(name, "kitchen", order)
            self.assertEqual((publication.id, publication.dropped), (None, True))
        self.assertEqual(self.shop.asked, [])

    async def test_all_attempts_of_a_call_have_the_same_idempotency_key(self) -> None:
        self.shop.answers = [answer(503, {"code": "unavailable"}), hang_up]
        await self.call("broadcast_new_order", "kitchen", ORDER)
        await self.call("broadcast_new_order", "kitchen", ORDER)
        keys = [asked.headers["idempotency-key"] for asked in self.shop.asked]
        self.assertEqual(len(keys), 4)
        self.assertEqual(keys[0], keys[1])
        self.assertEqual(keys[1], keys[2])
        self.assertEqual(len(set(keys)), 2)

    async def test_an_idempotency_key_of_the_caller_is_used(self) -> None:
        await self.call("broadcast_new_order", "kitchen", ORDER, idempotency_key="order-17")
        self.assertEqual(self.shop.asked[0].headers["idempotency-key"], "order-17")

    async def test_a_first_attempt_that_is_still_running_is_waited_for(self) -> None:
        self.shop.answers = [answer(409, {"code": "still_running", "error": "Wait."})]
        publication = await self.call("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual(publication.id, 1042)

    async def test_an_unchanged_order_has_no_id(self) -> None:
        self.shop.answers = [answer(200, {"success": True, "id": None, "connections": 1})]
        publication = await self.call("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual(publication, PublishedEvent(None, 1))

    async def test_a_refused_call_is_not_repeated(self) -> None:
        body = {"success": False, "code": "invalid_event", "error": "data has no usable orderId."}
        self.shop.answers = [answer(422, body)]
        failure = await self.failure("publish", "kitchen", "new_order", {})
        self.assertEqual(
            (type(failure), failure.status, failure.code, failure.message),
            (PublishFailed, 422, "invalid_event", "data has no usable orderId."),
        )
        self.assertEqual(len(self.shop.asked), 1)
        self.assertEqual(failure.idempotency_key, self.shop.asked[0].headers["idempotency-key"])

    async def test_attempts_at_a_failing_server_end(self) -> None:
        self.shop.answers = [answer(503, b"<html>proxy</html>") for _ in range(9)]
        failure = await self.failure("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual((failure.status, failure.code), (503, "unexpected_answer"))
        self.assertEqual(len(self.shop.asked), ATTEMPTS)

    async def test_a_redirect_is_not_followed_with_the_key(self) -> None:
        self.shop.answers = [answer(307, b"", Location="/elsewhere")]
        failure = await self.failure("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual(failure.status, 307)
        self.assertEqual(len(self.shop.asked), 1)

    async def test_a_success_of_another_server_is_a_failure(self) -> None:
        for body in (b"OK", {"success": True}, {"id": "1042", "connections": 3}, [1]):
            self.shop.answers = [answer(200, body)]
            failure = await self.failure("broadcast_new_order", "kitchen", ORDER)
            self.assertEqual((failure.status, failure.code), (200, "unexpected_answer"))

    async def test_attempts_at_a_silent_server_end(self) -> None:
        # Long enough that each attempt reaches the server on a busy machine.
        self.patch(calls, "ATTEMPT_TIMEOUT", 0.3)
        self.shop.answers = [silence] * ATTEMPTS
        failure = await self.failure("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual((failure.status, failure.code), (None, "unreachable"))
        self.assertEqual(len(self.shop.asked), ATTEMPTS)

    async def test_a_refused_connection_is_unreachable(self) -> None:
        await self.port.stopListening()
        failure = await self.failure("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual((failure.status, failure.code), (None, "unreachable"))
        self.assertIn("refused", failure.message.lower())

    async def test_a_connection_serves_many_calls(self) -> None:
        for _ in range(3):
            await self.call("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual(len(self.shop.peers), 1)

    async def test_a_given_private_authority_is_trusted(self) -> None:
        await self.listen(Site(self.shop), tls_name="127.0.0.1")
        publication = await self.call("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual(publication.id, 1042)

    async def test_an_unknown_authority_is_not_trusted(self) -> None:
        await self.listen(Site(self.shop), tls_name="127.0.0.1")
        self.made = self.broadcaster(self.url)
        failure = await self.failure("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual((failure.status, failure.code), (None, "tls_failed"))
        self.assertEqual(self.shop.asked, [])

    async def test_a_certificate_for_another_name_is_not_trusted(self) -> None:
        await self.listen(Site(self.shop), tls_name="pos.example.net")
        failure = await self.failure("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual((failure.status, failure.code), (None, "tls_failed"))
        self.assertEqual(self.shop.asked, [])

    async def test_a_server_without_http_is_unreachable(self) -> None:
        class Greeter(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(b"220 mail.example.com ESMTP\r\n")
                self.transport.loseConnection()

        await self.listen(Factory.forProtocol(Greeter))
        failure = await self.failure("broadcast_new_order", "kitchen", ORDER)
        self.assertEqual((failure.status, failure.code), (None, "unreachable"))

    async def test_connection_stats_are_returned(self) -> None:
        self.shop.answers = [answer(200, STATUS)]
        stats = await self.call("get_connection_stats", "kitchen")
        self.assertEqual((stats.active, stats.last_event_id, stats.undelivered), (2, 1042, 5))
        self.assertEqual(stats.terminals, (TerminalStats("front", 3), TerminalStats(None, None)))
        self.assertEqual(stats.body, STATUS)
        [asked] = self.shop.asked
        self.assertEqual((asked.method, asked.path), ("GET", "/api/kitchen/pos-status"))
        self.assertEqual(asked.headers["x-api-key"], KEY)

    async def test_a_failure_of_connection_stats_is_not_publish_failed(self) -> None:
        self.shop.answers = [answer(401, {"error": "A valid key.", "code": "unauthorized"})]
        failure = await self.failure("get_connection_stats", "kitchen")
        self.assertEqual((type(failure), failure.code), (CallFailed, "unauthorized"))

    async def test_a_tenant_is_one_segment_of_the_path(self) -> None:
        await self.call("publish", "a/../b", "x", {})
        self.assertEqual(self.shop.asked[0].path, "/api/a%2F..%2Fb/events")

    async def test_a_value_without_a_form_in_json_raises_type_or_value_error(self) -> None:
        for data in ({"a": object()}, {1: "a"}):
            with self.assertRaises(TypeError):
                await self.call("publish", "kitchen", "x", data)
        with self.assertRaises(ValueError):
            await self.call("publish", "kitchen", "x", {"a": float("nan")})
        with self.assertRaises(TypeError):
            await self.call("broadcast_new_order", "kitchen", object())

    def test_the_key_is_not_shown(self) -> None:
        self.assertEqual(KEY in repr(self.made), False)

    def test_an_invalid_url_or_key_is_refused_at_once(self) -> None:
        for url, key in (
            ("http://pos.example.com", KEY),
            ("wss://pos.example.com", KEY),
            (self.url, "two words"),
            (self.url, ""),
        ):
            with self.assertRaises(ValueError):
                type(self.made)(*self.constructed(url, key))
