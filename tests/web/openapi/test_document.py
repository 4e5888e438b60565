"""Tests that the OpenAPI document is valid, complete, and agrees with the operations."""

from __future__ import annotations

import ast
import re
from typing import Annotated, Any

from openapi_spec_validator import OpenAPIV31SpecValidator
from twisted.trial.unittest import SynchronousTestCase

from posd.protocol import jsontext
from posd.web.http.error_catalog import COMMON_ERRORS, all_errors
from posd.web.http.models import (
    UNSET,
    Amount,
    Identity,
    Points,
    RequestModel,
    ResponseModel,
    SuccessModel,
    Unset,
    also_named,
)
from posd.web.http.operations import (
    NOBODY,
    PLATFORMS,
    TILLS,
    DeclaredError,
    Operation,
    model_response,
)
from posd.web.http.responses import Response
from posd.web.openapi import document as openapi
from posd.web.openapi.parameters import PATH
from tests import documents
from tests.description_case import Shape, decoded, described, operations
from tests.integration.test_docs_rest_live import PAGE, call, is_part, pattern
from tests.test_docs_protocol import codes_in
from tests.test_layering import MODULES, imported_by, within

_ELSEWHERE = frozenset(
    (
        # The tills' door, which is no operation.
        *("upgrade_required", "invalid_handshake", "invalid_position"),
        # Of addresses and methods that lead to no operation.
        *("not_found", "method_not_allowed"),
    )
)


class Row(RequestModel, frozen=True):
    """A line of a bill."""

    price: Amount


class Spent(RequestModel, frozen=True):
    """What is spent."""

    amount: Amount
    order_id: Annotated[Identity | Unset, also_named("order_reference")] = UNSET
    rows: list[Row] = []


class Asked(RequestModel, frozen=True):
    most_points: Points = 50


class Left(SuccessModel, frozen=True):
    """What is left.

    More about it.
    """

    balance: Amount
    note: str | Unset = UNSET


class Short(ResponseModel, frozen=True):
    current_balance: Amount


async def nothing(ask: Any) -> Response:
    return model_response(SuccessModel())


def row(method: str = "POST", path: str = "/api/{tenant}/spend", **more: Any) -> Operation:
    default: dict[str, Any] = {"summary": "Spend", "kinds": TILLS, "response_models": {200: Left}}
    return Operation(method, path, nothing, **(default | more))


def made(*rows: Operation) -> dict[str, Any]:
    return decoded(openapi.document(rows))


class WholeTests(SynchronousTestCase):
    """Tests of the document that posd serves."""

    def test_it_is_openapi_3_1(self) -> None:
        OpenAPIV31SpecValidator(described()).validate()

    def test_every_operation_is_in_it_and_no_other(self) -> None:
        there = {
            (method.upper(), path)
            for path, methods in described()["paths"].items()
            for method in methods
        }
        self.assertEqual(there, {(each.method, each.path) for each in operations()})

    def test_no_two_operations_have_one_name(self) -> None:
        names = [each["operationId"] for each in self.all()]
        self.assertEqual(len({*names}), len(names))

    def test_every_operation_says_what_it_is_for(self) -> None:
        for each in self.all():
            with self.subTest(operation=each["operationId"]):
                self.assertTrue(each["summary"])
                self.assertIn(each["tags"][0], openapi.TAGS)

    def test_every_body_has_an_example_that_fits(self) -> None:
        for each in self.all():
            if "requestBody" in each:
                content = each["requestBody"]["content"]["application/json"]
                with self.subTest(operation=each["operationId"]):
                    shape = Shape(content["schema"], described())
                    self.assertEqual(shape.objections(content["example"]), [])

    def test_every_part_of_an_address_has_an_example_that_fits(self) -> None:
        for name, each in PATH.items():
            with self.subTest(name=name):
                shape = Shape(each["schema"], described())
                self.assertEqual(shape.objections(each["example"]), [])

    def test_every_code_that_an_endpoint_gives_out_is_a_refusal_of_some_operation(self) -> None:
        web = {name for name in MODULES if within(name, "posd.web")}
        store = {used for name in web for used in imported_by(name) if within(used, "posd.store")}
        given_out = {
            code
            for name in web | store
            for code in codes_in(ast.parse(MODULES[name].read_text("utf-8")))
        }
        known = {code for _, code, _ in COMMON_ERRORS}
        known |= {each.code for operation in operations() for each in operation.refusals}
        self.assertEqual(given_out - known - _ELSEWHERE, set())

    def all(self) -> list[dict[str, Any]]:
        return [each for methods in described()["paths"].values() for each in methods.values()]


