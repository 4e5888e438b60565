"""Strict checks of an order that a platform sends by REST: members with two values, and amounts.

Other orders are read tolerantly (`posd.events.normalise`), because their senders do not handle errors. A
platform that uses REST gets an error, before it charges a customer a wrong amount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from posd.errors import BadRequest, Unprocessable
from posd.events import money
from posd.events.coercion import NotCoercible, amount
from posd.events.fields import Field, FieldTable, snake
from posd.events.normalise import ADDON, ITEM, TABLES
from posd.events.order_parts import Part, check_parts, choices, objects
from posd.web.http.models import differ

Find = Callable[[object, frozenset[str]], list[Part]]

RESERVED_ORDER_IDS: Final = frozenset(("pending", "received", "accepted", "print"))
"""Segments that follow `/orders/` in other URLs. An order with such an id could not be read."""

_PARTS: Final = (("items", ITEM, objects), ("selectedAddons", ADDON, choices))
"""The members with parts of an order, the tables of their fields, and the functions that find the parts."""


def check(order: Mapping[str, object], currency: str) -> None:
    """Check that every member has one value, and that every amount is valid in the currency or null.

    Raises `BadRequest` (`invalid_field`) and `Unprocessable` (`invalid_amount`) with the path of the
    member, such as `items[0].price`, and `Unprocessable` (`invalid_event`) for too many lines.
    """
    _check(order, TABLES["new_order"], currency, "", _PARTS)


def check_content(order: Mapping[str, object]) -> None:
    """Raise `Unprocessable` for an order without any known member, which would print an empty ticket."""
    known = TABLES["new_order"].members
    if not any(
        order.get(name) is not None for each in known for name in (each.name, *each.aliases)
    ):
        raise Unprocessable("The order has no member that posd knows.", code="invalid_event")


def check_order_id(order_id: object) -> None:
    """Raise `Unprocessable` for an id in `RESERVED_ORDER_IDS`."""
    if order_id in RESERVED_ORDER_IDS:
        raise Unprocessable(
            f"orderId must not be {order_id}: {', '.join(sorted(RESERVED_ORDER_IDS))} are parts of URLs.",
            code="invalid_event",
            details={"field": "orderId"},
        )


def _check(
    sent: Mapping[str, object],
    table: FieldTable,
    currency: str,
    where: str,
    parts: tuple[tuple[str, FieldTable, Find], ...],
) -> None:
    for member in table.members:
        for name, value in _single_values(sent, member, where):
            if member.read is amount and value is not None:
                money.parse(value, currency, f"{where}{name}")
    if parts:
        (name, inner, find), *deeper = parts
        found = _parts_of(sent, name, inner, find)
        if not where:
            check_parts(found)
        for index, part in enumerate(found):
            _check(part, inner, currency, f"{where}{name}[{index}].", tuple(deeper))


def _single_values(
    sent: Mapping[str, object], member: Field, where: str
) -> Iterator[tuple[str, object]]:
    """Yield the names under which a member was sent, with their values. Raises `BadRequest` if these differ.

    An amount must be the same under all its aliases, such as `total`. Other members must be the same in both
    spellings only, because their aliases can have a meaning of their own, such as `name` and `displayName`.
    """
    names = [
        name
        for name in (member.name, *member.aliases)
        if name in sent and (member.read is amount or snake(name) == snake(member.name))
    ]
    for name in names:
        if differ(sent[name], sent[names[0]]):
            raise BadRequest(
                f"{where}{' and '.join(names)} are names of the same member and have different values.",
                code="invalid_field",
                details={"field": f"{where}{member.name}"},
            )
        yield member.name if snake(name) == snake(member.name) else name, sent[name]


def _parts_of(
    sent: Mapping[str, object], name: str, table: FieldTable, find: Find
) -> list[Mapping[str, object]]:
    """Return the parts of an order. `posd.events.normalise` handles a value that is not a list."""
    try:
        value = sent.get(name, sent.get(snake(name)))
        known = frozenset(each for part in table.members for each in (part.name, *part.aliases))
        return [] if value is None else find(value, known)
    except NotCoercible:
        return []
