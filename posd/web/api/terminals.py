"""What terminals report by REST: how printing goes, and that they are there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from attrs import define
from msgspec import Meta

from posd.database.pool import Database
from posd.delivery.terminal_reports import Terminals
from posd.errors import BadRequest, Forbidden
from posd.events.coercion import Unreadable, moment, word
from posd.events.print_status import WORD, Report, Said, meaning
from posd.events.timezones import zone
from posd.protocol import literals
from posd.security.auth import Authenticator
from posd.store.devices import Heartbeat
from posd.values import Tenant
from posd.web.http.call import device_name
from posd.web.http.models import (
    UNSET,
    Identity,
    Moment,
    Success,
    Taken,
    Unset,
)
from posd.web.http.operations import TILLS, Operation, Refused, TenantAsk, given
from posd.web.http.requests import Answer

_LONGEST_TEXT: Final = 500

Told = Annotated[
    Any, Meta(description="A time of RFC 3339. A value that posd cannot read means now.")
]
Free = Annotated[str, Meta(description="posd stores the first 500 characters.")]
Count = Annotated[int, Meta(ge=0, lt=2**31)]


class OrderReportTaken(Taken, frozen=True):
    """A report of a till about an order."""

    order_id: Identity
    status: Annotated[str, Meta(max_length=100)] | Unset | None = UNSET
    device_id: str | Unset | None = UNSET
    reason: Free | Unset | None = UNSET
    received_at: Told = UNSET
    accepted_at: Told = UNSET
    printed_at: Told = UNSET
    paid_at: Told = UNSET
    payment_method: Free | Unset | None = UNSET


class OrderReportGiven(Success, frozen=True):
    """The present status of the order."""

    order_id: str
    print_status: str


class HeartbeatTaken(Taken, frozen=True):
    """The state of a terminal."""

    device_id: str | Unset | None = UNSET
    status: Free | Unset | None = UNSET
    pending_acks_count: Count | Unset | None = UNSET
    pending_orders_count: Count | Unset | None = UNSET
    last_print_at: Told = UNSET
    app_version: Free | Unset | None = UNSET


class HeartbeatGiven(Success, frozen=True):
    """The time at which posd received the heartbeat."""

    timestamp: Moment


_DEVICE: Final = (
    Refused(400, "invalid_device", "`deviceId` is not a valid name."),
    Refused(403, "device_mismatch", "`deviceId` is not the device of the key or of the header."),
)
_UNKNOWN: Final = Refused(404, "unknown_order", "There is no order of this id.")


@define(eq=False)
class TerminalEndpoints:
    """The endpoints. Whatever is reported may be reported again, with the same answer."""

    authenticator: Authenticator
    terminals: Terminals
    database: Database

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
                {200: HeartbeatGiven},
                takes=HeartbeatTaken,
                refusals=(
                    *_DEVICE,
                    Refused(429, "too_many_devices", "The tenant already has 1000 devices."),
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
            {200: OrderReportGiven},
            takes=OrderReportTaken,
            refusals=(*_DEVICE, _UNKNOWN),
            tag="Orders",
            example={"orderId": "A-4", "status": "printed" if name == "print" else name},
        )

    async def received(self, ask: TenantAsk[OrderReportTaken]) -> Answer:
        """Whatever its `status` is, an order that a till reports is in the till."""
        return await self._reported(ask, "received")

    async def accepted(self, ask: TenantAsk[OrderReportTaken]) -> Answer:
        """Without a `status` it was accepted."""
        return await self._reported(ask, _word(ask.taken.status) or "accepted")

    async def printed(self, ask: TenantAsk[OrderReportTaken]) -> Answer:
        told = _word(ask.taken.status)
        if told is None:
            raise BadRequest(
                "status is missing.", code="missing_field", details={"field": "status"}
            )
        return await self._reported(ask, told)

    async def heartbeat(self, ask: TenantAsk[HeartbeatTaken]) -> Answer:
        beat = ask.taken
        device_id = await self._terminal(ask, beat.device_id)
        if device_id is None:
            raise BadRequest(
                "deviceId is missing.", code="missing_field", details={"field": "deviceId"}
            )
        heard = Heartbeat(
            status=_cut(beat.status),
            pending_acks=_given(beat.pending_acks_count),
            pending_orders=_given(beat.pending_orders_count),
            last_print_at=_moment(beat.last_print_at, ask.tenant),
            app_version=_cut(beat.app_version),
        )
        await self.terminals.heartbeat(ask.tenant, device_id, heard)
        return given(HeartbeatGiven(timestamp=literals.timestamp(datetime.now(UTC))))

    async def _reported(self, ask: TenantAsk[OrderReportTaken], told: str) -> Answer:
        taken = ask.taken
        device_id = await self._terminal(ask, taken.device_id)
        said = meaning(told)
        at = _moment(_when(taken, said), ask.tenant)
        report = Report(taken.order_id, said, at, _cut(taken.reason))
        status = await self.terminals.report(
            ask.tenant, device_id, report, told, _besides(taken, said)
        )
        return given(OrderReportGiven(order_id=taken.order_id, print_status=status.value))

    async def _terminal(self, ask: TenantAsk[Any], named: str | Unset | None) -> str | None:
        """The terminal that reports: that of the key or the header, which the body may repeat.

        Raises `BadRequest` and `Forbidden`.
        """
        if not named:
            return ask.device_id
        name = device_name(named, "deviceId")
        if ask.device_id not in (None, name):
            raise Forbidden(
                "deviceId is not the device of the key or of the header.", code="device_mismatch"
            )
        if ask.device_id is None:
            await self.authenticator.at_tenant(
                ask.tenant.slug, ask.call.key, name, ask.call.address
            )
        return name


def _word(status: str | Unset | None) -> str | None:
    """A till's word in the contract's spelling. Raises `BadRequest` for what is none."""
    if not status:
        return None
    told = word(status)
    if told is not None and WORD.fullmatch(told) is None:
        raise BadRequest(
            "status must be 1 to 30 of a-z and _.",
            code="invalid_field",
            details={"field": "status"},
        )
    return told


def _when(taken: OrderReportTaken, said: Said) -> object:
    """What a till says of the time of what it reports."""
    times = {
        Said.RECEIVED: taken.received_at,
        Said.ACCEPTED: taken.accepted_at,
        Said.PRINTED: taken.printed_at,
        Said.PAID: taken.paid_at,
    }
    return times.get(said, UNSET)


def _besides(taken: OrderReportTaken, said: Said) -> Mapping[str, object]:
    """What a till says that is to be known of a payment, or kept in the log."""
    told = {"paymentMethod": _cut(taken.payment_method), "reason": _cut(taken.reason)}
    if said is Said.PAID:
        del told["reason"]
    return {name: text for name, text in told.items() if text is not None}


def _cut(text: str | Unset | None) -> str | None:
    """As much of a text as is kept; None for none."""
    return text[:_LONGEST_TEXT] if text else None


def _given(count: int | Unset | None) -> int | None:
    return None if count is UNSET else count


def _moment(told: object, tenant: Tenant) -> datetime | None:
    """A point in time by the shop's clock; None for what is none."""
    try:
        read = None if told is UNSET or told is None else moment(told, zone(tenant.timezone))
    except Unreadable:
        return None
    return None if read is None else datetime.fromisoformat(read)
