"""Writes the log lines and counts the metrics of published, left out and failed events.

Log lines name the tenant and the order. They contain nothing else of an event.
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
"""The limit of order ids in a line: a bulk update of a shop's table can leave out thousands of orders."""
_LOGGED_REASONS: Final = (OVER, OLD, GONE)
"""The reasons with a line of level info. The other reasons are ordinary, and have level debug."""


@define(eq=False)
class PublishingLog:
    """Reports the work of the sequencer. `name_of` returns a tenant's name for the log."""

    counters: Counters
    name_of: Callable[[TenantId], str]
    _missing_columns: dict[TenantId, frozenset[str]] = field(init=False, factory=dict)
    """The missing columns that were logged, by tenant."""
    _log = Logger()

    def committed(self, outcome: TransactionOutcome, seconds: float) -> None:
        """Report a transaction that was committed after `seconds`."""
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
                " new_order. A till that knows the id may take the new order for the earlier one: do not"
                " reuse ids",
                tenant=tenant,
                order=order_id,
            )
        self._log_left_out(outcome.left_out)
        for tenant_id, columns in outcome.missing_columns.items():
            self._log_missing_columns(tenant_id, columns)

    def rejected(self, row: numbering.OutboxRow, reason: str) -> None:
        """Report a row of the outbox that cannot be published and was logged as failed."""
        self._log_failed(batch.RejectedRow(row, reason, about=batch.order_id_of(row)).entry(0))

    def unreadable(
        self, tenant_id: TenantId, order_id: str | None, reason: str, seconds: float
    ) -> None:
        """Report that the orders of a tenant, or one order, cannot be read for `seconds`."""
        self._log.error(
            "{orders} of tenant {tenant} cannot be read: {reason}. posd tries again in {seconds:.0f} s, and"
            " meanwhile publishes the events that need no read of the shop's tables. `posctl doctor` names"
            " what was changed in the tables",
            orders="the orders" if order_id is None else f"order {order_id[:64]}",
            tenant=self.name_of(tenant_id),
            reason=reason,
            seconds=seconds,
        )

    def tenant_excluded(self, tenant_id: TenantId, reason: str, seconds: float) -> None:
        """Report that a tenant's events cannot be numbered, and that the tenant is left out for `seconds`."""
        self._log.error(
            "tenant {tenant} is left out for {seconds:.0f} s, because its events cannot be numbered:"
            " {reason}. The events wait in the outbox. `posctl doctor` names what was changed in the tables",
            tenant=self.name_of(tenant_id),
            seconds=seconds,
            reason=reason,
        )

    def delivery_failed(self, tenant_id: TenantId) -> None:
        """Report the current exception, which a channel has raised when it received committed events."""
        self._log.failure(
            "events of tenant {tenant} were published, but posd failed to hand them to the tenant's"
            " connections; the connections read them from the log within a second",
            tenant=self.name_of(tenant_id),
        )

    def refused(self, request: PublicationRequest, error: Exception) -> None:
        """Report a request that failed in the database."""
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
            " order {order}. The event is in pos_sync_logs of the tenant",
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
        """Log once that adopted columns of a shop's tables are missing."""
        if columns == self._missing_columns.get(tenant_id, frozenset()):
            return
        self._missing_columns[tenant_id] = columns
        if columns:
            self._log.error(
                "columns of the tables of tenant {tenant} were dropped or renamed: {columns}. posd publishes"
                " the tenant's orders without their values. Restore the columns, or run"
                " `posctl adopt {tenant}` if the change is intended",
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
    """Return the first five ids, each cut to 64 characters."""
    shown = ", ".join(each[:64] for each in ids[:_MOST_LISTED])
    return f"{shown}, …" if len(ids) > _MOST_LISTED else shown or "none"
