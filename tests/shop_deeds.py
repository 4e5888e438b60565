"""The deeds of a shop's day, by all actors and on all ways to posd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any, Final, TypeAlias

from attrs import frozen

from tests.shop_books import Amount, Outcome

FRONT, BAR, KITCHEN, OFFICE = "POS_FRONT", "POS_BAR", "POS_KITCHEN", "POS_OFFICE"
TILLS: Final = (FRONT, BAR, KITCHEN, OFFICE)
WANDERERS: Final = (BAR, KITCHEN)
"""Tills that are away at times."""
DATE: Final = "2026-11-22"


class Road(Enum):
    """A way to reach posd."""

    REST = "rest"
    SQL = "sql"
    BROADCAST = "broadcast"
    SOCKET = "socket"


@frozen
class Placed:
    """An order is placed. A shop may roll back, and its own walk-in orders are no events."""

    order_id: str
    content: Mapping[str, Any]
    road: Road
    key: str | None = None
    is_rolled_back: bool = False


@frozen
class Changed:
    """Members of an order change."""

    order_id: str
    members: Mapping[str, Any]
    road: Road
    expected_version: int | None = None


@frozen
class Said:
    """A report of a till about an order."""

    order_id: str
    word: str
    road: Road
    payment_method: str | None = None


@frozen
class Sold:
    """A card is sold."""

    number: str
    amount: Decimal
    key: str


@frozen
class Moved:
    """Something is spent or earned. `change` has a sign."""

    ledger: str
    subject: str
    kind: str
    change: Amount
    key: str
    order_id: str | None = None


@frozen
class TakenBack:
    """The movement of a key is reversed."""

    ledger: str
    subject: str
    key: str


@frozen
class Blocked:
    """A shop blocks or unblocks a card."""

    number: str
    is_blocked: bool


@frozen
class Malformed:
    """An invalid call. `about` names the part of its address."""

    method: str
    path: str
    body: object
    status: int


@frozen
class Reported:
    """A daily report of a till. `is_deployed`: with the member names of deployed tills."""

    figures: Mapping[str, Amount]
    is_deployed: bool


@frozen
class Walked:
    """A till leaves or comes back."""

    is_back: bool


Deed: TypeAlias = (
    Placed | Changed | Said | Sold | Moved | TakenBack | Blocked | Malformed | Reported | Walked
)


@frozen
class Happening:
    """A deed of an actor.

    `repeats` is the number of honest repetitions. `is_lost`: the first answer is not read.
    """

    actor: str
    deed: Deed
    outcome: Outcome
    repeats: int = 0
    is_lost: bool = False


@frozen
class Moment:
    """Deeds at the same time, and the total number of events after them."""

    happenings: Sequence[Happening]
    head: int
