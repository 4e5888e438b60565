"""Orders, as a platform places, changes and looks at them: `/api/{tenant}/orders`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, cast

from attrs import define
from msgspec import Meta

from posd.database.pool import Database
from posd.errors import BadRequest
from posd.events.coercion import ID_LENGTH
from posd.events.order_transitions import Condition, changes, new, not_online, unknown_order
from posd.events.orders import is_online
from posd.events.timezones import zone
from posd.protocol import jsontext, literals
from posd.publishing.publication import OrderOutcome, Publication, Published
from posd.store import orders
from posd.values import Draft
from posd.web.api import order_fields as order_members
from posd.web.api.publishing import (
    PUBLISHING_REFUSALS,
    Position,
    Publisher,
    Source,
    Warnings,
    one_event,
    warned,
)
from posd.web.http.error_catalog import FieldGiven
from posd.web.http.models import UNSET, Given, Identity, Moment, Success, Taken, Unset, component
from posd.web.http.operations import (
    LONG_BODY_BYTES,
    PLATFORMS,
    Operation,
    Refused,
    TenantAsk,
    given,
)
from posd.web.http.requests import Answer
from posd.web.openapi.event_schemas import ref

_ID_BYTES: Final = 12
_NOT_CONTENT: Final = frozenset(
    ("success", "printStatus", "delivery", "paidAt", "expectedVersion", "expected_version")
)
"""Members of a question or an answer about an order that are no part of the order."""

Version = Annotated[int, Meta(ge=1, lt=2**31)]
Status = Annotated[str, Meta(min_length=1, max_length=50)]


class NewOrderTaken(Taken, frozen=True):
    """The data of a `new_order`, with any of its members. Without `orderId`, posd generates an id."""

    beyond = {"allOf": [ref("OrderMembers")]}


class OrderChangeTaken(Taken, frozen=True):
    """The members of the order to change. Null erases a member. `items` are replaced as a whole."""

    status: Status | Unset = UNSET
    expected_version: Version | Unset = UNSET
    order_id: Identity | Unset = UNSET

    beyond = {"allOf": [ref("OrderMembers")]}


class NewOrderGiven(Success, frozen=True):
    """The position of the event. `id` is null if the order has nothing new."""

    order_id: str
    id: Position | None
    version: Version
    warnings: Warnings | Unset = UNSET


class OrderChangeGiven(Success, frozen=True):
    """The state of the order. `id` is null if nothing has changed."""

    order_id: str
    status: str
    previous_status: str
    version: Version
    id: Position | None
    warnings: Warnings | Unset = UNSET


class ReporterGiven(Given, frozen=True):
    """A terminal, and the times of its first reports about the order."""

    device_id: str
    received_at: Moment
    accepted_at: Moment | None
    printed_at: Moment | None
    failed_at: Moment | None


class DeliveryGiven(Given, frozen=True):
    """The times at which an order was delivered and printed. Null: this has not happened yet."""

    pushed_at: Moment | None
    received_at: Moment | None
    accepted_at: Moment | None
    printed_at: Moment | None
    terminals: list[ReporterGiven]


class OrderGiven(Success, frozen=True):
    """The order as it was last published, with all its members, and its print status."""

    order_id: str
    print_status: str
    version: Version
    paid_at: Moment | None
    delivery: DeliveryGiven

    beyond = {"allOf": [ref("Order")]}


class OtherOrderGiven(Given, frozen=True):
    """The order that has the id."""

    order_id: str
    version: Version


class CurrentOrderGiven(Given, frozen=True):
    """The present order."""

    order: Annotated[dict[str, Any], component("Order")]


class CurrentStatusGiven(Given, frozen=True):
    """The present status of the order."""

    status: str


_NO_MONEY: Final = Refused(
    422,
    "invalid_amount",
    "An amount is not valid, or has more decimals than the currency.",
    FieldGiven,
)
_TWICE: Final = Refused(
    400, "invalid_field", "A member occurs twice, with different values.", FieldGiven
)
_UNKNOWN: Final = Refused(404, "unknown_order", "There is no order of this id.")
_NOT_ONLINE: Final = Refused(422, "not_online", "`orderSource` is not `online`.")


@define(eq=False)
class Orders:
    """The endpoints; what changes anything goes through the sequencer, like every event."""

    publisher: Publisher
    database: Database

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/api/{tenant}/orders",
                self.create,
                "Create an order",
                PLATFORMS,
                {201: NewOrderGiven, 200: NewOrderGiven},
                describes=NewOrderTaken,
                refusals=(
                    *PUBLISHING_REFUSALS,
                    _NOT_ONLINE,
                    _NO_MONEY,
                    _TWICE,
                    Refused(409, "order_exists", "Another order has this id.", OtherOrderGiven),
                ),
                idempotent=True,
                body_bytes=LONG_BODY_BYTES,
                description=(
                    "Without an `orderId`, posd generates a random one. `pending`, "
                    "`received`, `accepted` and `print` are parts of other URLs, and "
                    "cannot be ids."
                ),
                tag="Orders",
                example={"orderId": "A-4", "totalAmount": 12.5, "customerName": "Maya Stone"},
            ),
            Operation(
                "PATCH",
                "/api/{tenant}/orders/{orderId}",
                self.change,
                "Change an order",
                PLATFORMS,
                {200: OrderChangeGiven},
                takes=OrderChangeTaken,
                refusals=(
                    *PUBLISHING_REFUSALS,
                    _UNKNOWN,
                    _NOT_ONLINE,
                    _NO_MONEY,
                    Refused(
                        409, "version_mismatch", "The order has another version.", CurrentOrderGiven
                    ),
                    Refused(
                        409,
                        "invalid_transition",
                        "This transition of the status is not allowed.",
                        CurrentStatusGiven,
                    ),
                ),
                idempotent=True,
                body_bytes=LONG_BODY_BYTES,
                tag="Orders",
                example={"status": "preparing", "expectedVersion": 1},
            ),
            Operation(
                "GET",
                "/api/{tenant}/orders/{orderId}",
                self.look,
                "Read an order and its delivery",
                PLATFORMS,
                {200: OrderGiven},
                refusals=(_UNKNOWN,),
                tag="Orders",
            ),
        )

    async def create(self, ask: TenantAsk[None]) -> Answer:
        """201 with the order's position; 200 if the same order is there already."""
        body = ask.call.json()
        await self.publisher.check_sizes(ask.call, [body])
        order_members.check(body, ask.tenant.currency)
        order_members.check_content(body)
        chosen = _named(body)
        made = _draft(ask, "new_order", body if chosen else _with_id(body))
        order_members.check_name(made.data["orderId"])
        moved = made.data if chosen else _without_id(made.data)
        published, order = await self._publish(ask, made, moved, new)
        answer = NewOrderGiven(
            order_id=order.order_id,
            id=published.ids[0],
            version=order.version,
            warnings=warned([made]),
        )
        status = 200 if published.ids[0] is None else 201
        return given(answer, status, replayed=published.replayed)

    async def change(self, ask: TenantAsk[OrderChangeTaken]) -> Answer:
        """Members that are not named stay as they are."""
        asked, body, order_id = ask.taken, ask.call.json(), _addressed(ask)
        await self.publisher.check_sizes(ask.call, [body])
        if asked.order_id not in (UNSET, order_id):
            raise BadRequest(
                "orderId differs from the order id in the URL.",
                code="invalid_field",
                details={"field": "orderId"},
            )
        members = {name: value for name, value in body.items() if name not in _NOT_CONTENT}
        order_members.check(members, ask.tenant.currency)
        made = _draft(ask, "order_updated", {**members, "orderId": order_id})
        expected = None if asked.expected_version is UNSET else asked.expected_version
        published, order = await self._publish(ask, made, made.data, changes(expected))
        answer = OrderChangeGiven(
            order_id=order.order_id,
            status=order.status,
            previous_status=order.previous or order.status,
            version=order.version,
            id=published.ids[0],
            warnings=warned([made]),
        )
        return given(answer, replayed=published.replayed)

    async def look(self, ask: TenantAsk[None]) -> Answer:
        """The snapshot is given as it was published, digit for digit."""
        session = self.database.of(ask.tenant.id)
        kept = await orders.one(session, ask.tenant, _addressed(ask))
        if kept is None:
            raise unknown_order()
        snapshot = cast("dict[str, Any]", jsontext.decode_own(kept.snapshot))
        answer = given(
            OrderGiven(
                order_id=kept.order_id,
                print_status=kept.print_status.value,
                version=snapshot["version"],
                paid_at=_moment(kept.paid_at),
                delivery=_delivery(kept),
            )
        )
        return Answer({"success": True, **snapshot, **answer.body}, answer.status)

    async def _publish(
        self, ask: TenantAsk[Any], made: Draft, moved: Mapping[str, object], condition: Condition
    ) -> tuple[Published, OrderOutcome]:
        if not is_online(made.data):
            raise not_online()
        published = await self.publisher.publish(
            Publication(ask.tenant.id, [made], ask.named(moved), condition, ask.call.size)
        )
        assert published.order is not None
        return published, published.order


