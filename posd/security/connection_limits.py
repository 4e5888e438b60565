"""How many connections may be open: in all, of each tenant, and of each of its devices."""

from __future__ import annotations

from collections import Counter
from typing import Final

from attrs import define, field

from posd.errors import TooManyRequests, Unavailable
from posd.values import TenantId

MOST_DEVICES: Final = 1000
"""Terminals with a name that a tenant may have."""

_CONNECTION_RETRY: Final = 60
"""Seconds until a place may be free: a peer that has gone silent is dropped within about that time."""
_OVERLOAD_RETRY: Final = 10


@define(eq=False)
class ConnectionLimits:
    """Counts the connections that are open: in all, of each tenant and of each of its devices.

    A device may have a few at once, since a till tests its connection beside the one it has, and
    since the network may have lost an old one without telling anybody.
    """

    total: int
    per_tenant: int
    per_device: int = 4
    _open: int = field(init=False, default=0)
    _tenant_counts: Counter[TenantId] = field(init=False, factory=Counter)
    _device_counts: Counter[tuple[TenantId, str]] = field(init=False, factory=Counter)

    def admit(self, tenant_id: TenantId, device_id: str | None) -> ConnectionLease:
        """Count one more connection, until its lease is released.

        Raises `TooManyRequests` if the device or the tenant has as many as it may have, and
        `Unavailable` if posd as a whole has. Without a device it counts for the tenant only.
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
        """How many connections there are."""
        return self._open

    def tenant_count(self, tenant_id: TenantId) -> int:
        """Tell how many connections a tenant has."""
        return self._tenant_counts[tenant_id]

    def device_count(self, tenant_id: TenantId, device_id: str) -> int:
        """Tell how many connections one of its devices has."""
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
    """One connection's place in the counts."""

    _connections: ConnectionLimits | None
    _tenant_id: TenantId
    _device: tuple[TenantId, str] | None

    def release(self) -> None:
        """Give the place back; a second time does nothing."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections._count(self._tenant_id, self._device, -1)


def _too_many_connections(message: str) -> TooManyRequests:
    return TooManyRequests(message, code="too_many_connections", retry_after=_CONNECTION_RETRY)
