"""Reports of terminals by REST: the progress of orders, and heartbeats."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from attrs import define
from msgspec import Meta

from posd.database.pool import Pool
from posd.delivery.terminal_reports import TerminalReports
from posd.errors import BadRequest, Forbidden
from posd.events.coercion import NotCoercible, enum_word, point_in_time
from posd.events.print_status import WORD, PrintReport, ReportedStatus, meaning
from posd.events.timezones import zone
from posd.protocol import json_literals as literals
from posd.security.auth import Authenticator
from posd.store.devices import HeartbeatReport
from posd.values import Tenant
from posd.web.http.http_request import device_name
from posd.web.http.models import (
    UNSET,
    Identity,
    Moment,
    RequestModel,
    SuccessModel,
    Unset,
)
from posd.web.http.operations import TILLS, DeclaredError, Operation, TenantRequest, model_response
from posd.web.http.responses import Response

_LONGEST_TEXT: Final = 500

ReportedTime = Annotated[
    Any, Meta(description="A time of RFC 3339. A value that posd cannot read means now.")
]
ShortText = Annotated[str, Meta(description="posd stores the first 500 characters.")]
Count = Annotated[int, Meta(ge=0, lt=2**31)]


class OrderReportRequest(RequestModel, frozen=True):
    """A report of a till about an order."""

    order_id: Identity
    status: Annotated[str, Meta(max_length=100)] | Unset | None = UNSET
    device_id: str | Unset | None = UNSET
    reason: ShortText | Unset | None = UNSET
    received_at: ReportedTime = UNSET
    accepted_at: ReportedTime = UNSET
    printed_at: ReportedTime = UNSET
    paid_at: ReportedTime = UNSET
    payment_method: ShortText | Unset | None = UNSET


class OrderReportResponse(SuccessModel, frozen=True):
    """The present status of the order."""

    order_id: str
    print_status: str


class HeartbeatRequest(RequestModel, frozen=True):
    """The state of a terminal."""

    device_id: str | Unset | None = UNSET
    status: ShortText | Unset | None = UNSET
    pending_acks_count: Count | Unset | None = UNSET
    pending_orders_count: Count | Unset | None = UNSET
    last_print_at: ReportedTime = UNSET
    app_version: ShortText | Unset | None = UNSET


class HeartbeatResponse(SuccessModel, frozen=True):
    """The time at which posd received the heartbeat."""

    timestamp: Moment


_DEVICE: Final = (
    DeclaredError(400, "invalid_device", "`deviceId` is not a valid name."),
    DeclaredError(
        403, "device_mismatch", "`deviceId` is not the device of the key or of the header."
    ),
)
_UNKNOWN: Final = DeclaredError(404, "unknown_order", "There is no order of this id.")


@define(eq=False)
class TerminalEndpoints:
    """The endpoints. Reports are idempotent: a repeated report gets the same answer."""

    authenticator: Authenticator
    terminals: TerminalReports
    database: Pool

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            self._report("received", self.received, "Report that an order is stored"),
            self._report("accepted", self.accepted, "Report that the kitchen prepares an order"),
            self._report("print", self.printed, "Report a print result or a payment"),
            Operation(
                "POST",
                "/api/{tenant}/heartbeat",
                self.heartbeat,
                "Send a heartbeat",
                TILLS,
                {200: HeartbeatResponse},
                request_model=HeartbeatRequest,
                refusals=(
                    *_DEVICE,
                    DeclaredError(429, "too_many_devices", "The tenant already has 1000 devices."),
                ),
                example={"deviceId": "POS_1", "status": "online", "pendingAcksCount": 0},
            ),
        )

    def _report(self, name: str, handler: Any, summary: str) -> Operation:
        return Operation(
            "POST",
            f"/api/{{tenant}}/orders/{name}",
            handler,
            summary,
            TILLS,
            {200: OrderReportResponse},
            request_model=OrderReportRequest,
            refusals=(*_DEVICE, _UNKNOWN),
            tag="Orders",
            example={"orderId": "A-4", "status": "printed" if name == "print" else name},
        )

    async def received(self, request: TenantRequest[OrderReportRequest]) -> Response:
        """Store that a till has received an order. `status` is ignored."""
        return await self._reported(request, "received")

    async def accepted(self, request: TenantRequest[OrderReportRequest]) -> Response:
        """Store that an order is accepted, or the `status` of the body."""
        return await self._reported(request, _word(request.arguments.status) or "accepted")

    async def printed(self, request: TenantRequest[OrderReportRequest]) -> Response:
        word_reported = _word(request.arguments.status)
        if word_reported is None:
            raise BadRequest(
                "status is missing.", code="missing_field", details={"field": "status"}
            )
        return await self._reported(request, word_reported)

    async def heartbeat(self, request: TenantRequest[HeartbeatRequest]) -> Response:
        arguments = request.arguments
        device_id = await self._terminal(request, arguments.device_id)
        if device_id is None:
            raise BadRequest(
                "deviceId is missing.", code="missing_field", details={"field": "deviceId"}
            )
        beat_report = HeartbeatReport(
            status=_truncated(arguments.status),
            pending_acks=_unset_to_none(arguments.pending_acks_count),
            pending_orders=_unset_to_none(arguments.pending_orders_count),
            last_print_at=_moment(arguments.last_print_at, request.tenant),
            app_version=_truncated(arguments.app_version),
        )
        await self.terminals.heartbeat(request.tenant, device_id, beat_report)
        return model_response(HeartbeatResponse(timestamp=literals.timestamp(datetime.now(UTC))))

    async def _reported(
        self, request: TenantRequest[OrderReportRequest], word_reported: str
    ) -> Response:
        arguments = request.arguments
        device_id = await self._terminal(request, arguments.device_id)
        reported = meaning(word_reported)
        at = _moment(_time_reported(arguments, reported), request.tenant)
        report = PrintReport(arguments.order_id, reported, at, _truncated(arguments.reason))
        status = await self.terminals.report(
            request.tenant, device_id, report, word_reported, _extra_members(arguments, reported)
        )
        return model_response(
            OrderReportResponse(order_id=arguments.order_id, print_status=status.value)
        )

    async def _terminal(self, request: TenantRequest[Any], named: str | Unset | None) -> str | None:
        """Return the reporting terminal: that of the key or of the header, or else that of the body.

        Raises `BadRequest`, and `Forbidden` if the body names another terminal.
        """
        if not named:
            return request.device_id
        name = device_name(named, "deviceId")
        if request.device_id not in (None, name):
            raise Forbidden(
                "deviceId is not the device of the key or of the header.", code="device_mismatch"
            )
        if request.device_id is None:
            await self.authenticator.find_credential(
                request.tenant.slug, request.http_request.key, name, request.http_request.address
            )
        return name


def _word(status: str | Unset | None) -> str | None:
    """Return the normalised spelling of a status; None without one. Raises `BadRequest`."""
    if not status:
        return None
    word_reported = enum_word(status)
    if word_reported is not None and WORD.fullmatch(word_reported) is None:
        raise BadRequest(
            "status must be 1 to 30 of a-z and _.",
            code="invalid_field",
            details={"field": "status"},
        )
    return word_reported


def _time_reported(arguments: OrderReportRequest, reported: ReportedStatus) -> object:
    """Return the member with the time of the reported status."""
    times = {
        ReportedStatus.RECEIVED: arguments.received_at,
        ReportedStatus.ACCEPTED: arguments.accepted_at,
        ReportedStatus.PRINTED: arguments.printed_at,
        ReportedStatus.PAID: arguments.paid_at,
    }
    return times.get(reported, UNSET)


def _extra_members(arguments: OrderReportRequest, reported: ReportedStatus) -> Mapping[str, object]:
    """Return the additional members of a report: `paymentMethod`, and `reason` except for a payment."""
    word_reported = {
        "paymentMethod": _truncated(arguments.payment_method),
        "reason": _truncated(arguments.reason),
    }
    if reported is ReportedStatus.PAID:
        del word_reported["reason"]
    return {name: text for name, text in word_reported.items() if text is not None}


def _truncated(text: str | Unset | None) -> str | None:
    """Return the first 500 characters of a text; None for an empty or absent text."""
    return text[:_LONGEST_TEXT] if text else None


def _unset_to_none(count: int | Unset | None) -> int | None:
    return None if count is UNSET else count


def _moment(word_reported: object, tenant: Tenant) -> datetime | None:
    """Return a reported time, in the shop's time zone by default; None if it is not readable."""
    try:
        read = (
            None
            if word_reported is UNSET or word_reported is None
            else point_in_time(word_reported, zone(tenant.timezone))
        )
    except NotCoercible:
        return None
    return None if read is None else datetime.fromisoformat(read)
