"""What a platform may do by REST to an order that is already there, or is not.

The conditions are judged by the sequencer, in its transaction, on the order as it is stored then: of
two that change one version of an order, one wins. A shop's own SQL is believed and never comes here.

Steps of the status go forward, and any may be left out. A word that is not in the table is a shop's own
for an order that is still to be made: one may go from any open status to it, and from it anywhere.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final

from posd.errors import Conflict, NotFound, Unprocessable
from posd.events.orders import OrderChange
from posd.values import StoredOrder

Condition = Callable[[StoredOrder | None, OrderChange | None], None]
"""Raises a `Refusal` unless a change may be made to the order as it is stored.

A change that is None tells nothing new. What a condition refuses has changed nothing.
"""


class Stage(enum.IntEnum):
    """How far an order is, in the order in which it gets there."""

    PLACED = 0
    CONFIRMED = 1
    PREPARING = 2
    READY = 3
    ON_ITS_WAY = 4
    HANDED_OVER = 5
    CLOSED = 6
    CANCELLED = 7
    REFUNDED = 8


WORDS: Final[Mapping[Stage, tuple[str, ...]]] = {
    Stage.PLACED: ("pending", "placed", "new"),
    Stage.CONFIRMED: ("confirmed", "accepted"),
    Stage.PREPARING: ("preparing", "cooking", "in_progress"),
    Stage.READY: ("ready", "ready_for_pickup", "ready_for_collection"),
    Stage.ON_ITS_WAY: ("out_for_delivery", "dispatched", "on_the_way"),
    Stage.HANDED_OVER: ("delivered", "collected", "picked_up", "served"),
    Stage.CLOSED: ("completed", "complete", "fulfilled", "closed"),
    Stage.CANCELLED: (
        *("cancelled", "canceled", "rejected", "declined"),
        *("abandoned", "expired", "failed"),
    ),
    Stage.REFUNDED: ("refunded", "voided", "void"),
}
"""The words of each stage, the contract's first."""

_STAGES: Final = {word: stage for stage, words in WORDS.items() for word in words}
_OVER: Final[Mapping[Stage, frozenset[Stage]]] = {
    Stage.HANDED_OVER: frozenset((Stage.CLOSED, Stage.REFUNDED)),
    Stage.CLOSED: frozenset((Stage.REFUNDED,)),
    Stage.CANCELLED: frozenset((Stage.REFUNDED,)),
    Stage.REFUNDED: frozenset(),
}
"""Where an order can still go that is over."""


def allowed(before: str, after: str) -> bool:
    """Whether a platform may take an order from one status to another. Staying is no step."""
    if before == after:
        return True
    here, there = _STAGES.get(before), _STAGES.get(after)
    if here is None:
        return True
    if here in _OVER:
        return there in _OVER[here]
    return there is None or there >= here


def new(stored: StoredOrder | None, change: OrderChange | None) -> None:
    """The order is not there, or is there with nothing else in it. Raises `Conflict`."""
    if stored is not None and change is not None:
        raise Conflict(
            "There is another order of this id.",
            code="order_exists",
            details={"orderId": stored.order_id, "version": stored.version},
        )


def changes(expected_version: int | None) -> Condition:
    """The order is there, has that version if one is expected, and may go to its new status.

    Raises `NotFound` and `Conflict`.
    """

    def judge(stored: StoredOrder | None, change: OrderChange | None) -> None:
        if stored is None:
            raise unknown_order()
        if expected_version not in (None, stored.version):
            raise Conflict(
                f"The order has version {stored.version} by now.",
                code="version_mismatch",
                details={"order": stored.snapshot},
            )
        if change is not None and not allowed(stored.status, change.status):
            raise Conflict(
                f"An order that is {stored.status} cannot become {change.status}.",
                code="invalid_transition",
                details={"status": stored.status},
            )

    return judge


def unknown_order() -> NotFound:
    """What everybody is told who names an order that posd does not know."""
    return NotFound("There is no order of this id.", code="unknown_order")


def not_online() -> Unprocessable:
    """What a platform is told of an order that would never reach a till."""
    return Unprocessable("Only orders whose orderSource is online go to tills.", code="not_online")
