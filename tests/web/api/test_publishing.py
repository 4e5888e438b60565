"""Tests of all answers of publishing by REST, with a fake sequencer and a fake authenticator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import Any, Final, cast
from unittest.mock import patch

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import (
    Conflict,
    NotFound,
    Refusal,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unprocessable,
)
from posd.protocol import jsontext
from posd.publishing.publication import Publication, PublicationResult
from posd.publishing.sequencer import Sequencer
from posd.security.auth import Authenticator
from posd.security.request_rates import account
from posd.store.credentials import Credential
from posd.values import KeyKind, Principal, Tenant
from posd.web.api import publishing
from posd.web.api.publishing import PublishingEndpoints
from posd.web.http.dispatch import Dispatcher
from posd.web.http.http_request import HTTPRequest, ListenerContext
from posd.web.http.request_turns import AT_ONCE, RequestTurns
from posd.web.http.responses import Response, answer
from tests.asked import FakeRequest
from tests.at_once import run_pieces_at_once

PUBLISHED: Final = PublicationResult((1042,), 3)
OPEN: Final = ListenerContext()
KITCHEN: Final = Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen")


@define(eq=False)
class Keys:
    """An authenticator with one tenant, and with keys that are named after their kinds."""

    async def find_credential(
        self, slug: str, key: str | None, device_id: str | None, address: str
    ) -> Credential:
        if slug != "kitchen" or key not in {kind.value for kind in KeyKind}:
            raise Unauthorized
        principal = Principal(1, KeyKind(key), KITCHEN)
        return Credential(principal, KITCHEN, None, False, True, ())

    async def require_known_key(self, key: str | None, address: str) -> None:
        if key not in {kind.value for kind in KeyKind}:
            raise Unauthorized

    async def trusted_tenant(self, slug: str) -> Tenant:
        if slug != "kitchen":
            raise NotFound("There is no such tenant.", code="unknown_tenant")
        return KITCHEN


@define(eq=False)
class Numbers:
    """A sequencer that answers as the test defines."""

    asked: list[Publication] = field(factory=list)
    result: PublicationResult | Refusal = PUBLISHED
    event_bytes: int = 128 * 1024

    async def publish(self, publication: Publication) -> PublicationResult:
        self.asked.append(publication)
        if isinstance(self.result, Refusal):
            raise self.result
        return self.result


class PublishingCase(SynchronousTestCase):
    def setUp(self) -> None:
        run_pieces_at_once(self)
        self.clock = Clock()
        self.numbers = Numbers()
        self.dispatcher = Dispatcher(cast(Authenticator, Keys()), self.clock.seconds)
        self.publisher = PublishingEndpoints(
            self.dispatcher, cast(Sequencer, self.numbers), 10, self.clock.seconds
        )

    def call(self, path: str, body: object, key: str | None = "platform", **how: Any) -> Response:
        """Return the answer to a POST. `body` is sent as JSON, or unchanged if it is bytes."""
        return self.successResultOf(self.begin(path, body, key, **how))

    def begin(
        self,
        path: str,
        body: object,
        key: str | None = "platform",
        *,
        listener_context: ListenerContext = OPEN,
        headers: Mapping[str, str] = {},
    ) -> Deferred[Response]:
        """Send a POST whose answer may come later."""
        request: Any = FakeRequest([part.encode() for part in path.strip("/").split("/")])
        request.method = b"POST"
        request.path = path.encode()
        request.content = BytesIO(body if isinstance(body, bytes) else jsontext.encode(body))
        sent = {"Host": "localhost", "Content-Type": "application/json", **headers}
        if key is not None:
            sent["X-API-Key"] = key
        for name, value in sent.items():
            request.requestHeaders.setRawHeaders(name, [value])
        call = HTTPRequest(request, listener_context)
        events, broadcast = self.publisher.operations
        if path == "/broadcast":
            handler = partial(self.dispatcher.serve, broadcast, {})
        else:
            handler = partial(self.dispatcher.serve, events, {"tenant": path.split("/")[2]})
        return Deferred.fromCoroutine(answer(call, handler))

    def events(self, body: object, key: str | None = "platform", **headers: str) -> Response:
        idempotency_key = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.call("/api/kitchen/events", body, key, headers=idempotency_key)

    def assertRefused(self, given: Response, status: int, code: str) -> None:
        self.assertEqual((given.status, given.body["code"]), (status, code))
        self.assertIs(given.body["success"], False)


def members(given: Response) -> list[str]:
    """Return the members in the warnings of an answer."""
    return [each["member"] for each in cast("list[dict[str, str]]", given.body["warnings"])]


class EventsTests(PublishingCase):
    def test_one_event_is_told_its_position(self) -> None:
        given = self.events({"type": "notice", "data": {"a": 1}})
        self.assertEqual(given.status, 201)
        self.assertEqual(given.body, {"success": True, "id": 1042, "connections": 3})
        ((publication),) = self.numbers.asked
        self.assertEqual(publication.tenant_id, 1)
        self.assertEqual([draft.data for draft in publication.drafts], [{"a": 1}])
        self.assertIsNone(publication.idempotency)

    def test_what_could_not_be_read_is_told_without_its_value(self) -> None:
        event = {"type": "new_order", "data": {"orderId": 7, "totalAmount": "£14.20"}}
        given = self.events(event)
        self.assertEqual(given.status, 201)
        (warning,) = cast("list[dict[str, str]]", given.body["warnings"])
        self.assertEqual((warning["member"], warning["code"]), ("totalAmount", "unreadable"))
        self.assertNotIn("14.20", jsontext.encode(given.body).decode())
        self.numbers.result = PublicationResult((7, 8), 0)
        several = self.events({"events": [{"type": "notice", "data": {}}, event]})
        self.assertEqual(members(several), ["events[1].totalAmount"])
        self.assertEqual(
            members(self.call("/broadcast", {"tenant": "kitchen", "event": event})), ["totalAmount"]
        )

    def test_a_replayed_answer_has_its_warnings(self) -> None:
        self.numbers.result = PublicationResult((7,), 0, replayed=True)
        event = {"type": "new_order", "data": {"orderId": 7, "totalAmount": "ten"}}
        self.assertEqual(members(self.events(event)), ["totalAmount"])

    def test_characters_that_were_replaced_are_told(self) -> None:
        for body in (
            rb'{"type": "notice", "data": {"text": "Anna \ud83d"}}',
            rb'{"type": "notice", "data": {"text": "Anna \u0000"}}',
        ):
            given = self.events(body)
            self.assertEqual(given.status, 201)
            self.assertEqual(members(given), ["text"])
            draft = self.numbers.asked[-1].drafts[0]
            self.assertEqual(draft.data["text"], "Anna \N{REPLACEMENT CHARACTER}")
        for body in (
            rb'{"type": "notice", "data": {"text": "\ud83d\ude00 \\ud83d"}}',
            '{"type": "notice", "data": {"text": "\N{REPLACEMENT CHARACTER}"}}'.encode(),
        ):
            self.assertNotIn("warnings", self.events(body).body)

    def test_an_answer_has_an_end(self) -> None:
        self.numbers.result = PublicationResult((None,) * 500, 0)
        event = {"type": "new_order", "data": {"orderId": 7, "total": "ten", "tax": "ten"}}
        self.assertEqual(len(members(self.events({"events": [event] * 500}))), 100)

    def test_several_events_are_told_theirs(self) -> None:
        self.numbers.result = PublicationResult((7, None), 0)
        given = self.events({"events": [{"type": "notice", "data": {}}] * 2})
        self.assertEqual(given.status, 201)
        self.assertEqual(given.body["ids"], [7, None])

    def test_what_says_nothing_new_is_200(self) -> None:
        self.numbers.result = PublicationResult((None,), 3)
        given = self.events({"type": "notice", "data": {}})
        self.assertEqual((given.status, given.body["id"]), (200, None))

    def test_a_replayed_answer_says_so(self) -> None:
        self.numbers.result = PublicationResult((1042,), 3, replayed=True)
        given = self.events({"type": "notice", "data": {}}, Idempotency_Key="k")
        self.assertEqual((given.status, given.headers), (201, {"Idempotent-Replayed": "true"}))

    def test_what_stands_beside_the_data_is_kept(self) -> None:
        self.events({"type": "notice", "data": {}, "timestamp": "now", "priority": 2})
        self.assertEqual(self.numbers.asked[0].drafts[0].extra_members, {"priority": 2})

    def test_no_key_or_a_wrong_one_is_401(self) -> None:
        for key in (None, "wrong"):
            given = self.events({"type": "notice", "data": {}}, key)
            self.assertRefused(given, 401, "unauthorized")

    def test_only_a_platform_may(self) -> None:
        for key in ("tenant", "device", "admin"):
            self.assertRefused(self.events({"type": "notice", "data": {}}, key), 403, "forbidden")
        self.assertEqual(self.numbers.asked, [])

    def test_another_tenant_in_the_header_is_403(self) -> None:
        given = self.events({"type": "notice", "data": {}}, X_Tenant_ID="grill")
        self.assertRefused(given, 403, "tenant_mismatch")

    def test_what_is_malformed_is_400(self) -> None:
        for body, code in (
            (b"{", "invalid_json"),
            (b"[]", "invalid_json"),
            ({"events": []}, "invalid_events"),
            ({"events": {}}, "invalid_events"),
            ({"events": [{"type": "notice", "data": {}}] * 501}, "invalid_events"),
            ({"events": ["notice"]}, "invalid_event"),
        ):
            with self.subTest(code=code):
                self.assertRefused(self.events(body), 400, code)

    def test_another_content_type_is_415(self) -> None:
        given = self.events({"type": "notice", "data": {}}, Content_Type="text/plain")
        self.assertRefused(given, 415, "unsupported_media_type")

    def test_what_cannot_be_an_event_is_422_and_which_one_it_is(self) -> None:
        self.assertRefused(self.events({"type": "Nope", "data": {}}), 422, "invalid_event")
        self.assertRefused(self.events({"type": "ping", "data": {}}), 422, "invalid_event")
        self.assertRefused(self.events({"type": "notice"}), 422, "invalid_event")
        given = self.events({"events": [{"type": "notice", "data": {}}, {"type": "notice"}]})
        self.assertRefused(given, 422, "invalid_event")
        self.assertTrue(str(given.body["error"]).startswith("events[1]."))

    def test_what_the_sequencer_refuses_is_passed_on(self) -> None:
        for refusal, status in (
            (TooLarge("too large", code="event_too_large"), 413),
            (Conflict("still running", code="still_running"), 409),
            (Unprocessable("another call", code="idempotency_mismatch"), 422),
            (Unavailable("the database is away", retry_after=2), 503),
        ):
            self.numbers.result = refusal
            given = self.events({"type": "notice", "data": {}})
            self.assertRefused(given, status, refusal.code)
        self.assertEqual(given.headers, {"Retry-After": "2"})

    def test_more_events_than_the_rate_allows_are_429_with_a_time(self) -> None:
        many = {"events": [{"type": "notice", "data": {}}] * 500}
        self.assertEqual(self.events(many).status, 201)
        given = self.events({"type": "notice", "data": {}})
        self.assertRefused(given, 429, "too_many_requests")
        self.assertEqual(given.headers["Retry-After"], "1")
        self.clock.advance(0.2)
        self.assertEqual(self.events({"type": "notice", "data": {}}).status, 201)

    def test_an_event_that_cannot_fit_is_refused_before_it_is_read_further(self) -> None:
        self.numbers.event_bytes = 1024
        event = {"type": "new_order", "data": {"orderId": "7", "items": [{"name": "x" * 3000}]}}
        small = {"type": "notice", "data": {}}
        self.patch(publishing, "read_event", lambda *_: self.fail("it was read"))
        for given in (
            self.events(event),
            self.events({"events": [small, event]}),
            self.call("/broadcast", {"tenant": "kitchen", "event": event}),
        ):
            self.assertRefused(given, 413, "event_too_large")
        self.assertEqual(self.numbers.asked, [])

    def test_many_small_ones_may_be_long_together(self) -> None:
        self.numbers.event_bytes = 1024
        events = [{"type": "notice", "data": {"text": "x" * 900}}] * 50
        self.assertEqual(self.events({"events": events}).status, 201)
        self.assertEqual(len(self.numbers.asked[0].drafts), 50)

    def test_an_order_of_too_many_lines_is_refused(self) -> None:
        data = {"orderId": "7", "items": ["x"] * 2001}
        self.assertRefused(self.events({"type": "new_order", "data": data}), 422, "invalid_event")

    def test_a_rate_that_was_reloaded_counts_for_known_tenants_too(self) -> None:
        self.events({"type": "notice", "data": {}})
        self.publisher.per_second = 1000
        many = {"events": [{"type": "notice", "data": {}}] * 500}
        self.events({"type": "notice", "data": {}})
        self.clock.advance(10)
        self.assertEqual([self.events(many).status for _ in range(4)], [201] * 4)


class IdempotencyTests(PublishingCase):
    def fingerprint(self, body: object, **headers: str) -> bytes:
        self.events(body, **(headers or {"Idempotency_Key": "k"}))
        idempotency = self.numbers.asked[-1].idempotency
        assert idempotency is not None
        return idempotency.fingerprint

    def test_a_key_names_the_call_of_any_platform_at_this_address(self) -> None:
        self.events({"type": "notice", "data": {}}, X_Idempotency_Key="k")
        idempotency = self.numbers.asked[0].idempotency
        assert idempotency is not None
        scope = (1, "platform", "POST /api/kitchen/events", "k")
        self.assertEqual(idempotency.scope, scope)

    def test_keys_that_differ_or_cannot_be_one_are_400(self) -> None:
        event = {"type": "notice", "data": {}}
        for headers in (
            {"Idempotency_Key": "a", "X_Idempotency_Key": "b"},
            {"Idempotency_Key": ""},
            {"Idempotency_Key": "two words"},
            {"Idempotency_Key": "x" * 256},
        ):
            self.assertRefused(self.events(event, **headers), 400, "invalid_idempotency_key")
        same = {"Idempotency_Key": "a", "X_Idempotency_Key": "a"}
        self.assertEqual(self.events(event, **same).status, 201)

    def test_clocks_the_order_of_members_and_spellings_change_no_fingerprint(self) -> None:
        order = {"orderId": "7", "totalAmount": 12.5, "updatedAt": "2026-11-22T10:00:00Z"}
        first = self.fingerprint({"type": "new_order", "data": order, "timestamp": "1"})
        again = {"updated_at": "2026-11-22T11:00:00Z", "total_amount": 12.5, "order_id": 7}
        self.assertEqual(
            self.fingerprint({"timestamp": "2", "data": again, "type": "new_order"}), first
        )

    def test_zeros_at_the_end_of_a_number_change_no_fingerprint(self) -> None:
        for one, other in ((b"12.5", b"12.500"), (b"1", b"1.00"), (b"0", b"-0.0"), (b"10", b"1e1")):
            body = b'{"type": "notice", "data": {"a": [%s]}}'
            first = self.fingerprint(body % one)
            self.assertEqual(self.fingerprint(body % other), first, other)
        digits = b"1." + b"0" * 38
        for one, other in ((b"1", b"true"), (b"10", b"1"), (b"1", digits + b"1")):
            self.assertNotEqual(self.fingerprint(body % one), self.fingerprint(body % other), other)

    def test_what_is_moved_does(self) -> None:
        base = {"type": "notice", "data": {"a": [1, {"b": 2}]}, "x": 1}
        first = self.fingerprint(base)
        for other in (
            base | {"type": "other"},
            base | {"data": {"a": [1, {"b": 3}]}},
            base | {"x": 2},
        ):
            self.assertNotEqual(self.fingerprint(other), first)


class BroadcastTests(PublishingCase):
    event: Final = {"tenant": "kitchen", "event": {"type": "notice", "data": {"a": 1}}}

    def test_the_deployed_call_gets_the_deployed_answer(self) -> None:
        given = self.call("/broadcast", self.event)
        self.assertEqual(given.status, 200)
        self.assertEqual(
            given.body,
            {"success": True, "message": "Event broadcasted to kitchen", "connections": 3},
        )

    def test_without_tenant_or_event_it_is_400_in_the_deployed_words(self) -> None:
        bodies: list[dict[str, object]] = [
            {},
            {"tenant": "kitchen"},
            {"event": {}},
            {"tenant": "", "event": {}},
        ]
        for body in bodies:
            given = self.call("/broadcast", body)
            self.assertRefused(given, 400, "missing_tenant_or_event")
            self.assertEqual(given.body["error"], "Missing tenant or event")

    def test_a_name_that_no_tenant_can_have_is_400(self) -> None:
        given = self.call("/broadcast", self.event | {"tenant": "../etc"})
        self.assertRefused(given, 400, "invalid_tenant")

    def test_a_platform_key_is_needed(self) -> None:
        self.assertRefused(self.call("/broadcast", self.event, None), 401, "unauthorized")
        self.assertRefused(self.call("/broadcast", self.event, "tenant"), 403, "forbidden")
        unknown = self.event | {"tenant": "nowhere"}
        self.assertRefused(self.call("/broadcast", unknown), 401, "unauthorized")

    def test_on_a_trusted_listener_no_key_is_needed_but_one_that_is_given_must_fit(self) -> None:
        trusted = ListenerContext(trusted=True)
        self.assertEqual(
            self.call("/broadcast", self.event, None, listener_context=trusted).status, 200
        )
        given = self.call("/broadcast", self.event, "wrong", listener_context=trusted)
        self.assertRefused(given, 401, "unauthorized")
        unknown = self.event | {"tenant": "nowhere"}
        given = self.call("/broadcast", unknown, None, listener_context=trusted)
        self.assertRefused(given, 404, "unknown_tenant")

    def test_a_trusted_listener_listens_to_no_web_page(self) -> None:
        trusted = ListenerContext(trusted=True)
        for headers in ({"Origin": "http://localhost"}, {"Host": "evil.example"}):
            request = {"Host": "localhost"} | headers
            given = self.call(
                "/broadcast", self.event, None, listener_context=trusted, headers=request
            )
            self.assertRefused(given, 403, "forbidden")
        given = self.call(
            "/broadcast",
            self.event,
            None,
            listener_context=trusted,
            headers={"Content-Type": "text/plain"},
        )
        self.assertEqual(given.status, 415)
        self.assertEqual(self.numbers.asked, [])

    def test_an_event_that_cannot_be_one_is_422(self) -> None:
        given = self.call("/broadcast", {"tenant": "kitchen", "event": {"type": "notice"}})
        self.assertRefused(given, 422, "invalid_event")
        self.assertTrue(str(given.body["error"]).startswith("event."))

    def test_one_that_is_being_committed_does_not_hold_up_others_with_the_same_key(self) -> None:
        """The broadcaster sends the orders of all tenants with one key, and does not repeat them."""
        turns = RequestTurns(self.clock)
        self.dispatcher.turns = turns
        with patch.object(FakeRequest, "account", account(1, None, shared=False)):
            with patch.object(Numbers, "publish", lambda *_: Deferred()):
                for _ in range(AT_ONCE + 1):
                    self.begin("/broadcast", self.event)
            self.assertEqual(self.call("/broadcast", self.event).status, 200)

    def test_events_that_are_being_committed_do_not_hold_up_others_with_the_same_key(self) -> None:
        """Requests that arrive during a commit share the next commit."""
        self.dispatcher.turns = RequestTurns(self.clock)
        path, event = "/api/kitchen/events", {"type": "notice", "data": {}}
        with patch.object(FakeRequest, "account", account(1, None, shared=False)):
            with patch.object(Numbers, "publish", lambda *_: Deferred()):
                for _ in range(AT_ONCE + 1):
                    self.begin(path, event)
            self.assertEqual(self.call(path, event).status, 201)

    def test_a_key_of_a_broadcast_is_not_one_of_the_events_endpoint(self) -> None:
        self.call("/broadcast", self.event, headers={"Idempotency-Key": "k"})
        idempotency = self.numbers.asked[0].idempotency
        assert idempotency is not None
        self.assertEqual(idempotency.operation, "POST /broadcast")

    def test_a_replayed_answer_says_so(self) -> None:
        self.numbers.result = evolve(PublicationResult((1,), 3), replayed=True)
        given = self.call("/broadcast", self.event, headers={"Idempotency-Key": "k"})
        self.assertEqual(given.headers, {"Idempotent-Replayed": "true"})
