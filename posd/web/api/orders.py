"""Orders by REST, for platforms: create, change and read them at `/api/{tenant}/orders`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, cast

from attrs import define
from msgspec import Meta

from posd.database.pool import Pool
from posd.errors import BadRequest
from posd.events.coercion import ID_LENGTH
from posd.events.order_transitions import (
    Condition,
    not_online,
    require_change,
    require_new,
    unknown_order,
)
from posd.events.orders import is_online
from posd.events.timezones import zone
from posd.protocol import json_literals as literals
from posd.protocol import jsontext
from posd.publishing.publication import OrderOutcome, Publication, PublicationResult
from posd.store import orders
from posd.values import EventDraft
from posd.web.api import order_fields as order_members
from posd.web.api.publishing import (
    PUBLISHING_REFUSALS,
    BodySource,
    Position,
    PublishingEndpoints,
    Warnings,
    read_event,
    warning_entries,
)
from posd.web.http.error_catalog import FieldDetails
from posd.web.http.models import (
    UNSET,
    Identity,
    Moment,
    RequestModel,
    ResponseModel,
    SuccessModel,
    Unset,
    schema_reference,
)
from posd.web.http.operations import (
    LONG_BODY_BYTES,
    PLATFORMS,
    DeclaredError,
    Operation,
    TenantRequest,
    model_response,
)
from posd.web.http.responses import Response
from posd.web.openapi.event_schemas import ref

_ID_BYTES: Final = 12
_NOT_CONTENT: Final = frozenset(
    ("success", "printStatus", "delivery", "paidAt", "expectedVersion", "expected_version")
)
"""Members of requests and answers that are not members of the order."""

Version = Annotated[int, Meta(ge=1, lt=2**31)]
Status = Annotated[str, Meta(min_length=1, max_length=50)]


class NewOrderRequest(RequestModel, frozen=True):
    """The data of a `new_order`, with any of its members. Without `orderId`, posd generates an id."""

    extra_schema = {"allOf": [ref("OrderMembers")]}


class OrderChangeRequest(RequestModel, frozen=True):
    """The members of the order to change. Null erases a member. `items` are replaced as a whole."""

    status: Status | Unset = UNSET
    expected_version: Version | Unset = UNSET
    order_id: Identity | Unset = UNSET

    extra_schema = {"allOf": [ref("OrderMembers")]}


class NewOrderResponse(SuccessModel, frozen=True):
    """The position of the event. `id` is null if the order has nothing new."""

    order_id: str
    id: Position | None
    version: Version
    warnings: Warnings | Unset = UNSET


class OrderChangeResponse(SuccessModel, frozen=True):
    """The state of the order. `id` is null if nothing has changed."""

    order_id: str
    status: str
    previous_status: str
    version: Version
    id: Position | None
    warnings: Warnings | Unset = UNSET


class ReporterEntry(ResponseModel, frozen=True):
    """A terminal, and the times of its first reports about the order."""

    device_id: str
    received_at: Moment
    accepted_at: Moment | None
    printed_at: Moment | None
    failed_at: Moment | None


class DeliveryEntry(ResponseModel, frozen=True):
    """The times at which an order was delivered and printed. Null: this has not happened yet."""

    pushed_at: Moment | None
    received_at: Moment | None
    accepted_at: Moment | None
    printed_at: Moment | None
    terminals: list[ReporterEntry]


class OrderResponse(SuccessModel, frozen=True):
    """The order as it was last published, with all its members, and its print status."""

    order_id: str
    print_status: str
    version: Version
    paid_at: Moment | None
    delivery: DeliveryEntry

    extra_schema = {"allOf": [ref("Order")]}


class OtherOrderDetails(ResponseModel, frozen=True):
    """The order that has the id."""

    order_id: str
    version: Version


class CurrentOrderDetails(ResponseModel, frozen=True):
    """The present order."""

    order: Annotated[dict[str, Any], schema_reference("Order")]


class CurrentStatusDetails(ResponseModel, frozen=True):
    """The present status of the order."""

    status: str


_NO_MONEY: Final = DeclaredError(
    422,
    "invalid_amount",
    "An amount is not valid, or has more decimals than the currency.",
    FieldDetails,
)
_CONFLICTING_MEMBER: Final = DeclaredError(
    400, "invalid_field", "A member occurs twice, with different values.", FieldDetails
)
_UNKNOWN: Final = DeclaredError(404, "unknown_order", "There is no order of this id.")
_NOT_ONLINE: Final = DeclaredError(422, "not_online", "`orderSource` is not `online`.")


@define(eq=False)
class OrderEndpoints:
    """The endpoints. Changes are published by the sequencer, like all events."""

    publisher: PublishingEndpoints
    database: Pool

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/api/{tenant}/orders",
                self.create,
                "Create an order",
                PLATFORMS,
                {201: NewOrderResponse, 200: NewOrderResponse},
                body_model=NewOrderRequest,
                refusals=(
                    *PUBLISHING_REFUSALS,
                    _NOT_ONLINE,
                    _NO_MONEY,
                    _CONFLICTING_MEMBER,
                    DeclaredError(
                        409, "order_exists", "Another order has this id.", OtherOrderDetails
                    ),
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
                {200: OrderChangeResponse},
                request_model=OrderChangeRequest,
                refusals=(
                    *PUBLISHING_REFUSALS,
                    _UNKNOWN,
                    _NOT_ONLINE,
                    _NO_MONEY,
                    DeclaredError(
                        409,
                        "version_mismatch",
                        "The order has another version.",
                        CurrentOrderDetails,
                    ),
                    DeclaredError(
                        409,
                        "invalid_transition",
                        "This transition of the status is not allowed.",
                        CurrentStatusDetails,
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
                self.show,
                "Read an order and its delivery",
                PLATFORMS,
                {200: OrderResponse},
                refusals=(_UNKNOWN,),
                tag="Orders",
            ),
        )

    async def create(self, request: TenantRequest[None]) -> Response:
        """Create an order. The status is 201, or 200 if the same order exists."""
        body = request.http_request.json()
        await self.publisher.check_sizes(request.http_request, [body])
        order_members.check(body, request.tenant.currency)
        order_members.check_content(body)
        chosen = _has_id(body)
        draft = _draft(request, "new_order", body if chosen else _with_id(body))
        order_members.check_order_id(draft.data["orderId"])
        moved = draft.data if chosen else _without_id(draft.data)
        published, order = await self._publish(request, draft, moved, require_new)
        answer = NewOrderResponse(
            order_id=order.order_id,
            id=published.ids[0],
            version=order.version,
            warnings=warning_entries([draft]),
        )
        status = 200 if published.ids[0] is None else 201
        return model_response(answer, status, replayed=published.replayed)

    async def change(self, request: TenantRequest[OrderChangeRequest]) -> Response:
        """Change the members in the body. Other members keep their values."""
        arguments, body, order_id = (
            request.arguments,
            request.http_request.json(),
            _order_id_in_path(request),
        )
        await self.publisher.check_sizes(request.http_request, [body])
        if arguments.order_id not in (UNSET, order_id):
            raise BadRequest(
                "orderId differs from the order id in the URL.",
                code="invalid_field",
                details={"field": "orderId"},
            )
        members = {name: value for name, value in body.items() if name not in _NOT_CONTENT}
        order_members.check(members, request.tenant.currency)
        draft = _draft(request, "order_updated", {**members, "orderId": order_id})
        expected = None if arguments.expected_version is UNSET else arguments.expected_version
        published, order = await self._publish(request, draft, draft.data, require_change(expected))
        answer = OrderChangeResponse(
            order_id=order.order_id,
            status=order.status,
            previous_status=order.previous or order.status,
            version=order.version,
            id=published.ids[0],
            warnings=warning_entries([draft]),
        )
        return model_response(answer, replayed=published.replayed)

    async def show(self, request: TenantRequest[None]) -> Response:
        """Read an order as it was published. Numbers keep all digits."""
        executor = self.database.of(request.tenant.id)
        record = await orders.find_order(executor, request.tenant, _order_id_in_path(request))
        if record is None:
            raise unknown_order()
        snapshot = cast("dict[str, Any]", jsontext.decode_own(record.snapshot))
        answer = model_response(
            OrderResponse(
                order_id=record.order_id,
                print_status=record.print_status.value,
                version=snapshot["version"],
                paid_at=_moment(record.paid_at),
                delivery=_delivery(record),
            )
        )
        return Response({"success": True, **snapshot, **answer.body}, answer.status)

    async def _publish(
        self,
        request: TenantRequest[Any],
        draft: EventDraft,
        moved: Mapping[str, object],
        condition: Condition,
    ) -> tuple[PublicationResult, OrderOutcome]:
        if not is_online(draft.data):
            raise not_online()
        published = await self.publisher.publish(
            Publication(
                request.tenant.id,
                [draft],
                request.idempotency_key(moved),
                condition,
                request.http_request.size,
            )
        )
        assert published.order is not None
        return published, published.order


def _order_id_in_path(request: TenantRequest[Any]) -> str:
    """Return the order id in the path. Raises `NotFound` for a string that is never an order id."""
    name = request.path["orderId"]
    if not name.isprintable() or name != name.strip() or len(name) > ID_LENGTH:
        raise unknown_order()
    return name


def _draft(request: TenantRequest[Any], kind: str, data: Mapping[str, object]) -> EventDraft:
    source = BodySource(zone(request.tenant.timezone), request.http_request.repaired)
    return read_event({"type": kind, "data": data}, "", source)


def _has_id(body: Mapping[str, object]) -> bool:
    """Return whether the body has an order id, which must then be valid."""
    return any(body.get(name) not in (None, "") for name in ("orderId", "order_id", "id"))


def _with_id(body: Mapping[str, object]) -> dict[str, object]:
    return {**body, "orderId": secrets.token_hex(_ID_BYTES)}


def _without_id(data: Mapping[str, object]) -> dict[str, object]:
    """Return the data without the generated id, so that a repeated call has the same fingerprint."""
    return {name: value for name, value in data.items() if name != "orderId"}


def _delivery(record: orders.OrderRecord) -> DeliveryEntry:
    return DeliveryEntry(
        pushed_at=_moment(record.pushed_at),
        received_at=_moment(record.received_at),
        accepted_at=_moment(record.accepted_at),
        printed_at=_moment(record.printed_at),
        terminals=[
            ReporterEntry(
                device_id=each.device_id,
                received_at=literals.timestamp(each.received_at),
                accepted_at=_moment(each.accepted_at),
                printed_at=_moment(each.printed_at),
                failed_at=_moment(each.failed_at),
            )
            for each in record.terminals
        ],
    )


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else literals.timestamp(moment)
