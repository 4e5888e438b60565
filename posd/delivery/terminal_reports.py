"""What terminals report by REST: about orders, and about themselves. Every face of it ends here."""

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
    """The sequencer."""

    async def publish(self, publication: Publication) -> PublicationResult: ...


class ReportMarks(Protocol):
    """Where it is noted that a tenant's tills have said something about orders (`posd.delivery.presence`)."""

    def reported(self, tenant_id: TenantId) -> None: ...


_RETRY_SECONDS: Final = 60


@define(eq=False)
class TerminalReports:
    """Takes reports. All of them may be repeated as often as anybody likes."""

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
        """Take what a till says about an order; the order's print status now.

        `reported_word` is the till's own for it, `details` what else is to be known: of an order that was
        paid its `paymentMethod`, of a word of the till's own what the log keeps. Raises `NotFound`,
        and `Unavailable` when an order was paid and that cannot be published.
        """
        executor = self.database.of(tenant.id)
        if device_id is not None:
            # A report is not refused because there are too many devices; only the name is not kept.
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
        """Note that a terminal is there. Raises `TooManyRequests` where there are too many."""
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
        """Publish that an order was paid, for the other tills; nothing if that is known.

        What was paid by which means is content, so it goes the way of all content. When it was is
        not: a till that repeats itself names another time.
        """
        data = {"orderId": order_id, "paymentStatus": "paid", **details}
        draft = normalise.draft("order_updated", data)
        try:
            await self.sequencer.publish(Publication(tenant.id, [draft]))
        except (TooLarge, Unprocessable) as refusal:
            # When it was paid is noted all the same, and the till can do nothing about this.
            unsaid = self._sampler.take(tenant.id)
            if unsaid is not None:
                self._log.warn(
                    "that an order was paid was not published to the other tills: tenant={tenant}"
                    " order={order} reason={reason!r} unsaid={unsaid}",
                    tenant=tenant.slug,
                    order=order_id,
                    reason=refusal.message,
                    unsaid=unsaid,
                )
