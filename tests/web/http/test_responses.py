"""Tests of answers and errors of endpoints, and of the request that an endpoint gets."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from io import BytesIO
from ipaddress import ip_network
from typing import Any, cast

from attrs import define, field
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Request

from posd import __version__
from posd.errors import (
    Busy,
    Conflict,
    Refusal,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unprocessable,
)
from posd.web.http.channel import BoundedChannel
from posd.web.http.http_request import HTTPRequest, ListenerContext
from posd.web.http.responses import Endpoint, NotFoundResource, Response, StreamingResponse
from posd.web.http.site import BoundedSite


@define
class Reply:
    """An answer as it was sent."""

    status: int
    phrase: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.body))


@define(eq=False)
class Handler:
    """An endpoint that stores its calls, and answers or fails as the test defines."""

    outcome: Response | Exception | Deferred[Response] = field(
        factory=lambda: Response({"ok": True})
    )
    calls: list[HTTPRequest] = field(factory=list)

    async def __call__(self, call: HTTPRequest) -> Response:
        self.calls.append(call)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome if isinstance(self.outcome, Response) else await self.outcome


class RenderCase(SynchronousTestCase):
    listener_context = ListenerContext()

    def setUp(self) -> None:
        self.handler = Handler()
        resource = Endpoint(self.listener_context, GET=self.handler, POST=self.handler)
        self.site = BoundedSite(resource, Clock(), most_channels=10)

    def send(
        self,
        method: str = "GET",
        target: str = "/",
        headers: Mapping[str, str | bytes | list[str]] = {},
        body: bytes = b"",
        peer: IAddress | None = None,
        version: str = "HTTP/1.1",
    ) -> StringTransport:
        """Send a request. A header whose value is a list is sent on several lines."""
        sent: dict[str, str | bytes | list[str]] = {"Host": "localhost", **headers}
        if body:
            sent["Content-Length"] = str(len(body))
        lines = [f"{method} {target} {version}".encode()]
        for name, given in sent.items():
            for value in given if isinstance(given, list) else [given]:
                raw = value if isinstance(value, bytes) else value.encode()
                lines.append(name.encode() + b": " + raw)
        channel = cast(BoundedChannel, self.site.buildProtocol(cast(Any, None)))
        transport = StringTransport(peerAddress=peer or IPv4Address("TCP", "192.0.2.7", 4711))
        channel.makeConnection(transport)
        channel.dataReceived(b"\r\n".join([*lines, b"", b""]) + body)
        self.channel = channel
        return transport

    def reply(self, transport: StringTransport) -> Reply:
        head, _, body = transport.value().partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        _, status, phrase = first.split(" ", 2)
        pairs = (line.split(": ", 1) for line in lines)
        return Reply(int(status), phrase, {name.lower(): value for name, value in pairs}, body)

    def ask(self, *arguments: Any, **more: Any) -> Reply:
        return self.reply(self.send(*arguments, **more))

    def call(self, *arguments: Any, **more: Any) -> HTTPRequest:
        """Return the request that the endpoint gets. The endpoint does not answer."""
        self.handler.outcome = Deferred()
        self.send(*arguments, **more)
        return self.handler.calls[-1]


class BodyTests(RenderCase):
    def test_a_body_is_freed_with_the_answer(self) -> None:
        """The request objects are a reference cycle, and the body must not wait for the collector."""
        for outcome in (Response({"ok": True}), Unauthorized(), ValueError("a bug")):
            self.handler.outcome = outcome
            self.send("POST", body=b"x" * 1000)
            call = self.handler.calls[-1]
            self.assertEqual((call.body, call._parsed), (b"", None))
        self.flushLoggedErrors(ValueError)

    def test_until_then_there_is_one_copy_of_it(self) -> None:
        call = self.call("POST", body=b"x" * 1000)
        self.assertEqual(len(call.body), 1000)
        self.assertEqual(cast(BytesIO, call.request.content).getvalue(), b"")


class TakeoverTests(RenderCase):
    """Tests of streaming answers."""

    def setUp(self) -> None:
        super().setUp()
        self.begun: list[Request] = []
        self.forgone = 0

    def cancel(self) -> None:
        self.forgone += 1

    def test_the_request_is_handed_over(self) -> None:
        self.handler.outcome = StreamingResponse({}, begin=self.begun.append, cancel=self.cancel)
        transport = self.send()
        self.assertEqual((len(self.begun), self.forgone, transport.value()), (1, 0, b""))

    def test_where_nobody_is_left_nothing_begins(self) -> None:
        outcome: Deferred[Response] = Deferred()
        self.handler.outcome = outcome
        self.send()
        self.channel.connectionLost(Failure(ConnectionDone()))
        outcome.callback(StreamingResponse({}, begin=self.begun.append, cancel=self.cancel))
        self.assertEqual((self.begun, self.forgone), ([], 1))


class AnswerTests(RenderCase):
    def test_an_answer_is_json_that_nobody_keeps(self) -> None:
        reply = self.ask()
        self.assertEqual((reply.status, reply.phrase, reply.json), (200, "OK", {"ok": True}))
        self.assertEqual(reply.headers["content-type"], "application/json")
        self.assertEqual(reply.headers["content-length"], str(len(reply.body)))
        self.assertEqual(reply.headers["cache-control"], "no-store")
        self.assertEqual(reply.headers["server"], f"posd/{__version__}")

    def test_status_and_headers_are_the_endpoints(self) -> None:
        self.handler.outcome = Response({}, 201, {"Idempotent-Replayed": "true"})
        reply = self.ask("POST")
        self.assertEqual((reply.status, reply.phrase), (201, "Created"))
        self.assertEqual(reply.headers["idempotent-replayed"], "true")

    def test_an_answer_may_take_its_time(self) -> None:
        answer: Deferred[Response] = Deferred()
        self.handler.outcome = answer
        transport = self.send()
        self.assertEqual(transport.value(), b"")
        answer.callback(Response({"late": True}))
        self.assertEqual(self.reply(transport).json, {"late": True})

    def test_head_gets_the_headers_of_get(self) -> None:
        reply = self.ask("HEAD")
        self.assertEqual((reply.status, reply.body), (200, b""))
        self.assertEqual(reply.headers["content-length"], "11")

    def test_whoever_has_gone_is_not_answered_and_the_work_is_finished(self) -> None:
        answer: Deferred[Response] = Deferred()
        self.handler.outcome = answer
        transport = self.send()
        self.channel.connectionLost(Failure(ConnectionDone()))
        answer.callback(Response({"late": True}))
        self.assertEqual(transport.value(), b"")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_the_body_is_there_also_when_the_client_is_not(self) -> None:
        call = self.call("POST", "/", {"Content-Type": "application/json"}, b'{"a":1}')
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((call.json(), call.size), ({"a": 1}, 7))

    def test_an_answer_that_cannot_be_sent_ends_the_connection(self) -> None:
        self.handler.outcome = Response({"ok": object()})
        transport = self.send()
        self.assertTrue(transport.disconnecting)
        self.assertEqual(transport.value(), b"")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)


class RefusalTests(RenderCase):
    def refusal_response(self, refusal: Exception) -> Reply:
        self.handler.outcome = refusal
        return self.ask()

    def test_a_refusal_is_an_answer_with_its_code_and_a_sentence(self) -> None:
        reply = self.refusal_response(Conflict("Somebody was faster.", code="reversed"))
        self.assertEqual((reply.status, reply.phrase), (409, "Conflict"))
        request_id = reply.json.pop("requestId")
        self.assertRegex(request_id, "^[0-9a-f]{16}$")
        body = {"success": False, "error": "Somebody was faster.", "code": "reversed"}
        self.assertEqual(reply.json | {"requestId": None}, body | {"requestId": None})

    def test_details_stand_beside_it(self) -> None:
        reply = self.refusal_response(Unprocessable("No such items.", details={"index": 3}))
        self.assertEqual((reply.status, reply.phrase), (422, "Unprocessable Content"))
        self.assertEqual(reply.json["index"], 3)

    def test_it_says_when_to_come_back(self) -> None:
        for refusal in (
            TooManyRequests("Slow down.", retry_after=7),
            Unavailable("The database is away.", retry_after=2),
            Busy("Try again.", retry_after=1),
        ):
            reply = self.refusal_response(refusal)
            self.assertEqual(reply.status, refusal.status)
            self.assertEqual(reply.headers["retry-after"], str(refusal.retry_after))
        self.assertNotIn("retry-after", self.refusal_response(Conflict("No.")).headers)

    def test_401_says_how_to_be_let_in(self) -> None:
        self.assertEqual(
            self.refusal_response(Unauthorized()).headers["www-authenticate"], "Bearer"
        )

    def test_every_status_has_its_phrase(self) -> None:
        def kinds(kind: type[Refusal]) -> list[type[Refusal]]:
            return [kind, *(each for below in kind.__subclasses__() for each in kinds(below))]

        for status in {kind.status for kind in kinds(Refusal)}:
            self.handler.outcome = Response({}, status)
            reply = self.ask()
            self.assertNotIn(reply.phrase, ("Error", "Unknown Status", ""), status)
            self.assertEqual(reply.status, status)

    def test_a_bug_is_500_without_a_word_of_it_and_is_logged_with_the_id(self) -> None:
        with capturedLogs() as events:
            reply = self.refusal_response(ValueError("the key is pos_secret"))
        self.assertEqual((reply.status, reply.json["code"]), (500, "internal_error"))
        self.assertNotIn(b"secret", reply.body)
        (event,) = (each for each in events if "log_failure" in each)
        self.assertEqual(event["id"], reply.json["requestId"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_method_that_is_not_there_is_405_and_says_which_are(self) -> None:
        reply = self.ask("DELETE")
        self.assertEqual((reply.status, reply.headers["allow"]), (405, "GET, HEAD, POST"))
        self.assertEqual(reply.json["code"], "method_not_allowed")

    def test_a_page_of_another_origin_is_told_why_it_may_not_call(self) -> None:
        headers = {"Origin": "https://till.example", "Access-Control-Request-Method": "POST"}
        reply = self.ask("OPTIONS", headers=headers)
        self.assertEqual((reply.status, reply.json["code"]), (405, "method_not_allowed"))
        self.assertIn("CORS", reply.json["error"])
        self.assertNotIn("access-control-allow-origin", reply.headers)
        self.assertNotIn("CORS", self.ask("OPTIONS").json["error"])

    def test_an_address_that_leads_nowhere_is_404(self) -> None:
        self.site.resource = NotFoundResource(self.listener_context)
        reply = self.ask(target="/nowhere?key=pos_secret")
        self.assertEqual((reply.status, reply.json["code"]), (404, "not_found"))

    def test_no_descriptor_left_is_503_and_no_fault_of_the_caller(self) -> None:
        for number in (errno.EMFILE, errno.ENFILE):
            self.handler.outcome = OSError(number, os.strerror(number))
            reply = self.ask()
            self.assertEqual((reply.status, reply.json["code"]), (503, "unavailable"))
            self.assertEqual(reply.headers["retry-after"], "5")
        self.handler.outcome = OSError(errno.EACCES, "no")
        self.assertEqual(self.ask().status, 500)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 3)


class CallTests(RenderCase):
    def test_the_key_comes_in_either_header(self) -> None:
        for headers, key in (
            ({"X-API-Key": "pos_a"}, "pos_a"),
            ({"Authorization": "Bearer pos_b"}, "pos_b"),
            ({"Authorization": "bEARER  pos_b "}, "pos_b"),
            ({"X-API-Key": "pos_a", "Authorization": "Bearer pos_b"}, "pos_a"),
            ({"X-API-Key": "", "Authorization": "Bearer pos_b"}, "pos_b"),
            ({"X-API-Key": " "}, None),
            ({"Authorization": "Bearer "}, None),
            ({"Authorization": "Basic cG9zOmE="}, None),
            ({}, None),
        ):
            self.assertEqual(self.call(headers=headers).key, key, headers)

    def test_the_same_key_on_several_lines_is_one_key(self) -> None:
        for headers in (
            {"X-API-Key": ["pos_a", "pos_a"]},
            {"X-API-Key": ["", "pos_a", " pos_a "]},
            {"Authorization": ["Basic cG9zOmE=", "Bearer pos_a"]},
            {"Authorization": ["Bearer", "Bearer pos_a", "bearer pos_a"]},
        ):
            self.assertEqual(self.call(headers=headers).key, "pos_a", headers)

    def test_headers_that_take_one_value_are_refused_with_two(self) -> None:
        for name, values, read in (
            ("X-API-Key", ["pos_a", "pos_b"], lambda call: call.key),
            ("Authorization", ["Bearer a", "Bearer b"], lambda call: call.key),
            ("Content-Type", ["application/json", "text/plain"], lambda call: call.json()),
            ("Last-Event-ID", ["7", "8"], lambda call: call.header("last-event-id")),
        ):
            call = self.call(headers={name: values})
            refusal = self.assertRaises(Refusal, read, call)
            self.assertEqual((refusal.status, refusal.code), (400, "bad_request"), name)
            call = self.call(headers={name: values[:1] * 2})
            self.assertEqual(call.header(name.lower()), values[0])

    def test_and_nowhere_else(self) -> None:
        self.assertIsNone(self.call(target="/?apiKey=pos_a&key=pos_a", headers={}).key)

    def test_a_key_that_is_no_text_is_a_key(self) -> None:
        self.assertEqual(self.call(headers={"X-API-Key": b"\xff\xfe"}).key, "ÿþ")

    def test_a_device_is_named_in_utf_8(self) -> None:
        headers = {"X-Device-ID": " POS_Küche_0a1b2c3d "}
        self.assertEqual(self.call(headers=headers).device, "POS_Küche_0a1b2c3d")
        self.assertIsNone(self.call().device)
        self.assertEqual(self.call(headers={"X-Device-ID": "é" * 128}).device, "é" * 128)

    def test_a_device_is_named_in_iso_8859_1_too(self) -> None:
        """crossbario/autobahn-python#533 and oven-sh/bun#41482: clients differ in how they write a header."""
        name = "POS_Küche_0a1b2c3d"
        self.assertEqual(self.call(headers={"X-Device-ID": name.encode("latin-1")}).device, name)

    def test_a_name_that_is_none_is_refused(self) -> None:
        for name in ("", "x" * 129, b"\x80\xff", "a\tb", "a\u0085b"):
            call = self.call(headers={"X-Device-ID": name})
            refusal = self.assertRaises(Refusal, lambda call=call: call.device)
            self.assertEqual((refusal.status, refusal.code), (400, "invalid_device"), name)

    def test_a_device_with_two_names_has_none(self) -> None:
        self.assertEqual(self.call(headers={"X-Device-ID": ["BAR", " BAR "]}).device, "BAR")
        call = self.call(headers={"X-Device-ID": ["BAR", "KITCHEN"]})
        refusal = self.assertRaises(Refusal, lambda: call.device)
        self.assertEqual((refusal.status, refusal.code), (400, "invalid_device"))

    def test_of_several_the_first_counts(self) -> None:
        call = self.call(target="/?a=1&a=2&b=")
        self.assertEqual([call.parameter(name) for name in "abc"], ["1", "", None])

    def test_a_body_is_a_json_object(self) -> None:
        for kind in ("application/json", "Application/JSON; charset=utf-8", "application/x+json"):
            call = self.call("POST", headers={"Content-Type": kind}, body=b'{"a":1.50}')
            self.assertEqual(str(call.json()["a"]), "1.50")
        self.assertEqual(self.call("POST", body=b"{}").json(), {})

    def test_another_kind_is_415(self) -> None:
        call = self.call("POST", headers={"Content-Type": "text/plain"}, body=b"{}")
        self.assertEqual(self.assertRaises(Refusal, call.json).status, 415)

    def test_what_is_no_object_is_400(self) -> None:
        for body in (b"[]", b"7", b"{", b"\xff", b'{"a":NaN}', b"[" * 1000):
            refusal = self.assertRaises(Refusal, self.call("POST", body=body).json)
            self.assertEqual((refusal.status, refusal.code), (400, "invalid_json"), body)
        self.assertEqual(self.assertRaises(Refusal, self.call("POST").json).status, 400)

    def test_a_body_is_measured_before_it_is_read(self) -> None:
        call = self.call("POST", body=b'{"a":1}')
        self.assertEqual((call.size, call.json()), (7, {"a": 1}))

    def test_a_tenant_that_is_named_must_be_the_urls(self) -> None:
        call = self.call(headers={"X-Tenant-ID": "kitchen"})
        call.check_tenant("kitchen")
        refusal = self.assertRaises(Refusal, call.check_tenant, "bar")
        self.assertEqual((refusal.status, refusal.code), (403, "tenant_mismatch"))
        self.call().check_tenant("bar")

    def test_every_tenant_that_is_named_must_be_the_urls(self) -> None:
        for named in (["kitchen", "kitchen"], ["kitchen, kitchen"], ["kitchen,kitchen"]):
            self.call(headers={"X-Tenant-ID": named}).check_tenant("kitchen")
        for named in (
            ["kitchen", "bar"],
            ["bar", "kitchen"],
            ["kitchen, bar"],
            ["kitchen", ""],
            [""],
            ["Kitchen"],
        ):
            call = self.call(headers={"X-Tenant-ID": named})
            refusal = self.assertRaises(Refusal, call.check_tenant, "kitchen")
            self.assertEqual((refusal.status, refusal.code), (403, "tenant_mismatch"), named)

    def test_the_client_is_the_peer(self) -> None:
        headers = {"X-Forwarded-For": "198.51.100.9"}
        self.assertEqual(self.call(headers=headers).address, "192.0.2.7")
        self.assertEqual(self.call(peer=UNIXAddress(b"/run/posd")).address, "")