def _addressed(ask: TenantAsk[Any]) -> str:
    """The order that the address names. Raises `NotFound` for what no order is called."""
    name = ask.path["orderId"]
    if not name.isprintable() or name != name.strip() or len(name) > ID_LENGTH:
        raise unknown_order()
    return name


def _draft(ask: TenantAsk[Any], kind: str, data: Mapping[str, object]) -> Draft:
    source = Source(zone(ask.tenant.timezone), ask.call.repaired)
    return one_event({"type": kind, "data": data}, "", source)


def _named(body: Mapping[str, object]) -> bool:
    """Whether somebody has chosen the order's id: then it has to be usable."""
    return any(body.get(name) not in (None, "") for name in ("orderId", "order_id", "id"))


def _with_id(body: Mapping[str, object]) -> dict[str, object]:
    return {**body, "orderId": secrets.token_hex(_ID_BYTES)}


def _without_id(data: Mapping[str, object]) -> dict[str, object]:
    """What a call without an id moves: the same when it is repeated."""
    return {name: value for name, value in data.items() if name != "orderId"}


def _delivery(kept: orders.Kept) -> DeliveryGiven:
    return DeliveryGiven(
        pushed_at=_moment(kept.pushed_at),
        received_at=_moment(kept.received_at),
        accepted_at=_moment(kept.accepted_at),
        printed_at=_moment(kept.printed_at),
        terminals=[
            ReporterGiven(
                device_id=each.device_id,
                received_at=literals.timestamp(each.received_at),
                accepted_at=_moment(each.accepted_at),
                printed_at=_moment(each.printed_at),
                failed_at=_moment(each.failed_at),
            )
            for each in kept.terminals
        ],
    )


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else literals.timestamp(moment)
