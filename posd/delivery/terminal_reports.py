"""Stores the reports that terminals send by REST, about orders and about themselves.

All endpoints for these reports, of every API style, call this module.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, Protocol

from attrs import define, field
from twisted.logger import Logger

from posd.database.pool import Pool
from posd.errors import TooLarge, TooManyRequests, Unprocessable
from posd.events import normalise
from posd.events.order_transitions import unknown_order
from posd.events.print_status import PrintReport, ReportedStatus, meaning
from posd.protocol import jsontext
from posd.publishing.publication import Publication, PublicationResult
from posd.security.connection_limits import MOST_DEVICES
from posd.security.log_sampler import LogSampler
from posd.store import devices, orders
from posd.store import presence as presence_store
from posd.values import PrintStatus, Tenant, TenantId


class EventPublisher(Protocol):
    """The part of the sequencer that publishes an event."""

    async def publish(self, publication: Publication) -> PublicationResult: ...


class ReportMarks(Protocol):
    """Records that a tenant's tills have reported on orders. `posd.delivery.presence` implements it."""

    def reported(self, tenant_id: TenantId) -> None: ...


_RETRY_SECONDS: Final = 60
"""The `Retry-After` of a heartbeat that is refused."""


@define(eq=False)
class TerminalReports:
    """Stores print reports and heartbeats of terminals. Reports are idempotent."""

    database: Pool
    report_marks: ReportMarks
    sequencer: EventPublisher
    _sampler: LogSampler = field(factory=lambda: LogSampler(time.monotonic), init=False)
    _log = Logger()

    async def report(
        self,
        tenant: Tenant,
        device_id: str | None,
        report: PrintReport,
        reported_word: str,
        details: Mapping[str, object] | None = None,
    ) -> PrintStatus:
        """Store what a till reports about an order. Return the order's print status.

        `reported_word` is the status as the till wrote it. `details` has further members: the
        `paymentMethod` of a paid order, or the members that are logged for a status that posd does not
        know. Raises `NotFound`, and `Unavailable` if an order was paid and this cannot be published.
        """
        executor = self.database.of(tenant.id)
        if device_id is not None:
            # A report is not refused because the tenant has too many devices. Only the device is not
            # registered.
            await devices.record_heartbeat(executor, tenant.id, device_id, MOST_DEVICES)
        status = await orders.record_report(executor, tenant, report, device_id)
        if status is None:
            raise unknown_order()
        self.report_marks.reported(tenant.id)
        if report.said is ReportedStatus.PAID:
            await self._publish_paid(tenant, report.order_id, details or {})
        elif meaning(reported_word) is ReportedStatus.OTHER:
            body = jsontext.encode({"orderId": report.order_id, **(details or {})}).decode()
            await presence_store.insert_messages(
                executor, [(tenant.id, f"pos_{reported_word}", body, device_id)]
            )
        return status

    async def heartbeat(
        self, tenant: Tenant, device_id: str, beat: devices.HeartbeatReport
    ) -> None:
        """Store a heartbeat of a terminal. Raises `TooManyRequests` if the tenant has too many devices."""
        executor = self.database.of(tenant.id)
        if not await devices.record_heartbeat(executor, tenant.id, device_id, MOST_DEVICES, beat):
            raise TooManyRequests(
                "This tenant has too many devices.",
                code="too_many_devices",
                retry_after=_RETRY_SECONDS,
            )

    async def _publish_paid(
        self, tenant: Tenant, order_id: str, details: Mapping[str, object]
    ) -> None:
        """Publish to the other tills that an order was paid. Does nothing if that is known.

        The event has the means of payment, but not the time: a till that repeats its report sends another
        time.
        """
        data = {"orderId": order_id, "paymentStatus": "paid", **details}
        draft = normalise.draft("order_updated", data)
        try:
            await self.sequencer.publish(Publication(tenant.id, [draft]))
        except (TooLarge, Unprocessable) as refusal:
            # The payment time is stored all the same, and the till cannot correct the event.
            unsaid = self._sampler.take(tenant.id)
            if unsaid is not None:
                self._log.warn(
                    "the payment of an order was stored, but was not published to the other tills:"
                    " tenant={tenant} order={order} reason={reason!r} unsaid={unsaid}",
                    tenant=tenant.slug,
                    order=order_id,
                    reason=refusal.message,
                    unsaid=unsaid,
                )
