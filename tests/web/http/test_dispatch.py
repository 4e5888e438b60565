"""Tests of the checks before an operation: kinds of keys, tenants, devices, bodies, paths."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final, cast

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Conflict, Forbidden, Unauthorized
from posd.protocol import jsontext
from posd.protocol.jsontext import RawJSON
from posd.security.auth import Authenticator
from posd.security.request_rates import account
from posd.store.credentials import Credential
from posd.values import KeyKind, Principal, Tenant
from posd.web.admission import WebSocketAdmission
from posd.web.http.dispatch import Dispatcher
from posd.web.http.error_catalog import all_errors
from posd.web.http.http_request import HTTPRequest, ListenerContext
from posd.web.http.models import Amount, RequestModel, SuccessModel
from posd.web.http.operations import (
    ADMINS,
    ANYBODY_AT_TENANT,
    NOBODY,
    TILLS,
    DeclaredError,
    Operation,
    Request,
    TenantRequest,
    model_response,
)
from posd.web.http.request_turns import AT_ONCE, RequestTurns
from posd.web.http.responses import Response
from posd.web.http.router import RootResource, Routes
from tests.asked import FakeRequest
from tests.at_once import run_pieces_at_once

KITCHEN: Final = Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen")
OPEN: Final = ListenerContext()
TRUSTED: Final = ListenerContext(trusted=True)


class Money(RequestModel, frozen=True):
    amount: Amount


class Limit(RequestModel, frozen=True):
    limit: int = 50


@define(eq=False)
class Keys:
    """Keys are named after their kinds; that of `kind:device` is the device's."""

    def principal(self, key: str | None) -> Principal:
        kind, _, device = (key or "").partition(":")
        if kind not in {each.value for each in KeyKind}:
            raise Unauthorized
        return Principal(1, KeyKind(kind), KITCHEN, device or None)

    async def find_credential(
        self, slug: str, key: str | None, device_id: str | None, address: str
    ) -> Credential:
        principal = self.principal(key)
        if slug != "kitchen":
            raise Unauthorized
        if device_id == "keyed" and principal.device_id is None:
            raise Forbidden("It has a key of its own.", code="device_key_required")
        if principal.device_id not in (None, device_id) and device_id is not None:
            raise Forbidden("Another device.", code="device_mismatch")
        return Credential(principal, KITCHEN, None, False, True, ())

    async def find_principal(self, key: str | None, address: str) -> Principal:
        return evolve(self.principal(key), tenant=None)


@define(eq=False)
class Rows:
    """Operations that remember what they were asked."""

    asked: list[Request[Any]] = field(factory=list)

    async def note(self, ask: Request[Any]) -> Response:
        self.asked.append(ask)
        return model_response(SuccessModel())

    def row(self, method: str, path: str, kinds: frozenset[KeyKind], **more: Any) -> Operation:
        return Operation(method, path, self.note, "It is noted", kinds, {200: SuccessModel}, **more)

    @property
    def all(self) -> tuple[Operation, ...]:
        return (
            self.row("POST", "/api/{tenant}/sales", TILLS, request_model=Money),
            self.row("GET", "/api/{tenant}/sales", ANYBODY_AT_TENANT, request_model=Limit),
            self.row("GET", "/api/{tenant}/cards/{card}/balance", TILLS),
            self.row("GET", "/api/{tenant}/cards/lost", TILLS),
            self.row("GET", "/api/admin/keys", ADMINS),
            self.row("GET", "/health", ADMINS, trusted=True),
            self.row("GET", "/health/live", NOBODY),
        )


