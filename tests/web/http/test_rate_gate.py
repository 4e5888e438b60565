"""Tests that requests are charged when their heads have arrived, and that a refusal costs little."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any, cast

from attrs import define, frozen
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from posd.errors import TooManyRequests
from posd.security.key_index import KeyIndex, KnownKey
from posd.security.request_rates import RatePurpose, RequestRates, account
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.channel import BoundedChannel
from posd.web.http.http_request import HTTPRequest, ListenerContext
from posd.web.http.rate_gate import RateGate
from posd.web.http.responses import Response, respond
from posd.web.http.site import BoundedSite

TILL, PLATFORM, DEVICE, GLOBAL = "pos_till", "pos_platform", "pos_device", "pos_global"
KIB = 1024


@define(eq=False)
class Index:
    """The index of keys: three keys of the kitchen. Implements what the gate asks of `KeyIndex`."""

    is_loaded: bool = True

    def find(self, sha256: bytes, slug: str | None = None) -> KnownKey | None:
        for number, key in enumerate((TILL, PLATFORM, DEVICE), 1):
            if hashlib.sha256(key.encode()).digest() == sha256 and slug in (None, "kitchen"):
                return KnownKey(number, 1, key == TILL)
        if hashlib.sha256(GLOBAL.encode()).digest() == sha256:
            return KnownKey(4, None, False)
        return None

    def tenant(self, slug: str) -> int | None:
        return 1 if slug == "kitchen" else None


@define(eq=False)
class Served(Resource):
    """Answers with how long the body was."""

    listener_context: ListenerContext
    isLeaf = True
    taken: int = 0

    def __attrs_post_init__(self) -> None:
        Resource.__init__(self)

    async def _answer(self, call: HTTPRequest) -> Response:
        call.check_rate()
        self.taken += 1
        return Response({"size": call.size})

    def render(self, request: Request) -> int:
        respond(HTTPRequest(cast(BoundedRequest, request), self.listener_context), self._answer)
        return NOT_DONE_YET


@frozen
class Reply:
    status: int
    headers: Mapping[str, str]
    json: Any


class GateCase(SynchronousTestCase):
    listener_context = ListenerContext()

    def setUp(self) -> None:
        self.clock = Clock()
        self.rates = RequestRates(5, 100 * KIB, 20, self.clock.seconds)
        self.index = Index()
        self.resource = Served(self.listener_context)
        rate_gate = RateGate(cast(KeyIndex, self.index), self.rates, self.listener_context)
        self.site = BoundedSite(self.resource, self.clock, 1000, rate_gate=rate_gate)

    def connect(self, host: str = "192.0.2.1") -> tuple[BoundedChannel, StringTransport]:
        channel = cast(BoundedChannel, self.site.buildProtocol(IPv4Address("TCP", host, 1)))
        transport = StringTransport(peerAddress=IPv4Address("TCP", host, 1))
        channel.makeConnection(transport)
        return channel, transport

    def ask(
        self,
        key: str | None = PLATFORM,
        path: str = "/api/kitchen/events",
        body: bytes = b"",
        method: str = "GET",
        host: str = "192.0.2.1",
        **headers: str,
    ) -> Reply:
        """The answer to a request on a connection of its own."""
        channel, transport = self.connect(host)
        channel.dataReceived(request(key, path, body, method, **headers))
        return reply(transport.value())

    def asked(self, tries: int = 1000, **how: Any) -> int:
        """How often that is answered before it is too much."""
        for count in range(tries):
            answer = self.ask(**how)
            if answer.status == 429:
                self.assertEqual(answer.json["code"], "too_many_requests")
                self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
                return count
        return tries


def request(
    key: str | None, path: str, body: bytes = b"", method: str = "GET", **headers: str
) -> bytes:
    sent = {"Host": "localhost", **{name.replace("_", "-"): each for name, each in headers.items()}}
    if key is not None:
        sent["X-API-Key"] = key
    if body and "Transfer-Encoding" not in sent:
        sent["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {each}" for name, each in sent.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply(data: bytes) -> Reply:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Reply(int(first.split(" ")[1]), headers, json.loads(body))


class CredentialTests(GateCase):
    def test_requests_of_every_method_are_charged_to_their_key(self) -> None:
        for method in ("GET", "POST", "DELETE", "PUT"):
            for _ in range(12):
                self.ask(method=method)
        self.assertEqual(self.asked(), 2)
        self.assertEqual(self.resource.taken, 50)
        self.clock.advance(1)
        self.assertEqual(self.asked(method="POST"), 5)

    def test_a_key_of_all_tenants_may_ask_for_many_shops(self) -> None:
        self.assertEqual(self.asked(tries=1100, key=GLOBAL), 20 * 50)

    def test_whichever_header_it_comes_in(self) -> None:
        self.asked()
        self.assertEqual(self.asked(key=None, Authorization=f"Bearer {PLATFORM}"), 0)

    def test_others_behind_the_same_address_are_not_held_up(self) -> None:
        self.asked()
        self.asked(key="wrong")
        self.assertEqual(self.asked(key=DEVICE), 50)
        self.assertEqual(self.asked(key=TILL), 50)

    def test_terminals_of_one_key_are_told_apart_by_their_names(self) -> None:
        self.assertEqual(self.asked(key=TILL, X_Device_ID="front"), 50)
        self.assertEqual(self.asked(key=TILL, X_Device_ID=" bar "), 50)
        self.assertEqual(self.asked(key=TILL, X_Device_ID="bar"), 0)
        self.assertEqual(self.asked(key=TILL), 50)

    def test_a_name_is_the_same_in_a_request_and_in_frames(self) -> None:
        """Clients send names in UTF-8, and a terminal is known by the text."""
        self.assertEqual(self.asked(key=TILL, X_Device_ID="Küche"), 50)
        frames = account(1, "Küche", shared=True, purpose=RatePurpose.FRAMES)
        self.assertGreater(self.rates.heard(frames, 1, 0), 0)

    def test_a_devices_key_has_one_rate_whatever_it_names(self) -> None:
        names = iter(range(1000))
        count = 0
        while self.ask(key=DEVICE, X_Device_ID=str(next(names))).status == 200:
            count += 1
        self.assertEqual(count, 50)

    def test_handshakes_of_a_shared_key_are_charged_apart(self) -> None:
        self.assertEqual(self.asked(key=TILL), 50)
        self.assertEqual(self.asked(key=TILL, path="/ws/pos/kitchen"), 200)
        self.assertEqual(self.asked(key=TILL, path="/ws/pos/%6bitchen?last_event_id=1"), 0)

    def test_before_all_keys_are_read_nobody_is_charged(self) -> None:
        self.index.is_loaded = False
        self.assertEqual(self.asked(tries=300), 300)


class StrangerTests(GateCase):
    def test_a_key_that_is_not_known_is_charged_to_the_address(self) -> None:
        self.assertEqual(self.asked(key="wrong"), 200)
        for key, path in (
            ("others", "/broadcast"),
            (None, "/docs"),
            (TILL, "/api/grill/events"),
            (TILL, "/ws/pos/grill"),
            ("x" * 300, "/health"),
        ):
            self.assertEqual(self.asked(key=key, path=path), 0, path)
        self.assertEqual(self.asked(key="wrong", host="192.0.2.2"), 200)
        self.assertEqual(self.asked(key=TILL, path="/broadcast"), 50)

    def test_load_balancers_are_answered(self) -> None:
        self.asked(key="wrong")
        for path in ("/health/live", "/health/ready?x"):
            self.assertEqual(self.ask(key=None, path=path).status, 200)


class TrustedTests(GateCase):
    listener_context = ListenerContext(trusted=True)

    def test_local_programs_without_a_key_are_not_charged(self) -> None:
        self.assertEqual(self.asked(tries=300, key=None, host="127.0.0.1"), 300)

    def test_wrong_keys_are(self) -> None:
        self.assertEqual(self.asked(key="wrong", host="127.0.0.1"), 200)


class BodyTests(GateCase):
    def test_a_long_one_of_a_credential_is_read_after_a_rest_and_thrown_away(self) -> None:
        """A mebibyte may come at once. Another connection would cost more than to read the body."""
        self.asked(body=bytes(512 * KIB), method="POST")
        self.resource.taken = 0
        channel, transport = self.connect()
        head, _, body = request(PLATFORM, "/", b"x" * (600 * KIB), "POST").partition(b"\r\n\r\n")
        channel.dataReceived(head + b"\r\n\r\n")
        self.assertEqual((transport.value(), transport.producerState), (b"", "paused"))
        self.clock.advance(1.5)
        self.assertEqual(transport.producerState, "producing")
        channel.dataReceived(body)
        answer = reply(transport.value())
        self.assertEqual((answer.status, answer.json["code"]), (429, "too_many_requests"))
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        self.assertFalse(transport.disconnecting)
        self.assertEqual((self.resource.taken, channel.site.bodies.total), (0, 0))

    def test_who_waits_to_be_asked_for_it_is_refused_at_once(self) -> None:
        self.asked(body=bytes(512 * KIB), method="POST")
        channel, transport = self.connect()
        asking = request(PLATFORM, "/", bytes(600 * KIB), "POST", Expect="100-continue")
        channel.dataReceived(asking.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        answer = reply(transport.value())
        self.assertEqual((answer.status, answer.headers["connection"]), (429, "close"))
        self.assertTrue(transport.disconnecting)

    def test_a_long_one_of_a_stranger_is_not_read(self) -> None:
        self.asked(key="wrong")
        channel, transport = self.connect()
        head = request("wrong", "/", bytes(600 * KIB), "POST").partition(b"\r\n\r\n")[0]
        channel.dataReceived(head + b"\r\n\r\n")
        self.assertEqual(reply(transport.value()).status, 429)
        self.assertTrue(transport.disconnecting)

    def test_a_short_one_is_read_and_the_connection_goes_on(self) -> None:
        self.asked(body=bytes(60 * KIB), method="POST")
        channel, transport = self.connect()
        channel.dataReceived(request(PLATFORM, "/", bytes(60 * KIB), "POST"))
        self.assertEqual(reply(transport.value()).status, 429)
        self.assertFalse(transport.disconnecting)

    def test_a_body_without_a_length_is_charged_as_it_comes(self) -> None:
        chunk = b"%x\r\n" % (100 * KIB) + bytes(100 * KIB) + b"\r\n"
        whole = chunk * 9 + b"0\r\n\r\n"
        answer = self.ask(body=whole, method="POST", Transfer_Encoding="chunked")
        self.assertEqual((answer.status, answer.json), (200, {"size": 900 * KIB}))
        channel, transport = self.connect()
        channel.dataReceived(request(PLATFORM, "/", b"", "POST", Transfer_Encoding="chunked"))
        channel.dataReceived(chunk)
        self.assertEqual(transport.value(), b"")
        channel.dataReceived(chunk)
        self.assertEqual(transport.producerState, "paused")
        self.clock.advance(1.5)
        channel.dataReceived(chunk + b"0\r\n\r\n")
        self.assertEqual(reply(transport.value()).status, 429)


class PauseTests(GateCase):
    def test_one_with_a_body_without_a_length_rests_as_well(self) -> None:
        self.asked()
        channel, transport = self.connect()
        chunked = request(
            PLATFORM, "/", b"2\r\n{}\r\n0\r\n\r\n", "POST", Transfer_Encoding="chunked"
        )
        channel.dataReceived(chunked)
        self.assertEqual(reply(transport.value()).status, 429)
        self.assertEqual(transport.producerState, "paused")
        self.clock.advance(1.5)
        self.assertEqual(transport.producerState, "producing")

    def test_who_does_not_heed_it_is_not_read_for_a_second(self) -> None:
        self.asked()
        channel, transport = self.connect()
        channel.dataReceived(request(PLATFORM, "/"))
        self.assertEqual(reply(transport.value()).status, 429)
        self.assertEqual(transport.producerState, "paused")
        self.clock.advance(0.49)
        self.assertEqual(transport.producerState, "paused")
        self.clock.advance(1.01)
        self.assertEqual(transport.producerState, "producing")
        transport.clear()
        channel.dataReceived(request(PLATFORM, "/"))
        self.assertEqual(reply(transport.value()).status, 200)
        self.assertEqual(transport.producerState, "producing")

    def test_a_stranger_who_goes_on_rests_for_longer_each_time(self) -> None:
        self.patch(random, "uniform", lambda least, most: 1.0)
        self.asked(key="wrong")
        channel, transport = self.connect()
        rests = []
        for _ in range(6):
            self.asked(key="wrong")
            transport.clear()
            channel.dataReceived(request("wrong", "/"))
            self.assertEqual(reply(transport.value()).status, 429)
            (until,) = {each.getTime() for each in [cast(Any, channel)._pause_timer]}
            rests.append(until - self.clock.seconds())
            self.clock.advance(rests[-1])
        self.assertEqual(rests, [1, 2, 4, 8, 8, 8])

    def test_a_platform_is_read_after_the_429_of_one_tenant(self) -> None:
        """The next request on its connection may be an order of another tenant."""

        async def refuse(call: HTTPRequest) -> Response:
            raise TooManyRequests("This tenant exceeds its rate of events.")

        self.patch(self.resource, "_answer", refuse)
        channel, transport = self.connect()
        channel.dataReceived(request(PLATFORM, "/"))
        self.assertEqual(reply(transport.value()).status, 429)
        self.assertEqual(transport.producerState, "producing")

    def test_a_connection_that_is_gone_meanwhile_is_left_alone(self) -> None:
        self.asked()
        channel, _ = self.connect()
        channel.dataReceived(request(PLATFORM, "/"))
        channel.connectionLost()
        self.clock.advance(60)
        self.assertNotIn(channel, self.site._channels)


class ProxyTests(GateCase):
    listener_context = ListenerContext(proxies=(ip_network("198.51.100.0/24"),))

    def test_its_connection_is_read_on_for_its_other_clients(self) -> None:
        """nginx with `keepalive` sends requests of all clients on the connections that it has."""
        self.asked()
        channel, transport = self.connect("198.51.100.7")
        channel.dataReceived(request(PLATFORM, "/", X_Forwarded_For="192.0.2.1"))
        self.assertEqual(reply(transport.value()).status, 429)
        self.assertEqual(transport.producerState, "producing")
        transport.clear()
        channel.dataReceived(request(DEVICE, "/", X_Forwarded_For="192.0.2.2"))
        self.assertEqual(reply(transport.value()).status, 200)

    def test_one_who_only_says_so_is_none(self) -> None:
        self.asked()
        channel, transport = self.connect("192.0.2.1")
        channel.dataReceived(request(PLATFORM, "/", X_Forwarded_For="192.0.2.9"))
        self.assertEqual(transport.producerState, "paused")
