"""Tests of the validation of requests: both spellings, exact amounts, refusals that name the member."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import BadRequest, Refusal, Unprocessable
from posd.protocol import jsontext
from posd.web.http.models import (
    UNSET,
    Amount,
    Identity,
    Points,
    RequestModel,
    ResponseModel,
    Unset,
    also_named,
    read,
    refuse_numbers,
    to_json_members,
)


class Line(RequestModel, frozen=True):
    price: Amount


class Sale(RequestModel, frozen=True):
    amount: Amount
    order_id: Annotated[Identity | None, also_named("order_reference")] = None
    points: Points | Unset = UNSET
    lines: list[Line] = []


class Key(RequestModel, frozen=True):
    kind: Literal["device", "tenant"]


class Paid(ResponseModel, frozen=True):
    new_balance: Amount
    left_out: str | Unset = UNSET
    nothing: str | None = None


class Page(RequestModel, frozen=True):
    limit: int = 50
    include_all: bool = False


class ReadTests(SynchronousTestCase):
    def sale(self, text: str) -> Sale:
        body: Any = jsontext.decode(text)
        return read(Sale, body)

    def refused(self, text: str, kind: type[Refusal], code: str, field: str) -> None:
        refusal = self.assertRaises(kind, self.sale, text)
        self.assertEqual((refusal.code, refusal.details), (code, {"field": field}))

    def test_members_are_found_in_camel_case_and_in_snake_case(self) -> None:
        for name in ("orderId", "order_id", "order_reference"):
            self.assertEqual(self.sale(f'{{"amount":1,"{name}":"A-1"}}').order_id, "A-1")

    def test_two_spellings_may_say_the_same(self) -> None:
        sale = self.sale('{"amount":1,"orderId":"7","order_id":"7","order_reference":"7"}')
        self.assertEqual(sale.order_id, "7")

    def test_but_not_something_else(self) -> None:
        text = '{"amount":1,"orderId":"7","order_id":"8"}'
        self.refused(text, BadRequest, "invalid_field", "orderId")

    def test_what_is_not_known_is_ignored(self) -> None:
        self.assertEqual(self.sale('{"amount":1,"colour":"red"}').amount, 1)

    def test_what_was_not_sent_is_unset_and_null_is_null(self) -> None:
        self.assertIs(self.sale('{"amount":1}').points, UNSET)
        self.assertIsNone(self.sale('{"amount":1,"orderId":null}').order_id)

    def test_amounts_keep_their_digits(self) -> None:
        self.assertEqual(str(self.sale('{"amount":12.3400}').amount), "12.3400")

    def test_what_is_no_amount_is_422(self) -> None:
        for value in ('"5"', "true", "null", "[1]", "{}"):
            self.refused(f'{{"amount":{value}}}', Unprocessable, "invalid_amount", "amount")

    def test_points_are_whole_numbers_above_zero(self) -> None:
        self.assertEqual(self.sale('{"amount":1,"points":7.0}').points, 7)
        for value in ("0", "-1", "1.5", "true", '"3"', "null", str(2**53)):
            text = f'{{"amount":1,"points":{value}}}'
            self.refused(text, Unprocessable, "invalid_amount", "points")

    def test_a_number_names_an_order_as_its_digits_do(self) -> None:
        self.assertEqual(self.sale('{"amount":1,"orderId":7}').order_id, "7")

    def test_what_names_nothing_is_400(self) -> None:
        for value in ('""', "true", "1.5", "[]", jsontext.encode("x" * 256).decode()):
            text = f'{{"amount":1,"orderId":{value}}}'
            self.refused(text, BadRequest, "invalid_field", "orderId")

    def test_what_is_missing_is_named(self) -> None:
        self.refused("{}", BadRequest, "missing_field", "amount")
        self.refused('{"amount":1,"lines":[{}]}', BadRequest, "missing_field", "lines[0].price")

    def test_what_is_wrong_further_down_is_named(self) -> None:
        text = '{"amount":1,"lines":[{"price":{}}]}'
        self.refused(text, BadRequest, "invalid_field", "lines[0].price")

    def test_a_number_that_could_not_be_read_is_refused_by_the_members_it_was_for(self) -> None:
        for unreadable, kind, code, field in (
            ({"amount", "notes"}, Unprocessable, "invalid_amount", "amount"),
            ({"points"}, Unprocessable, "invalid_amount", "points"),
            ({"include_all", "limit"}, BadRequest, "invalid_field", "limit"),
        ):
            shape = Page if "limit" in unreadable else Sale
            refusal = self.assertRaises(kind, refuse_numbers, shape, unreadable)
            self.assertEqual((refusal.code, refusal.details), (code, {"field": field}))
        refuse_numbers(Sale, {"order_id", "lines", "notes"})

    def test_a_query_is_text(self) -> None:
        page = read(Page, {"limit": "7", "include_all": "true"}, strict=False)
        self.assertEqual((page.limit, page.include_all), (7, True))
        refusal = self.assertRaises(BadRequest, read, Page, {"limit": "many"}, strict=False)
        self.assertEqual(refusal.details, {"field": "limit"})

    @given(st.decimals(allow_nan=False, allow_infinity=False, places=3))
    @settings(deadline=None)
    def test_any_amount_comes_through_as_it_was_written(self, amount: Decimal) -> None:
        text = jsontext.encode({"amount": amount}).decode()
        given_back = to_json_members(Paid(new_balance=self.sale(text).amount))["newBalance"]
        self.assertEqual(given_back, amount)


class EnumTests(SynchronousTestCase):
    """What is none of a member's values is not repeated, whatever it is."""

    def test_the_member_is_named_and_what_was_sent_is_not(self) -> None:
        places = "' - at `$." * 100_000
        for value in (
            "hush",
            "hush' - at `$.other`",
            "hush'",
            f"hush{places}\n",
            f"{places}\nhush'",
        ):
            with self.assertRaises(BadRequest) as caught:
                read(Key, {"kind": value})
            self.assertEqual(caught.exception.message, "kind: Invalid enum value.")
            self.assertEqual(caught.exception.details, {"field": "kind"})


class PlainTests(SynchronousTestCase):
    def test_an_answer_has_nulls_and_lacks_what_is_unset(self) -> None:
        answer = to_json_members(Paid(new_balance=Decimal("7.50")))
        self.assertEqual(jsontext.encode(answer), b'{"newBalance":7.50,"nothing":null}')