class OperationTests(SynchronousTestCase):
    """Tests of the description of an operation."""

    def described(self, operation: Operation) -> dict[str, Any]:
        whole = made(operation)
        OpenAPIV31SpecValidator(whole).validate()
        ((_, methods),) = whole["paths"].items()
        ((method, found),) = methods.items()
        self.assertEqual(method, operation.method.lower())
        return dict(found)

    def test_its_name_is_made_of_its_address(self) -> None:
        path = "/api/{tenant}/gift-cards/{cardNumber}/balance"
        found = self.described(row("GET", path))
        self.assertEqual(found["operationId"], "getGiftCardsByCardNumberBalance")

    def test_it_says_which_keys_it_wants(self) -> None:
        found = self.described(row(kinds=PLATFORMS))
        self.assertEqual(found["security"], [{"key": []}, {"bearer": []}])
        self.assertEqual(found["x-key-kinds"], ["platform"])

    def test_or_that_it_wants_none(self) -> None:
        found = self.described(row("GET", "/health/live", kinds=NOBODY))
        self.assertEqual(found["security"], [])
        self.assertNotIn("401", found["responses"])

    def test_it_has_the_headers_that_it_looks_at(self) -> None:
        for operation, names in (
            (row(idempotent=True), ["X-Tenant-ID", "X-Device-ID", "Idempotency-Key"]),
            (row(kinds=PLATFORMS), ["X-Tenant-ID"]),
            (row("GET", "/health", kinds=NOBODY), []),
        ):
            found = self.described(operation).get("parameters", [])
            self.assertEqual([each["name"] for each in found if each["in"] == "header"], names)

    def test_the_query_of_a_get_is_made_of_its_type(self) -> None:
        found = self.described(row("GET", request_model=Asked))["parameters"]
        (query,) = (each for each in found if each["in"] == "query")
        self.assertEqual((query["name"], query["x-also"]), ("mostPoints", ["most_points"]))
        self.assertEqual(query["schema"]["default"], 50)
        self.assertNotIn("required", query)

    def test_an_answer_that_is_no_structure_has_its_own_type(self) -> None:
        found = self.described(row("GET", response_models={200: "A page."}, media_type="text/html"))
        answer = found["responses"]["200"]
        self.assertEqual(answer["description"], "A page.")
        self.assertEqual(answer["content"], {"text/html": {"schema": {"type": "string"}}})

    def test_a_stream_says_what_it_consists_of(self) -> None:
        found = self.described(row("GET", media_type="text/event-stream"))
        (content,) = found["responses"]["200"]["content"].values()
        data = content["schema"]["properties"]["data"]
        self.assertIn({"$ref": "#/components/schemas/Left"}, data["contentSchema"]["anyOf"])
        self.assertIn("Last-Event-ID", [each["name"] for each in found["parameters"]])

    def test_a_status_of_a_success_and_of_a_refusal_is_either(self) -> None:
        refused = DeclaredError(503, "shut", "It is shut.")
        found = self.described(row(response_models={503: Left}, refusals=(refused,)))["responses"][
            "503"
        ]
        either = found["content"]["application/json"]["schema"]["anyOf"]
        self.assertEqual(either[0], {"$ref": "#/components/schemas/Left"})
        self.assertIn("shut", str(either[1]))


class SchemaTests(SynchronousTestCase):
    """Tests of the schemas of types."""

    def setUp(self) -> None:
        self.whole = made(row(request_model=Spent))
        self.schemas = self.whole["components"]["schemas"]

    def fits(self, name: str, value: object) -> bool:
        return Shape.named(name, self.whole).fits(value)

    def test_amounts_are_numbers_wherever_they_stand(self) -> None:
        for name, member in (("Spent", "amount"), ("Row", "price"), ("Left", "balance")):
            self.assertEqual(self.schemas[name]["properties"][member], {"type": "number"})

    def test_a_member_has_its_other_names(self) -> None:
        also = self.schemas["Spent"]["properties"]["orderId"]["x-also"]
        self.assertEqual(also, ["order_id", "order_reference"])

    def test_a_text_may_come_as_an_integer_as_it_does_where_it_is_read(self) -> None:
        for value, fits in (("A-2", True), (7, True), (7.5, False), (None, False), ("", False)):
            self.assertEqual(self.fits("Spent", {"amount": 1, "orderId": value}), fits, value)

    def test_of_an_answer_everything_is_there_that_is_not_left_out(self) -> None:
        self.assertEqual({*self.schemas["Left"]["required"]}, {"success", "balance"})

    def test_a_description_is_the_types_own(self) -> None:
        self.assertEqual(self.schemas["Left"]["description"], "What is left.\n\nMore about it.")


