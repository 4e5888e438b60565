"""Tests that the schemas of events agree with the normalisation of events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Unprocessable
from posd.events import normalise, orders
from posd.web.openapi.event_schemas import components, name_of
from tests.description_case import Shape, decoded
from tests.json_strategies import values

WHOLE = {"components": {"schemas": components()}}
_NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)


def got(kind: str, data: dict[str, Any]) -> dict[str, Any] | None:
    """Return the event that tills get."""
    draft = normalise.draft(kind, data)
    if kind in normalise.ORDER_TYPES:
        change = orders.change(draft, None, _NOW)
        if change is None:
            return None
        kind, draft = change.draft.type, change.draft
    return decoded(draft.data)


def names(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return data with arbitrary values under the names in the table of the type."""
    known = [
        spelling
        for member in normalise.TABLES[kind].members
        for spelling in (member.name, *member.aliases)
    ]
    return st.dictionaries(st.sampled_from(known), values, max_size=12)


class EventSchemaTests(SynchronousTestCase):
    def holds(self, name: str, value: object) -> None:
        self.assertEqual(Shape.named(name, WHOLE).objections(value), [])

    def test_the_members_are_those_of_the_tables(self) -> None:
        for kind, table in normalise.TABLES.items():
            sent = WHOLE["components"]["schemas"][f"{name_of(kind)}ToPublish"]["properties"]
            with self.subTest(type=kind):
                self.assertEqual([*sent], [member.name for member in table.members])
                for member in table.members:
                    self.assertEqual(sent[member.name].get("x-also", []), [*member.aliases])

    @settings(max_examples=150)
    @given(
        st.sampled_from([*normalise.TABLES]).flatmap(
            lambda kind: st.tuples(st.just(kind), names(kind))
        )
    )
    def test_what_tills_get_fits_whatever_was_sent(self, sent: tuple[str, dict[str, Any]]) -> None:
        kind, data = sent
        try:
            made = got(kind, data)
        except Unprocessable:
            return
        if made is not None:
            self.holds(name_of(kind), made)

    def test_a_whole_order_fits_both_ways(self) -> None:
        addon = {"addon_id": "7", "name": "Raita", "price": 1.5}
        item = {
            "menuItemId": "9",
            "name": "Naan",
            "price": 3,
            "quantity": 2,
            "selectedAddons": [addon],
        }
        order = {
            "orderId": "A-2",
            "totalAmount": 9,
            "items": [item],
            "createdAt": "2026-11-22T10:00:00Z",
        }
        self.holds("NewOrderToPublish", order)
        self.holds("EventToPublish", {"type": "new_order", "data": order})
        self.holds("NewOrder", got("new_order", order))

    def test_what_is_no_event_does_not_fit(self) -> None:
        shape = Shape.named("EventToPublish", WHOLE)
        for event in (
            {"type": "pong", "data": {}},
            {"type": "pos_x", "data": {}},
            {"type": "New", "data": {}},
            {"type": "new_order", "data": {}},
            {"type": "loyalty_updated", "data": {"points": 7}},
            {"type": "notice"},
        ):
            with self.subTest(event=event):
                self.assertFalse(shape.fits(event))
                with self.assertRaises(Unprocessable):
                    normalise.draft(event["type"], event.get("data"))
        self.assertTrue(shape.fits({"type": "notice", "data": {"any": 1}}))

    def test_what_tills_get_is_strict(self) -> None:
        whole = got("new_order", {"orderId": "1", "totalAmount": 5})
        assert whole is not None
        shape = Shape.named("NewOrder", WHOLE)
        for change in (
            {"orderId": 1},
            {"totalAmount": "5"},
            {"orderSource": "pos"},
            {"items": None},
        ):
            self.assertFalse(shape.fits(whole | change), change)
