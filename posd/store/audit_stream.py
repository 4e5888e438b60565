"""Audit checks of a tenant's stream: its head, its names, its log and the cursors of terminals."""

from __future__ import annotations

from typing import Final

from posd.store.audit import AuditCheck

_HEAD: Final = """
    SELECT 'pos_heads', CASE
               WHEN h.tenant_id IS NULL THEN 'the tenant has no head'
               WHEN least(h.last_seq, h.pruned_seq, h.sent_seq, h.received_seq) < 0
                   THEN 'a position is negative'
               WHEN h.pruned_seq > h.last_seq
                   THEN concat('pruned_seq ', h.pruned_seq, ' is after last_seq ', h.last_seq)
               WHEN h.sent_seq > h.last_seq
                   THEN concat('sent_seq ', h.sent_seq, ' is after last_seq ', h.last_seq)
               WHEN h.received_seq > h.last_seq
                   THEN concat('received_seq ', h.received_seq, ' is after last_seq ', h.last_seq)
               WHEN EXISTS (SELECT FROM dinedesk_main.pos_heads AS o
                             WHERE o.stream_id = h.stream_id AND o.tenant_id <> h.tenant_id)
                   THEN 'another tenant''s stream has the same name'
           END
      FROM dinedesk_main.tenants AS t LEFT JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = t.id
     WHERE t.id = %(tenant)s
"""
# The position after the head is added to the positions of the log, so that events missing at the end are
# found as a gap.
_GAPS: Final = """
    WITH head AS (SELECT * FROM dinedesk_main.pos_heads WHERE tenant_id = %(tenant)s)
    SELECT concat('seq ', g.before + 1, CASE WHEN g.seq > g.before + 2 THEN concat(' to ', g.seq - 1) END),
           'is not in the log'
      FROM (SELECT p.seq, lag(p.seq, 1, h.pruned_seq) OVER (ORDER BY p.seq) AS before
              FROM head AS h CROSS JOIN LATERAL (
                SELECT e.seq FROM {pos_events} AS e
                 WHERE e.seq > h.pruned_seq AND e.seq <= h.last_seq
                 UNION ALL SELECT h.last_seq + 1
              ) AS p) AS g
     WHERE g.seq > g.before + 1 ORDER BY g.seq
"""
_NAMES: Final = """
    SELECT concat('pos_stream_epochs ', e.stream_id), CASE
               WHEN e.ended_seq IS NULL AND e.stream_id <> h.stream_id
                   THEN 'has not ended, and is not the present name'
               WHEN e.ended_seq IS NOT NULL AND e.stream_id = h.stream_id
                   THEN 'has ended, and is the present name'
               WHEN least(e.began_seq, e.ended_seq) < 0 THEN 'a position is negative'
               WHEN greatest(e.began_seq, e.ended_seq) > h.last_seq
                   THEN concat('has the position ', greatest(e.began_seq, e.ended_seq),
                               ', which is after the head, which is at ', h.last_seq)
           END
      FROM dinedesk_main.pos_stream_epochs AS e JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
     WHERE e.tenant_id = %(tenant)s
    UNION ALL
    SELECT 'pos_heads', 'the present name is not in pos_stream_epochs' FROM dinedesk_main.pos_heads AS h
     WHERE h.tenant_id = %(tenant)s
       AND NOT EXISTS (SELECT FROM dinedesk_main.pos_stream_epochs AS e
                        WHERE e.tenant_id = h.tenant_id AND e.stream_id = h.stream_id)
"""
# `waiting` is counted from rows. The statements that acknowledge and expire events maintain the other two
# counters (docs/data-model.md).
_BALANCE: Final = """
    SELECT 'pos_heads', CASE WHEN h.last_seq <> h.acknowledged + h.expired + e.waiting
               THEN concat(h.last_seq, ' were published, and ', h.acknowledged, ' acknowledged, ', h.expired,
                           ' expired and ', e.waiting, ' waiting are ',
                           h.acknowledged + h.expired + e.waiting)
           END
      FROM dinedesk_main.pos_heads AS h CROSS JOIN LATERAL (
            SELECT count(*) AS waiting FROM {pos_events} AS e WHERE e.seq > h.received_seq) AS e
     WHERE h.tenant_id = %(tenant)s
"""
_EVENTS: Final = """
    SELECT concat('pos_events id ', e.id, ', seq ', e.seq), CASE
               WHEN e.seq > h.last_seq THEN concat('is after the head, which is at ', h.last_seq)
               WHEN e.seq <= 0 THEN 'is no position'
               WHEN e.seq <= h.pruned_seq THEN concat('is pruned, up to ', h.pruned_seq, ', and still there')
               WHEN count(*) OVER (PARTITION BY e.seq) > 1 THEN 'another event has this position too'
           END
      FROM {pos_events} AS e JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = %(tenant)s
     ORDER BY e.seq, e.id
"""
_STATUSES: Final = """
    SELECT concat('pos_sync_logs id ', coalesce(e.id, v.id)), CASE
               WHEN e.id IS NULL THEN 'is of no event'
               WHEN v.id IS NULL THEN 'is not there, and the event is'
               WHEN v.status IS DISTINCT FROM e.status
                   THEN concat('says ', coalesce(v.status, 'nothing'), ', and it is ', e.status)
           END
      FROM (SELECT e.id,
                   CASE WHEN e.seq IN (SELECT n.seq FROM {pos_nacks} AS n) THEN 'failed'
                        WHEN e.seq <= h.received_seq THEN 'success'
                        WHEN e.seq <= h.sent_seq THEN 'broadcast'
                        ELSE 'pending' END AS status
              FROM {pos_events} AS e
              JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = %(tenant)s
             UNION ALL
            SELECT u.id, CASE WHEN u.failure IS NULL THEN 'received' ELSE 'failed' END
              FROM {pos_unsequenced} AS u) AS e
      FULL JOIN (SELECT v.id, v.status FROM {schema}.pos_sync_logs AS v) AS v ON v.id = e.id
     ORDER BY coalesce(e.id, v.id)
"""
_CURSORS: Final = """
    SELECT concat('pos_cursors of ', c.device_id), CASE
               WHEN d.device_id IS NULL THEN 'there is no such terminal'
               WHEN c.acked_seq < 0 THEN concat('position ', c.acked_seq, ' is negative')
               WHEN h.last_seq IS NULL OR c.acked_seq > h.last_seq
                   THEN concat('position ', c.acked_seq, ' is after the head, which is at ', h.last_seq)
               WHEN c.replay_after < 0 OR c.replay_after > h.last_seq
                   THEN concat('is to go back to ', c.replay_after, ', which is no position')
               WHEN count(*) OVER (PARTITION BY c.device_id) > 1 THEN 'the terminal has another cursor too'
           END
      FROM dinedesk_main.pos_cursors AS c
      LEFT JOIN dinedesk_main.pos_devices AS d
        ON d.tenant_id = c.tenant_id AND d.device_id = c.device_id
      LEFT JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = c.tenant_id
     WHERE c.tenant_id = %(tenant)s ORDER BY c.device_id
"""
# A till may send any number. Such a nack has no effect, but indicates a till that counts incorrectly.
_NACKS: Final = """
    SELECT concat('pos_nacks of ', n.device_id, ', seq ', n.seq),
           CASE WHEN n.seq < 1 OR n.seq > h.last_seq THEN 'there is no event of this position' END
      FROM {pos_nacks} AS n JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = %(tenant)s
     ORDER BY n.seq, n.device_id
"""

CHECKS: Final = (
    AuditCheck("head", _HEAD),
    AuditCheck("names", _NAMES),
    AuditCheck("gaps", _GAPS),
    AuditCheck("balance", _BALANCE),
    AuditCheck("events", _EVENTS),
    AuditCheck("statuses", _STATUSES),
    AuditCheck("cursors", _CURSORS),
    AuditCheck("nacks", _NACKS, warns=True),
)
