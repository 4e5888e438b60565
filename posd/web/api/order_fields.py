"""An order's members as a platform sends them by REST: said once, and its money exact.

Elsewhere an order is read tolerantly (`posd.events.normalise`), since nobody is there who could be told. A
platform that asks by REST is told, before it takes money for what it did not mean.
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
"""What follows `/orders/` in the tills' addresses: an order that is called so could not be looked at."""

_PARTS: Final = (("items", ITEM, objects), ("selectedAddons", ADDON, choices))
"""The tables of an order's lines and of their addons, and how these are found."""


def check(order: Mapping[str, object], currency: str) -> None:
    """Each member has one value, and each amount is one of the currency; null says nothing of it.

    Raises `BadRequest` (`invalid_field`) and `Unprocessable` (`invalid_amount`) with the name of the
    member, as in `items[0].price`, and `Unprocessable` (`invalid_event`) for too many lines.
    """
    _check(order, TABLES["new_order"], currency, "", _PARTS)


def check_content(order: Mapping[str, object]) -> None:
    """Raises `Unprocessable` for an order without any member that posd knows.

    It would be a ticket without a word on it, from a platform that sends something else.
    """
    known = TABLES["new_order"].members
    if not any(
        order.get(name) is not None for each in known for name in (each.name, *each.aliases)
    ):
        raise Unprocessable("The order has no member that posd knows.", code="invalid_event")


def check_order_id(order_id: object) -> None:
    """Raises `Unprocessable` for an id that is a part of the tills' addresses."""
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
    """A member under its contract's names, each with its value.

    Money is the same under all its names (`total`, `discount`); other members may have names that
    mean more, as a line's `name` and `displayName`, and are the same in either spelling alone.
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
    """The parts of an order. What is no list is left to `posd.events.normalise`."""
    try:
        value = sent.get(name, sent.get(snake(name)))
        known = frozenset(each for part in table.members for each in (part.name, *part.aliases))
        return [] if value is None else find(value, known)
    except NotCoercible:
        return []
