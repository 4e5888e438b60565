"""Audit checks of orders, their events and print states, and of the tills' daily reports."""

from __future__ import annotations

from typing import Final

from posd.store.audit import AuditCheck

_COLUMNS: Final = """
    SELECT concat('pos_orders ', o.order_id), CASE
               WHEN o.snapshot ->> 'orderId' IS DISTINCT FROM o.order_id
                   THEN 'its snapshot is of another order'
               WHEN o.snapshot ->> 'status' IS DISTINCT FROM o.status
                   THEN concat('is ', o.status, ', and ', o.snapshot ->> 'status', ' in its snapshot')
               WHEN o.snapshot ->> 'version' IS DISTINCT FROM o.version::text
                   THEN concat('has version ', o.version, ', and ', o.snapshot ->> 'version',
                               ' in its snapshot')
               WHEN o.snapshot ->> 'paymentStatus' IS DISTINCT FROM o.payment_status
                   THEN concat('has payment status ', o.payment_status, ', and ',
                               o.snapshot ->> 'paymentStatus', ' in its snapshot')
               WHEN count(*) OVER (PARTITION BY o.order_id) > 1 THEN 'is there twice'
           END
      FROM {pos_orders} AS o ORDER BY o.created_at, o.order_id
"""
# Positions of pruned events cannot be checked. The events that are still in the log must agree.
_POSITIONS: Final = """
    SELECT concat('pos_orders ', coalesce(o.order_id, e.order_id)), CASE
               WHEN o.order_id IS NULL
                   THEN concat('is not there, and the event of seq ', e.last, ' is about it')
               WHEN (o.first_seq IS NULL) <> (o.last_seq IS NULL)
                   THEN 'has one of first_seq and last_seq without the other'
               WHEN o.first_seq > o.last_seq
                   THEN concat('first_seq ', o.first_seq, ' is after last_seq ', o.last_seq)
               WHEN o.last_seq > h.last_seq
                   THEN concat('last_seq ', o.last_seq, ' is after the head, which is at ', h.last_seq)
               WHEN e.last IS NOT NULL AND o.last_seq IS DISTINCT FROM e.last
                   THEN concat('last_seq is ', coalesce(o.last_seq::text, 'missing'),
                               ', and its last event has seq ', e.last)
               WHEN e.last IS NULL AND o.last_seq > h.pruned_seq
                   THEN concat('the event of last_seq ', o.last_seq, ' is not about it')
               WHEN o.first_seq > h.pruned_seq AND o.first_seq IS DISTINCT FROM e.first
                   THEN concat('first_seq is ', o.first_seq, ', and its first event has seq ', e.first)
               WHEN e.first < o.first_seq
                   THEN concat('first_seq is ', o.first_seq, ', and its first event has seq ', e.first)
           END
      FROM {pos_orders} AS o
      FULL JOIN (SELECT v.event_data ->> 'orderId' AS order_id, min(v.seq) AS first, max(v.seq) AS last
                   FROM {pos_events} AS v
                  WHERE v.event_type IN ('new_order', 'order_updated') GROUP BY 1) AS e
        ON e.order_id = o.order_id
      JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = %(tenant)s
     ORDER BY coalesce(o.last_seq, e.last)
"""
# An event that is too large for tills is stored as failed, without content and position, but the order has
# its content. So a snapshot may be newer than the order's last event if an event failed after it.
_SNAPSHOTS: Final = """
    SELECT concat('pos_orders ', o.order_id), CASE
               WHEN e.event_data::text = o.snapshot::text
                 OR e.event_data ->> 'orderId' IS DISTINCT FROM o.order_id THEN NULL
               WHEN e.event_data ->> 'version' IS DISTINCT FROM o.version::text
                   THEN CASE WHEN NOT EXISTS (SELECT FROM {pos_unsequenced} AS f
                                               WHERE f.id > e.id AND f.failure IS NOT NULL)
                             THEN concat('has version ', o.version, ', and its last event, of seq ', e.seq,
                                         ', has ', e.event_data ->> 'version') END
               WHEN e.event_data::jsonb - ARRAY['previousStatus', 'updatedAt'] <> o.snapshot::jsonb
                   THEN concat('its snapshot is not what its last event, of seq ', e.seq, ', has told')
           END
      FROM {pos_orders} AS o JOIN {pos_events} AS e ON e.seq = o.last_seq
     ORDER BY o.last_seq
"""
_PRINTING: Final = """
    SELECT concat('pos_orders ', o.order_id), CASE
               WHEN o.print_status NOT IN ('pending', 'sent_to_pos', 'printed', 'failed')
                   THEN concat('has print status ', o.print_status)
               WHEN (o.print_status = 'printed') <> (o.printed_at IS NOT NULL)
                   THEN concat('is ', o.print_status, ', and has ',
                               CASE WHEN o.printed_at IS NULL THEN 'no time' ELSE 'a time' END,
                               ' at which it was printed')
               WHEN o.received_at IS NULL AND (o.print_status IN ('printed', 'failed')
                       OR coalesce(o.accepted_at, o.printed_at, o.paid_at) IS NOT NULL)
                   THEN 'a till has reported about it, and received_at is missing'
               WHEN o.print_status = 'pending' AND coalesce(o.received_at, o.pushed_at) IS NOT NULL
                   THEN 'is pending, and was sent to a till'
               WHEN o.print_status = 'sent_to_pos' AND coalesce(o.received_at, o.pushed_at) IS NULL
                   THEN 'is sent_to_pos, and was never sent'
           END
      FROM {pos_orders} AS o ORDER BY o.created_at, o.order_id
"""
_TERMINALS: Final = """
    SELECT concat('pos_order_terminals ', t.order_id, ' of ', t.device_id), CASE
               WHEN o.order_id IS NULL THEN 'there is no such order'
               WHEN o.received_at IS NULL THEN 'has the order, whose received_at is missing'
               WHEN t.printed_at IS NOT NULL AND o.printed_at IS NULL
                   THEN 'has printed the order, which is not printed'
               WHEN t.accepted_at IS NOT NULL AND o.accepted_at IS NULL
                   THEN 'has accepted the order, which is not accepted'
               WHEN count(*) OVER (PARTITION BY t.order_id, t.device_id) > 1 THEN 'is there twice'
           END
      FROM {pos_order_terminals} AS t
      LEFT JOIN {pos_orders} AS o ON o.order_id = t.order_id
     ORDER BY t.received_at, t.order_id, t.device_id
"""
_REPORTS: Final = """
    SELECT concat('pos_daily_reports of ', r.report_date), CASE
               WHEN r.revision IS DISTINCT FROM 1 + a.kept
                   THEN concat('is revision ', r.revision, ', and ', a.kept, ' before it are kept')
               WHEN count(*) OVER (PARTITION BY r.report_date) > 1 THEN 'is there twice'
           END
      FROM {schema}.pos_daily_reports AS r CROSS JOIN LATERAL (
            SELECT count(*) AS kept FROM {schema}.pos_daily_report_amendments AS a
             WHERE a.report_date = r.report_date) AS a
     ORDER BY r.report_date
"""
_AMENDMENTS: Final = """
    SELECT concat('pos_daily_report_amendments of ', a.report_date, ', revision ', a.revision), CASE
               WHEN r.report_date IS NULL THEN 'there is no report of that day'
               WHEN a.revision < 1 OR a.revision >= r.revision
                   THEN concat('the report of that day is revision ', r.revision)
               WHEN count(*) OVER (PARTITION BY a.report_date, a.revision) > 1 THEN 'is there twice'
           END
      FROM {schema}.pos_daily_report_amendments AS a
      LEFT JOIN {schema}.pos_daily_reports AS r ON r.report_date = a.report_date
     ORDER BY a.report_date, a.revision
"""

CHECKS: Final = (
    AuditCheck("orders", _COLUMNS),
    AuditCheck("order positions", _POSITIONS),
    AuditCheck("snapshots", _SNAPSHOTS),
    AuditCheck("printing", _PRINTING),
    AuditCheck("order terminals", _TERMINALS),
    AuditCheck("reports", _REPORTS),
    AuditCheck("amendments", _AMENDMENTS),
)