class RefusalTests(SynchronousTestCase):
    """Tests of the description of refusals."""

    def codes(self, operation: Operation) -> set[str]:
        return {each.code for each in all_errors(operation)}

    def test_what_follows_from_a_row_need_not_be_in_it(self) -> None:
        for operation, codes in (
            (row("GET", "/health", kinds=NOBODY), {"internal_error", "too_large"}),
            (row("GET", "/health", kinds=PLATFORMS), {"unauthorized", "too_many_attempts", "busy"}),
            (row("GET"), {"invalid_tenant", "tenant_mismatch", "device_key_required"}),
            (row("GET", request_model=Asked), {"invalid_field", "invalid_query", "invalid_amount"}),
            (
                row(request_model=Spent),
                {"invalid_json", "unsupported_media_type", "too_many_requests"},
            ),
            (row(idempotent=True), {"still_running", "idempotency_mismatch"}),
        ):
            self.assertEqual(codes - self.codes(operation), set())

    def test_what_does_not_follow_is_not_there(self) -> None:
        for operation, codes in (
            (row("GET", "/health", kinds=NOBODY), {"unauthorized", "invalid_tenant", "busy"}),
            (row("GET"), {"invalid_json", "outcome_unknown", "invalid_query", "still_running"}),
            (row("GET", request_model=Asked), {"invalid_json", "unsupported_media_type"}),
            (row(), {"invalid_json", "invalid_amount", "invalid_field"}),
        ):
            self.assertEqual(codes & self.codes(operation), set())

    def test_the_word_of_a_row_counts_more(self) -> None:
        own = DeclaredError(403, "forbidden", "Not on Sundays.")
        found = [each for each in all_errors(row(refusals=(own,))) if each.code == "forbidden"]
        self.assertEqual(found, [own])

    def test_one_status_has_all_its_codes_and_what_stands_beside_each(self) -> None:
        refusals = (
            DeclaredError(400, "insufficient_balance", "There is less on it.", Short),
            DeclaredError(400, "card_blocked", "It is blocked."),
        )
        whole = made(row(refusals=refusals))
        response = whole["paths"]["/api/{tenant}/spend"]["post"]["responses"]["400"]
        self.assertIn("- `card_blocked`: It is blocked.", response["description"].splitlines())
        shape = Shape(response["content"]["application/json"]["schema"], whole)
        error = {"success": False, "error": "No.", "requestId": "1"}
        for body, fits in (
            ({"code": "card_blocked"}, True),
            ({"code": "card_stolen"}, False),
            ({"code": "insufficient_balance"}, False),
            ({"code": "insufficient_balance", "currentBalance": 1.5}, True),
            ({"code": "insufficient_balance", "currentBalance": "1.5"}, False),
        ):
            self.assertEqual(shape.fits(error | body), fits, body)

    def test_responses_that_several_have_stand_in_one_place(self) -> None:
        whole = made(row(), row("GET"))
        methods = whole["paths"]["/api/{tenant}/spend"]
        shared = {"$ref": "#/components/responses/Unauthorized"}
        self.assertEqual([methods[name]["responses"]["401"] for name in methods], [shared] * 2)

    def test_no_row_says_again_what_follows_from_it(self) -> None:
        for operation in operations():
            again = [
                each.code
                for each in operation.refusals
                if (each.status, each.code, each.when) in COMMON_ERRORS
            ]
            with self.subTest(path=operation.path):
                self.assertEqual(again, [])


class AnswerTests(SynchronousTestCase):
    """Tests of the examples of answers."""

    def test_every_operation_that_answers_in_json_shows_one_that_its_schema_allows(self) -> None:
        for operation in operations():
            if operation.media_type != "application/json" or operation.path == "/openapi.json":
                continue
            with self.subTest(operation=operation.path, method=operation.method):
                responses = described()["paths"][operation.path][operation.method.lower()][
                    "responses"
                ]
                content = responses[str(next(iter(operation.response_models)))]["content"][
                    "application/json"
                ]
                shape = Shape(content["schema"], described())
                self.assertEqual(shape.objections(content["example"]), [])

    def test_they_are_those_of_the_guide(self) -> None:
        """A running posd gives these answers. Some examples show a part of the answer."""
        shown = set()
        asked = None
        for block in documents.blocks(PAGE):
            if block.of("sh", "call"):
                asked = call(block.text)
            elif block.of("json", "answer") and asked is not None:
                shown.add((asked, jsontext.encode(decoded(jsontext.decode(block.text)))))
        for name, answer in decoded(openapi._EXAMPLES).items():
            method, path = name.split(" ")
            examples = [
                decoded(jsontext.decode(text))
                for (its_method, address), text in shown
                if its_method == method and re.fullmatch(pattern(path), address)
            ]
            with self.subTest(name):
                self.assertTrue(any(is_part(example, answer) for example in examples))