class ReceptionCase(SynchronousTestCase):
    def setUp(self) -> None:
        run_pieces_at_once(self)
        self.rows = Rows()
        self.dispatcher = Dispatcher(cast(Authenticator, Keys()), Clock().seconds)

    def ask(
        self,
        method: str,
        path: str,
        key: str | None = "tenant",
        body: object = None,
        *,
        listener_context: ListenerContext = OPEN,
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
    ) -> tuple[int, dict[str, Any]]:
        """The answer's status and members."""
        request: Any = FakeRequest([part.encode("latin-1") for part in path.split("/")[1:]])
        request.method, request.path = method.encode(), path.encode("latin-1")
        request.content = BytesIO(b"" if body is None else jsontext.encode(body))
        request.args = {name.encode(): [value.encode()] for name, value in query.items()}
        sent = {"Host": "localhost", "Content-Type": "application/json", **headers}
        if key is not None:
            sent["X-API-Key"] = key
        for name, value in sent.items():
            request.requestHeaders.setRawHeaders(name, [value])
        routes = Routes(cast(WebSocketAdmission, None), self.dispatcher, self.rows.all)
        RootResource(listener_context, routes).render(request)
        return request.status, cast(Any, jsontext.decode(request.body))

    @property
    def asked(self) -> TenantRequest[Any]:
        return cast("TenantRequest[Any]", self.rows.asked[-1])

    def assertRefused(self, answer: tuple[int, dict[str, Any]], status: int, code: str) -> None:
        self.assertEqual((answer[0], answer[1]["code"]), (status, code))
        self.assertEqual(self.rows.asked, [])


class AddressTests(ReceptionCase):
    def test_values_in_the_address_are_handed_on_decoded(self) -> None:
        self.assertEqual(self.ask("GET", "/api/kitchen/cards/GÃ¼nther 7/balance")[0], 200)
        self.assertEqual(self.asked.path, {"tenant": "kitchen", "card": "Günther 7"})

    def test_a_name_goes_before_a_value(self) -> None:
        self.ask("GET", "/api/kitchen/cards/lost")
        self.assertEqual(self.asked.path, {"tenant": "kitchen"})
        self.ask("GET", "/api/admin/keys", "admin")
        self.assertEqual(self.rows.asked[-1].path, {})

    def test_a_slash_at_the_end_does_not_matter(self) -> None:
        self.assertEqual(self.ask("GET", "/health/live/", None)[0], 200)

    def test_above_below_and_beside_an_operation_there_is_nothing(self) -> None:
        for path in (
            *("/", "/api", "/api/kitchen", "/api/kitchen/cards", "/api/kitchen/cards/7"),
            *("/health/live/x", "/api/kitchen/cards//balance", "/api/kitchen/\xff/7/balance"),
            *("/ws", "/ws/kitchen"),
        ):
            with self.subTest(path=path):
                self.assertRefused(self.ask("GET", path), 404, "not_found")

    def test_a_value_that_is_not_utf_8_is_400_and_declared(self) -> None:
        for path in ("/api/kitchen/cards/\xff/balance", "/api/\xff/cards/7/balance/"):
            self.assertRefused(self.ask("GET", path, None), 400, "invalid_path")
        self.assertEqual(
            [
                "invalid_path" in {refused.code for refused in all_errors(row)}
                for row in self.rows.all
            ],
            ["{" in row.path for row in self.rows.all],
        )

    def test_another_method_is_405_whoever_asks(self) -> None:
        self.assertRefused(
            self.ask("DELETE", "/api/kitchen/sales", None), 405, "method_not_allowed"
        )

    def test_what_cannot_be_a_tenant_is_400_before_any_key(self) -> None:
        self.assertRefused(self.ask("GET", "/api/No/sales", None), 400, "invalid_tenant")


