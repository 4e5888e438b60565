"""What the log and the metrics are told of what was published, left out and failed.

Lines name the tenant and the order. They have no other content of an event.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from attrs import define, field
from twisted.logger import Logger, LogLevel

from posd.events.orders import GONE, OLD, OVER
from posd.monitoring.counters import Counters
from posd.publishing import batch
from posd.publishing.publication import PublicationRequest
from posd.publishing.transaction import TransactionOutcome
from posd.store import sequencing as numbering
from posd.values import TenantId

_MOST_LISTED: Final = 5
"""How many orders a line names: a bulk update of a shop's table leaves out thousands."""
_LOGGED_REASONS: Final = (OVER, OLD, GONE)
"""Reasons that have a line. The others are ordinary: a change that says nothing new, a shop's own till."""


@define(eq=False)
class PublishingLog:
    """Reports what the sequencer did. `name_of` gives a tenant's name for the log."""

    counters: Counters
    name_of: Callable[[TenantId], str]
    _missing_columns: dict[TenantId, frozenset[str]] = field(init=False, factory=dict)
    """Tenants of which it was logged that columns are missing, and those."""
    _log = Logger()

    def committed(self, outcome: TransactionOutcome, seconds: float) -> None:
        """A transaction of the sequencer was committed after so many seconds."""
        if outcome.taken or outcome.published:
            self.counters.batch(seconds)
        for source, count in outcome.published.items():
            self.counters.published(source, count)
        for entry in outcome.failed:
            self._log_failed(entry)
        for entry in outcome.warned:
            self._log_warned(entry)
        for tenant, order_id in outcome.reused:
            self._log.warn(
                "an order id was used again: tenant={tenant} order={order}. The new order is published as"
                " new_order. A till that knows the id may take it for the earlier order: do not reuse ids",
                tenant=tenant,
                order=order_id,
            )
        self._log_left_out(outcome.left_out)
        for tenant_id, columns in outcome.missing_columns.items():
            self._log_missing_columns(tenant_id, columns)

    def rejected(self, row: numbering.OutboxRow, reason: str) -> None:
        """A row of the outbox was logged as failed, since it cannot be published."""
        self._log_failed(batch.RejectedRow(row, reason, about=batch.order_id_of(row)).entry(0))

    def unreadable(
        self, tenant_id: TenantId, order_id: str | None, reason: str, seconds: float
    ) -> None:
        """Orders of a tenant cannot be read for now, all of them or one."""
        self._log.error(
            "{orders} of tenant {tenant} cannot be read: {reason}. posd tries again in {seconds:.0f} s"
            " and publishes what needs no reading meanwhile. `posctl doctor` says what was changed",
            orders="the orders" if order_id is None else f"order {order_id[:64]}",
            tenant=self.name_of(tenant_id),
            reason=reason,
            seconds=seconds,
        )

    def tenant_excluded(self, tenant_id: TenantId, reason: str, seconds: float) -> None:
        """A tenant's events cannot be numbered, so it is left out for a while."""
        self._log.error(
            "tenant {tenant} is left out for {seconds:.0f} s, since its events cannot be numbered: {reason}."
            " They wait in the outbox. `posctl doctor` names what was changed in its tables",
            tenant=self.name_of(tenant_id),
            seconds=seconds,
            reason=reason,
        )

    def delivery_failed(self, tenant_id: TenantId) -> None:
        """Events were committed, and handing them to the channels has raised the present exception."""
        self._log.failure(
            "events of tenant {tenant} were published and not handed to its connections; they are read from"
            " the log within a second",
            tenant=self.name_of(tenant_id),
        )

    def refused(self, request: PublicationRequest, error: Exception) -> None:
        """A publisher's request failed in the database."""
        order_ids = [
            item.partition_key[1] for item in request.items if item.partition_key[1] is not None
        ]
        self._log.error(
            "a publication of tenant {tenant} was refused: {error}; orders: {orders}",
            tenant=self.name_of(request.tenant_id),
            error=error,
            orders=_first_ids(order_ids),
        )

    def _log_failed(self, entry: numbering.LogEntry) -> None:
        self.counters.events_failed(1)
        self._log.error(
            "an event of tenant {tenant} failed and goes to no till: {reason}; type {event_type},"
            " order {order}. It is in pos_sync_logs of the tenant.",
            tenant=self.name_of(entry.tenant_id),
            event_type=entry.type,
            order=entry.about or entry.order_id or "unknown",
            reason=entry.failure,
        )

    def _log_warned(self, entry: numbering.LogEntry) -> None:
        for code, count in Counter(each.code for each in entry.warnings).items():
            self.counters.warned(code, count)
        self._log.info(
            "an event of tenant {tenant} was published with values that were repaired or not read:"
            " {codes}; type {event_type}, order {order}",
            tenant=self.name_of(entry.tenant_id),
            event_type=entry.type,
            order=entry.order_id or "none",
            codes=", ".join(sorted({each.code for each in entry.warnings})),
        )

    def _log_missing_columns(self, tenant_id: TenantId, columns: frozenset[str]) -> None:
        """Log it once when columns of a shop's tables have gone."""
        if columns == self._missing_columns.get(tenant_id, frozenset()):
            return
        self._missing_columns[tenant_id] = columns
        if columns:
            self._log.error(
                "columns of the tables of tenant {tenant} were dropped or renamed: {columns}. Its orders are"
                " published without their values. Put the columns back, or run `posctl adopt {tenant}` if the"
                " change is meant",
                tenant=self.name_of(tenant_id),
                columns=", ".join(sorted(columns)),
            )

    def _log_left_out(self, left_out: Sequence[batch.SkippedOrder]) -> None:
        orders: defaultdict[tuple[TenantId, str], list[str]] = defaultdict(list)
        for each in left_out:
            orders[each.tenant_id, each.reason].append(each.order_id)
        for (tenant_id, reason), ids in orders.items():
            self.counters.left_out(reason, len(ids))
            self._log.emit(
                LogLevel.info if reason in _LOGGED_REASONS else LogLevel.debug,
                "{count} orders of tenant {tenant} became no event ({reason}): {orders}",
                count=len(ids),
                tenant=self.name_of(tenant_id),
                reason=reason,
                orders=_first_ids(ids),
            )


def _first_ids(ids: Sequence[str]) -> str:
    """The first few ids, each cut to what is shown of it."""
    shown = ", ".join(each[:64] for each in ids[:_MOST_LISTED])
    return f"{shown}, …" if len(ids) > _MOST_LISTED else shown or "none"
