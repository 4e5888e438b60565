"""Limits of open connections: in total, per tenant and per device."""

from __future__ import annotations

from collections import Counter
from typing import Final

from attrs import define, field

from posd.errors import TooManyRequests, Unavailable
from posd.values import TenantId

MOST_DEVICES: Final = 1000
"""The most named terminals of a tenant."""

_CONNECTION_RETRY: Final = 60
"""`Retry-After` in seconds. A silent peer is dropped within about that time."""
_OVERLOAD_RETRY: Final = 10


@define(eq=False)
class ConnectionLimits:
    """Counts open connections: in total, per tenant and per device.

    A device may have four connections. A till opens a second one to test its settings, and a connection
    that the network has lost stays open until its heartbeat fails.
    """

    total: int
    per_tenant: int
    per_device: int = 4
    _open: int = field(init=False, default=0)
    _tenant_counts: Counter[TenantId] = field(init=False, factory=Counter)
    _device_counts: Counter[tuple[TenantId, str]] = field(init=False, factory=Counter)

    def admit(self, tenant_id: TenantId, device_id: str | None) -> ConnectionLease:
        """Count a connection until its lease is released.

        Raises `TooManyRequests` if the device or the tenant has reached its limit, and `Unavailable` if
        the node has. A connection without a device counts for the tenant only.
        """
        device = None if device_id is None else (tenant_id, device_id)
        if device is not None and self._device_counts[device] >= self.per_device:
            raise _too_many_connections("This terminal has too many connections.")
        if self._tenant_counts[tenant_id] >= self.per_tenant:
            raise _too_many_connections("This tenant has too many connections.")
        if self._open >= self.total:
            message = "The server has as many connections as it can serve."
            raise Unavailable(message, code="overloaded", retry_after=_OVERLOAD_RETRY)
        self._count(tenant_id, device, 1)
        return ConnectionLease(self, tenant_id, device)

    @property
    def open(self) -> int:
        """The number of open connections."""
        return self._open

    def tenant_count(self, tenant_id: TenantId) -> int:
        """Return the number of open connections of a tenant."""
        return self._tenant_counts[tenant_id]

    def device_count(self, tenant_id: TenantId, device_id: str) -> int:
        """Return the number of open connections of a device."""
        return self._device_counts[tenant_id, device_id]

    def _count(self, tenant_id: TenantId, device: tuple[TenantId, str] | None, change: int) -> None:
        self._open += change
        self._tenant_counts[tenant_id] += change
        if not self._tenant_counts[tenant_id]:
            del self._tenant_counts[tenant_id]
        if device is not None:
            self._device_counts[device] += change
            if not self._device_counts[device]:
                del self._device_counts[device]


@define(eq=False)
class ConnectionLease:
    """The count of one open connection."""

    _connections: ConnectionLimits | None
    _tenant_id: TenantId
    _device: tuple[TenantId, str] | None

    def release(self) -> None:
        """Stop counting the connection. A second call does nothing."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections._count(self._tenant_id, self._device, -1)


def _too_many_connections(message: str) -> TooManyRequests:
    return TooManyRequests(message, code="too_many_connections", retry_after=_CONNECTION_RETRY)