class KeyTests(ReceptionCase):
    def test_a_key_of_another_kind_is_403(self) -> None:
        for kind in ("platform", "admin"):
            answer = self.ask("POST", "/api/kitchen/sales", kind, {"amount": 1})
            self.assertRefused(answer, 403, "forbidden")
        self.assertRefused(self.ask("GET", "/api/admin/keys", "tenant"), 403, "forbidden")

    def test_no_key_is_401_whatever_the_body_is(self) -> None:
        answer = self.ask("POST", "/api/kitchen/sales", None, "no object")
        self.assertRefused(answer, 401, "unauthorized")

    def test_another_tenant_in_the_header_is_403(self) -> None:
        answer = self.ask("GET", "/api/kitchen/sales", headers={"X-Tenant-ID": "grill"})
        self.assertRefused(answer, 403, "tenant_mismatch")

    def test_a_trusted_listener_asks_for_no_key_where_the_row_says_so(self) -> None:
        self.assertEqual(self.ask("GET", "/health", None, listener_context=TRUSTED)[0], 200)
        self.assertEqual(self.ask("GET", "/health", None)[0], 401)
        self.assertEqual(self.ask("GET", "/api/admin/keys", None, listener_context=TRUSTED)[0], 401)

    def test_who_needs_no_key_is_asked_for_none(self) -> None:
        self.assertEqual(self.ask("GET", "/health/live", None)[0], 200)

    def test_a_terminal_is_that_of_the_key_or_the_one_that_is_named(self) -> None:
        cases: tuple[tuple[str, dict[str, str], str | None, str], ...] = (
            ("device:front", {}, "front", "device front"),
            ("device:front", {"X-Device-ID": "front"}, "front", "device front"),
            ("tenant", {"X-Device-ID": "bar"}, "bar", "device bar"),
            ("tenant", {}, None, "tenant"),
            ("platform", {"X-Device-ID": "bar"}, None, "platform"),
        )
        for key, header, device, actor in cases:
            with self.subTest(key=key, header=header):
                self.ask("GET", "/api/kitchen/sales", key, headers=header)
                self.assertEqual((self.asked.device_id, self.asked.actor), (device, actor))

    def test_a_terminal_that_the_key_may_not_name_is_403(self) -> None:
        answer = self.ask("GET", "/api/kitchen/sales", "tenant", headers={"X-Device-ID": "keyed"})
        self.assertRefused(answer, 403, "device_key_required")
        answer = self.ask(
            "GET", "/api/kitchen/sales", "device:front", headers={"X-Device-ID": "bar"}
        )
        self.assertRefused(answer, 403, "device_mismatch")


