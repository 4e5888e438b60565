"""The conditions for orders that a platform creates or changes by REST.

The sequencer checks a condition in its transaction, against the stored order at that time. So if two requests
change the same version of an order, one of them is refused. Orders that a shop publishes by SQL or a hook
have no condition.

A status moves forward, and may skip steps. An unknown status is a shop's own word for an open order: an order
may move to an unknown status from any open status, and from an unknown status to any status.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final

from posd.errors import Conflict, NotFound, Unprocessable
from posd.events.orders import OrderChange
from posd.values import StoredOrder

Condition = Callable[[StoredOrder | None, OrderChange | None], None]
"""Raises a `Refusal` unless the change of the stored order is allowed.

The change is None if it would change nothing. A refused request changes nothing.
"""


class OrderStage(enum.IntEnum):
    """The stages of an order, in their order."""

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
"""The words for each stage. The first one is the word of docs/protocol.md."""

_STAGES: Final = {word: stage for stage, words in STATUS_WORDS.items() for word in words}
_AFTER_END: Final[Mapping[OrderStage, frozenset[OrderStage]]] = {
    OrderStage.HANDED_OVER: frozenset((OrderStage.CLOSED, OrderStage.REFUNDED)),
    OrderStage.CLOSED: frozenset((OrderStage.REFUNDED,)),
    OrderStage.CANCELLED: frozenset((OrderStage.REFUNDED,)),
    OrderStage.REFUNDED: frozenset(),
}
"""The stages that may follow each stage of a finished order."""


def is_allowed(before: str, after: str) -> bool:
    """Whether a platform may change the status of an order from `before` to `after`, which may be equal."""
    if before == after:
        return True
    stage_before, stage_after = _STAGES.get(before), _STAGES.get(after)
    if stage_before is None:
        return True
    if stage_before in _AFTER_END:
        return stage_after in _AFTER_END[stage_before]
    return stage_after is None or stage_after >= stage_before


def require_new(stored: StoredOrder | None, change: OrderChange | None) -> None:
    """Require that there is no order of this id with other content. Raises `Conflict`."""
    if stored is not None and change is not None:
        raise Conflict(
            "There is another order of this id.",
            code="order_exists",
            details={"orderId": stored.order_id, "version": stored.version},
        )


def require_change(expected_version: int | None) -> Condition:
    """Return the condition that the order exists, has the expected version, and may have the new status.

    A version of None allows any version. The condition raises `NotFound` or `Conflict`.
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
    """Return the error for an order id that posd does not know."""
    return NotFound("There is no order of this id.", code="unknown_order")


def not_online() -> Unprocessable:
    """Return the error for an order that is not online, and so is not sent to tills."""
    return Unprocessable("Only orders whose orderSource is online go to tills.", code="not_online")
