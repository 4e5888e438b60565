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


class OrderStage(enum.IntEnum):
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


STATUS_WORDS: Final[Mapping[OrderStage, tuple[str, ...]]] = {
    OrderStage.PLACED: ("pending", "placed", "new"),
    OrderStage.CONFIRMED: ("confirmed", "accepted"),
    OrderStage.PREPARING: ("preparing", "cooking", "in_progress"),
    OrderStage.READY: ("ready", "ready_for_pickup", "ready_for_collection"),
    OrderStage.ON_ITS_WAY: ("out_for_delivery", "dispatched", "on_the_way"),
    OrderStage.HANDED_OVER: ("delivered", "collected", "picked_up", "served"),
    OrderStage.CLOSED: ("completed", "complete", "fulfilled", "closed"),
    OrderStage.CANCELLED: (
        *("cancelled", "canceled", "rejected", "declined"),
        *("abandoned", "expired", "failed"),
    ),
    OrderStage.REFUNDED: ("refunded", "voided", "void"),
}
"""The words of each stage, the contract's first."""

_STAGES: Final = {word: stage for stage, words in STATUS_WORDS.items() for word in words}
_AFTER_END: Final[Mapping[OrderStage, frozenset[OrderStage]]] = {
    OrderStage.HANDED_OVER: frozenset((OrderStage.CLOSED, OrderStage.REFUNDED)),
    OrderStage.CLOSED: frozenset((OrderStage.REFUNDED,)),
    OrderStage.CANCELLED: frozenset((OrderStage.REFUNDED,)),
    OrderStage.REFUNDED: frozenset(),
}
"""Where an order can still go that is over."""


def is_allowed(before: str, after: str) -> bool:
    """Whether a platform may take an order from one status to another. Staying is no step."""
    if before == after:
        return True
    stage_before, stage_after = _STAGES.get(before), _STAGES.get(after)
    if stage_before is None:
        return True
    if stage_before in _AFTER_END:
        return stage_after in _AFTER_END[stage_before]
    return stage_after is None or stage_after >= stage_before


def require_new(stored: StoredOrder | None, change: OrderChange | None) -> None:
    """The order is not there, or is there with nothing else in it. Raises `Conflict`."""
    if stored is not None and change is not None:
        raise Conflict(
            "There is another order of this id.",
            code="order_exists",
            details={"orderId": stored.order_id, "version": stored.version},
        )


def require_change(expected_version: int | None) -> Condition:
    """The order is there, has that version if one is expected, and may go to its new status.

    Raises `NotFound` and `Conflict`.
    """

    def check(stored: StoredOrder | None, change: OrderChange | None) -> None:
        if stored is None:
            raise unknown_order()
        if expected_version not in (None, stored.version):
            raise Conflict(
                f"The order has version {stored.version} by now.",
                code="version_mismatch",
                details={"order": stored.snapshot},
            )
        if change is not None and not is_allowed(stored.status, change.status):
            raise Conflict(
                f"An order that is {stored.status} cannot become {change.status}.",
                code="invalid_transition",
                details={"status": stored.status},
            )

    return check


def unknown_order() -> NotFound:
    """What everybody is told who names an order that posd does not know."""
    return NotFound("There is no order of this id.", code="unknown_order")


def not_online() -> Unprocessable:
    """What a platform is told of an order that would never reach a till."""
    return Unprocessable("Only orders whose orderSource is online go to tills.", code="not_online")
