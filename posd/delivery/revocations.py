"""Who of those that are connected has to go, and what they are told."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import frozen

from posd.database.link import Session
from posd.store import credentials, replay
from posd.values import DISABLED, DISCONNECTED, REVOKED, Closing, TenantId, Terminal


@frozen
class Dismissals:
    """Keys that are valid no more, and devices that have to go though their key is."""

    _ended: Collection[int]
    _devices: Mapping[tuple[TenantId, str | None], Closing]

    def __bool__(self) -> bool:
        """Whether any terminal may have to go."""
        return bool(self._ended or self._devices)

    def of(self, terminal: Terminal) -> Closing | None:
        """Why a terminal has to go; None if it may stay."""
        if terminal.principal.key_id in self._ended:
            return REVOKED
        return self._devices.get((terminal.tenant.id, terminal.device_id))


async def find(
    session: Session, keys: Collection[int], tenants: Collection[TenantId]
) -> Dismissals:
    """Look at these keys, and at the devices of these tenants.

    A device has to go when it was disabled, and when it is to come for events that it has had.
    """
    devices: dict[tuple[TenantId, str | None], Closing] = {}
    if tenants:
        for device in await replay.wished(session, tenants):
            devices[device] = DISCONNECTED
        for device in await credentials.disabled(session, tenants):
            devices[device] = DISABLED
    return Dismissals(await credentials.ended(session, keys) if keys else (), devices)
