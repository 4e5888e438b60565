"""Tests of finding and removing the personal data of a customer in JSON."""

from __future__ import annotations

import re
from decimal import Decimal

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.events import redaction as erasure
from posd.events.redaction import ErasedPerson, order_ids, redact
from posd.protocol import jsontext
from tests import documents
from tests.json_strategies import values

INES = ErasedPerson(
    "GB", frozenset({"+447700900123"}), frozenset({"ines.moor@example.com"}), frozenset({"W-7"})
)
PHONED = evolve(INES, orders=frozenset())
names = st.sampled_from(("customerPhone", "tel", "x", "items", "note", "orderId"))
spelled = st.sampled_from(("07700 900123", "or +44 7700 900123!", "Ines.Moor@example.com", "no", 7))
ORDER = {
    "orderId": "W-8",
    "orderNumber": "0123",
    "customerName": "Ines Moor",
    "customerPhone": "07700 900123",
    "customerEmail": None,
    "status": "accepted",
    "totalAmount": Decimal("14.20"),
    "items": [{"id": 1, "name": "Risotto", "quantity": 2, "specialInstructions": "for Ines"}],
    "specialInstructions": "ring twice",
    "deliveryAddress": "5 Vine Street, Leeds",
    "createdAt": "2026-11-22T10:00:00.123Z",
    "table": "window",
    "customer": {"id": 77, "name": "Ines", "tags": ["vip", "allergic to nuts"], "visits": 30},
    "version": 3,
}


class FindingTests(SynchronousTestCase):
    def assert_about(self, value: object, *, expected: bool = True) -> None:
        with self.subTest(value=value):
            self.assertEqual(INES.is_about(value), expected)

    def test_a_number_is_found_in_any_spelling(self) -> None:
        for number in (
            "+447700900123",
            "0044 7700 900123",
            "+44 (0)7700 900-123",
            "07700.900.123",
            "7700900123",
            "Tel: (07700) 900123",
            "07700 900124 / 07700 900123",
            "\N{FULLWIDTH DIGIT ZERO}\uff17\uff17\uff10\uff10\uff19\uff10\uff10\uff11\uff12\uff13",
            "\u0660\u0667\u0667\u0660\u0660 \u0669\u0660\u0660\u0661\u0662\u0663",
        ):
            self.assert_about({"customerPhone": number})

    def test_a_text_with_personal_data_is_always_decoded(self) -> None:
        for raw in (
            '{"a":"07700 900123"}',
            '{"a":"0770\\u0030 900123"}',
            '{"a":7700900123}',
            '{"a":"Ines.Moor@Example.com"}',
            '{"a":"ines.moor\\u0040example.com"}',
            '{"a":"\uff29nes.moor\uff20example.com"}',
            '{"orderId":"W-7"}',
        ):
            with self.subTest(raw=raw):
                self.assertTrue(INES.may_be_in(raw))
                self.assertTrue(INES.is_about(jsontext.decode(raw)) or raw == '{"a":7700900123}')
        self.assertFalse(INES.may_be_in('{"a":"07700 900124","b":"x@example.com","orderId":"W-8"}'))

    def test_another_number_is_not_found(self) -> None:
        for number in ("07700 900124", "+337700900123", "077009001234567", "900123", "", None):
            self.assert_about({"customerPhone": number}, expected=False)

    def test_an_address_is_found_in_any_spelling(self) -> None:
        for address in (
            "Ines.Moor@Example.com",
            " ines.moor@example.com ",
            "Ines Moor <ines.moor@example.com>",
            "write to ines.moor@example.com.",
            "\uff29nes.moor\uff20example.com",
        ):
            self.assert_about({"a": address})
        for address in ("xines.moor@example.com", "ines.moor@example.com.au", "ines.moor"):
            self.assert_about({"a": address}, expected=False)

    def test_composed_and_decomposed_letters_are_one_address(self) -> None:
        jose = ErasedPerson("GB", emails=frozenset({erasure.email("Jos\u00e9@example.es")}))
        self.assertTrue(jose.is_about({"a": "jose\u0301@example.es"}))

    def test_personal_data_is_found_at_any_depth_and_in_any_member(self) -> None:
        for value in (
            {"order": {"who": [{"reach": "07700 900123"}]}},
            ["x", ["07700 900123"]],
            {"notes": "call 07700 900123 at the gate"},
            {"tel": 447700900123},
            {"contactMobile": Decimal(7700900123)},
            {"data": {"order_id": "W-7"}},
        ):
            self.assert_about(value)

    def test_ids_are_not_searched_for_numbers(self) -> None:
        for value in (
            {"orderNumber": "07700900123"},
            {"id": "07700900123"},
            {"total": 447700900123},
            {"phone": True},
        ):
            self.assert_about(value, expected=False)

    def test_order_ids_are_found_in_both_spellings(self) -> None:
        self.assertEqual(
            order_ids({"orderId": "a", "list": [{"order_id": 7}, {"orderId": None}]}), {"a", "7"}
        )


class ErasingTests(SynchronousTestCase):
    def test_an_order_keeps_its_content_without_personal_data(self) -> None:
        self.assertEqual(
            redact(ORDER, INES),
            {
                **ORDER,
                **dict.fromkeys(
                    ("customerName", "customerPhone", "specialInstructions", "deliveryAddress")
                ),
                "items": [{"id": 1, "name": "Risotto", "quantity": 2}],
                "customer": {"id": 77, "name": None, "tags": [None, None], "visits": 30},
            },
        )

    def test_members_keep_their_order(self) -> None:
        now = redact(ORDER, INES)
        assert isinstance(now, dict)
        self.assertEqual(list(now), list(ORDER))

    def test_a_text_with_personal_data_is_removed_from_any_member(self) -> None:
        was = {"gate": "07700 900123 rings", "door": "green", "customerId": "+447700900123"}
        self.assertEqual(redact(was, INES), {"gate": None, "door": "green", "customerId": None})

    def test_an_address_of_parts_is_removed_whole(self) -> None:
        was = {"delivery_address": {"line1": "5 Vine Street", "postcode": "LS1", "floor": 3}}
        self.assertEqual(
            redact(was, INES),
            {"delivery_address": {"line1": None, "postcode": None, "floor": 3}},
        )

    def test_json_numbers_are_removed_from_members_for_phones_only(self) -> None:
        was = {"customer": {"phone": 7700900123, "points": 7700900123}}
        self.assertEqual(redact(was, INES), {"customer": {"phone": None, "points": 7700900123}})

    @given(st.lists(values | st.dictionaries(names, spelled), min_size=1, max_size=4))
    def test_redacted_json_has_no_personal_data_and_redacts_to_itself(self, value: object) -> None:
        once = redact(value, PHONED)
        self.assertFalse(PHONED.is_about(once))
        self.assertEqual(redact(once, PHONED), once)


class AgreementTests(SynchronousTestCase):
    def test_the_database_keeps_the_same_members(self) -> None:
        sql = (documents.ROOT / "sql/main/011_erasure.sql").read_text("utf-8")
        (listed,) = re.findall(r"'\{([a-z,]+)\}'::text\[\]", sql)
        self.assertEqual(frozenset(listed.split(",")), erasure.KEPT_MEMBERS)
