"""What can happen in a shop on one day, whoever does it and on whatever road."""

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
    """By what somebody reaches posd."""

    REST = "rest"
    SQL = "sql"
    BROADCAST = "broadcast"
    SOCKET = "socket"


@frozen
class Placed:
    """An order; a shop may change its mind and roll it back, and its own walk-in guests are no news."""

    order_id: str
    content: Mapping[str, Any]
    road: Road
    key: str | None = None
    is_rolled_back: bool = False


@frozen
class Changed:
    """Members of an order have other values now."""

    order_id: str
    members: Mapping[str, Any]
    road: Road
    expected_version: int | None = None


@frozen
class Said:
    """What a till says of an order."""

    order_id: str
    word: str
    road: Road
    payment_method: str | None = None


@frozen
class Sold:
    """A card was sold."""

    number: str
    amount: Decimal
    key: str


@frozen
class Moved:
    """Something is spent or earned; `change` has its sign."""

    ledger: str
    subject: str
    kind: str
    change: Amount
    key: str
    order_id: str | None = None


@frozen
class TakenBack:
    """A movement is reversed, the one that this key has made."""

    ledger: str
    subject: str
    key: str


@frozen
class Blocked:
    """A shop says whether a card can be used."""

    number: str
    is_blocked: bool


@frozen
class Malformed:
    """A call that leads to nothing; `about` names what stands in its address."""

    method: str
    path: str
    body: object
    status: int


@frozen
class Reported:
    """A till counts up. `is_deployed`: it names things as deployed tills do."""

    figures: Mapping[str, Amount]
    is_deployed: bool


@frozen
class Walked:
    """A till goes away, or is there again."""

    is_back: bool


Deed: TypeAlias = (
    Placed | Changed | Said | Sold | Moved | TakenBack | Blocked | Malformed | Reported | Walked
)


@frozen
class Happening:
    """Somebody does something.

    `repeats`: how often it is done again, honestly. `is_lost`: the first time nobody reads the answer.
    """

    actor: str
    deed: Deed
    outcome: Outcome
    repeats: int = 0
    is_lost: bool = False


@frozen
class Moment:
    """What happens at once; afterwards so many events have been told altogether."""

    happenings: Sequence[Happening]
    head: int