class ProxyTests(RenderCase):
    listener_context = ListenerContext(proxies=(ip_network("192.0.2.0/24"),))

    def test_a_proxy_of_ours_speaks_for_the_client(self) -> None:
        headers = {"X-Forwarded-For": "203.0.113.1, 198.51.100.9"}
        self.assertEqual(self.call(headers=headers).address, "198.51.100.9")

    def test_nobody_else_does(self) -> None:
        stranger = IPv4Address("TCP", "203.0.113.5", 80)
        headers = {"X-Forwarded-For": "198.51.100.9"}
        self.assertEqual(self.call(headers=headers, peer=stranger).address, "203.0.113.5")


class TrustedTests(RenderCase):
    """Tests of a trusted listener, which is for local programs and not for web pages."""

    listener_context = ListenerContext(trusted=True)

    def test_programs_on_this_machine_are_let_in(self) -> None:
        for host in ("localhost", "LOCALHOST:9011", "127.0.0.1", "127.8.9.10:80", "[::1]:9011"):
            self.assertEqual(self.ask(headers={"Host": host}).status, 200, host)

    def test_another_host_name_is_refused(self) -> None:
        for host in (
            *("posd.example", "localhost.example", "127.0.0.1.example", "", "1270.0.0.1"),
            *("localhost.", "127.0.0.1.nip.io", "2130706433", "0x7f.1", "127.1", "10.0.0.1"),
        ):
            self.assertEqual(self.ask(headers={"Host": host}).status, 403, host)

    def test_the_host_of_an_absolute_target_counts(self) -> None:
        self.assertEqual(self.ask(target="http://127.0.0.1:9011/").status, 200)
        self.assertEqual(self.ask(target="http://evil.example/").status, 403)

    def test_without_a_host_nobody_knows_whom_it_is_for(self) -> None:
        self.assertEqual(self.ask(headers={"Host": []}).status, 400)
        self.assertEqual(self.ask(headers={"Host": []}, version="HTTP/1.0").status, 403)

    def test_any_origin_is_refused(self) -> None:
        for origin in ("https://evil.example", "http://localhost", "null"):
            self.assertEqual(self.ask(headers={"Origin": origin}).status, 403, origin)

    def test_whatever_a_page_asks_for_is_refused(self) -> None:
        for site in ("cross-site", "same-site", "same-origin", ""):
            self.assertEqual(self.ask(headers={"Sec-Fetch-Site": site}).status, 403, site)
        self.assertEqual(self.ask(headers={"Sec-Fetch-Site": "none"}).status, 200)

    def test_what_browsers_send_once_is_refused_twice(self) -> None:
        for sites in (
            ["none", "cross-site"],
            ["cross-site", "none"],
            ["none", "none"],
            ["none", ""],
        ):
            self.assertEqual(self.ask(headers={"Sec-Fetch-Site": sites}).status, 403, sites)
        for origins in (["", "https://evil.example"], ["null", "null"]):
            self.assertEqual(self.ask(headers={"Origin": origins}).status, 403, origins)

    def test_a_form_is_refused(self) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            headers = {"Content-Type": kind}
            self.assertEqual(self.ask("POST", headers=headers, body=b"{}").status, 415, kind)
        self.assertEqual(self.ask("POST", body=b"{}").status, 415)
        kinds = {"Content-Type": ["application/json", "text/plain"]}
        self.assertEqual(self.ask("POST", headers=kinds, body=b"{}").status, 400)
        for kind in ("application/json; charset=utf-8", "Application/JSON"):
            headers = {"Content-Type": kind}
            self.assertEqual(self.ask("POST", headers=headers, body=b"{}").status, 200)

    def test_whoever_is_refused_reaches_no_endpoint(self) -> None:
        self.ask(headers={"Origin": "https://evil.example"})
        self.assertEqual(self.handler.calls, [])