class TakenTests(ReceptionCase):
    def test_a_body_is_read_as_the_row_says(self) -> None:
        self.ask("POST", "/api/kitchen/sales", body={"amount": 7})
        self.assertEqual(self.asked.arguments, Money(amount=cast(Any, 7)))
        self.assertEqual(self.asked.operation, "POST /api/kitchen/sales")

    def test_a_query_is_too(self) -> None:
        self.ask("GET", "/api/kitchen/sales", query={"limit": "7"})
        self.assertEqual(self.asked.arguments, Limit(limit=7))

    def test_what_does_not_fit_is_refused_with_the_members_name(self) -> None:
        answer = self.ask("POST", "/api/kitchen/sales", body={})
        self.assertRefused(answer, 400, "missing_field")
        self.assertEqual(answer[1]["field"], "amount")
        answer = self.ask("GET", "/api/kitchen/sales", query={"limit": "x"})
        self.assertRefused(answer, 400, "invalid_field")

    def test_what_is_no_number_is_refused_with_the_members_name(self) -> None:
        for number in ("NaN", "Infinity", "-Infinity", "1e400", "1e40", "7" * 41):
            for rest in ("", ',"notes":7', f',"notes":{number}'):
                body = RawJSON(f'{{"amount":{number}{rest}}}'.encode())
                answer = self.ask("POST", "/api/kitchen/sales", body=body)
                self.assertRefused(answer, 422, "invalid_amount")
                self.assertEqual(answer[1]["field"], "amount")
        self.assertEqual(self.rows.asked, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_one_in_what_nobody_looks_at_is_no_json(self) -> None:
        for notes in ("NaN", '{"amount":NaN}', "[-Infinity]"):
            body = RawJSON(f'{{"amount":1,"notes":{notes}}}'.encode())
            answer = self.ask("POST", "/api/kitchen/sales", body=body)
            self.assertRefused(answer, 400, "invalid_json")
        self.assertEqual(self.rows.asked, [])

    def test_a_number_of_too_many_digits_that_is_no_amount_is_refused_as_what_it_is(self) -> None:
        for number in ("1e400", "1e40", "-1e999999999999", "7" * 41, "0." + "7" * 60_000):
            for body in (f'{{"amount":1,"notes":{number}}}', f'{{"amount":1,"notes":[{number}]}}'):
                answer = self.ask("POST", "/api/kitchen/sales", body=RawJSON(body.encode()))
                self.assertRefused(answer, 400, "number_out_of_range")
        self.assertEqual(self.rows.asked, [])
        self.assertEqual(self.flushLoggedErrors(), [])


class TurnTests(ReceptionCase):
    def test_a_request_has_arrived_before_it_waits_for_its_turn(self) -> None:
        """A movement of money is rolled back where its till has given it up meanwhile."""
        clock = Clock()
        turns = RequestTurns(clock)
        self.dispatcher = Dispatcher(cast(Authenticator, Keys()), clock.seconds, turns=turns)
        clock.advance(10)
        actor = account(1, None, shared=False)
        for _ in range(AT_ONCE):
            Deferred.fromCoroutine(turns.acquire((actor.shared_scope, "kitchen")))
        request: Any = FakeRequest([])
        request.account, request.content = actor, BytesIO(b"")
        request.requestHeaders.setRawHeaders("X-API-Key", ["tenant"])
        row = self.rows.row("GET", "/api/{tenant}/cards/lost", TILLS)
        call = HTTPRequest(request, OPEN)
        answered = Deferred.fromCoroutine(self.dispatcher.serve(row, {"tenant": "kitchen"}, call))
        self.assertEqual(self.rows.asked, [])
        clock.advance(0.25)
        clock.advance(0)
        self.successResultOf(answered)
        self.assertEqual(self.asked.arrived_at, 10)


class NameTests(ReceptionCase):
    def idempotency_key(self, moved: object, headers: Mapping[str, str] = {}) -> Any:
        self.ask("GET", "/api/kitchen/sales", headers=headers)
        return self.asked.idempotency_key(moved)

    def test_a_call_is_named_by_tenant_caller_address_and_key(self) -> None:
        idempotency_key = self.idempotency_key([1], {"Idempotency-Key": "k", "X-Device-ID": "bar"})
        self.assertEqual(idempotency_key.scope, (1, "device bar", "GET /api/kitchen/sales", "k"))
        self.assertIsNone(self.idempotency_key([1]))

    def test_what_is_moved_makes_the_fingerprint(self) -> None:
        one = self.idempotency_key({"a": 1, "b": 2}, {"Idempotency-Key": "k"})
        self.assertEqual(one, self.idempotency_key({"b": 2, "a": 1}, {"X-Idempotency-Key": "k"}))
        self.assertNotEqual(one, self.idempotency_key({"a": 1, "b": 3}, {"Idempotency-Key": "k"}))


class DeclarationTests(ReceptionCase):
    """A refusal that no row has is answered, and is a bug."""

    def test_every_operation_declares_that_it_may_be_asked_too_much(self) -> None:
        for row in self.rows.all:
            is_declared = {(each.status, each.code) for each in all_errors(row)}
            self.assertIn((429, "too_many_requests"), is_declared, row.path)

    async def refuse(self, ask: Request[Any]) -> Response:
        raise Conflict("It is sold already.", code="sold")

    def sell(self, *refusals: DeclaredError) -> tuple[int, dict[str, Any]]:
        path = "/api/{tenant}/sell"
        self.patch(
            Rows,
            "all",
            (Operation("POST", path, self.refuse, "Sell", TILLS, {}, refusals=refusals),),
        )
        return self.ask("POST", "/api/kitchen/sell", body={})

    def test_one_that_is_not_declared_is_answered_and_logged(self) -> None:
        self.assertRefused(self.sell(), 409, "sold")
        (logged,) = self.flushLoggedErrors(Conflict)
        self.assertEqual(logged.value.code, "sold")

    def test_one_that_is_declared_is_answered(self) -> None:
        self.assertRefused(self.sell(DeclaredError(409, "sold", "It is gone.")), 409, "sold")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_one_that_is_declared_with_another_status_is_not_declared(self) -> None:
        self.assertRefused(self.sell(DeclaredError(400, "sold", "It is gone.")), 409, "sold")
        self.assertEqual(len(self.flushLoggedErrors(Conflict)), 1)
