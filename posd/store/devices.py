"""Heartbeats that terminals send by REST."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.values import TenantId

# coalesce() keeps the stored value of a member that the heartbeat does not have.
_HEARTBEAT: Final = """
    INSERT INTO dinedesk_main.pos_devices AS d
        (tenant_id, device_id, last_seen_at, status, pending_acks, pending_orders, last_print_at, app_version)
    SELECT %(tenant)s, %(device)s, now(), %(status)s, %(acks)s, %(orders)s, %(printed)s, %(version)s
     WHERE EXISTS (SELECT FROM dinedesk_main.pos_devices
                    WHERE tenant_id = %(tenant)s AND device_id = %(device)s)
        OR (SELECT count(*) FROM dinedesk_main.pos_devices WHERE tenant_id = %(tenant)s) < %(most)s
    ON CONFLICT (tenant_id, device_id) DO UPDATE
       SET last_seen_at = excluded.last_seen_at,
           status = coalesce(excluded.status, d.status),
           pending_acks = coalesce(excluded.pending_acks, d.pending_acks),
           pending_orders = coalesce(excluded.pending_orders, d.pending_orders),
           last_print_at = coalesce(excluded.last_print_at, d.last_print_at),
           app_version = coalesce(excluded.app_version, d.app_version)
    RETURNING true
"""


@frozen
class HeartbeatReport:
    """The members of a heartbeat; None leaves the stored value unchanged."""

    status: str | None = None
    pending_acks: int | None = None
    pending_orders: int | None = None
    last_print_at: datetime | None = None
    app_version: str | None = None


_SILENT: Final = HeartbeatReport()


async def record_heartbeat(
    executor: Executor,
    tenant_id: TenantId,
    device_id: str,
    most_devices: int,
    beat: HeartbeatReport = _SILENT,
) -> bool:
    """Store a heartbeat. An unknown device is registered; its cursor is created when it connects.

    Return False if the device is unknown and the tenant has `most_devices` devices already.
    """
    values = {
        "tenant": tenant_id,
        "device": device_id,
        "most": most_devices,
        "status": beat.status,
        "acks": beat.pending_acks,
        "orders": beat.pending_orders,
        "printed": beat.last_print_at,
        "version": beat.app_version,
    }
    return bool(await executor.query(_HEARTBEAT, values))
