"""Who of those that are connected has to go, and what they are told."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.store import credentials, replay
from posd.values import DISABLED, DISCONNECTED, REVOKED, CloseReason, TenantId, Terminal


@frozen
class Revocations:
    """Keys that are valid no more, and devices that have to go though their key is."""

    _ended_keys: Collection[int]
    _devices: Mapping[tuple[TenantId, str | None], CloseReason]

    def __bool__(self) -> bool:
        """Whether any terminal may have to go."""
        return bool(self._ended_keys or self._devices)

    def of(self, terminal: Terminal) -> CloseReason | None:
        """Why a terminal has to go; None if it may stay."""
        if terminal.principal.key_id in self._ended_keys:
            return REVOKED
        return self._devices.get((terminal.tenant.id, terminal.device_id))


async def find_revocations(
    executor: Executor, keys: Collection[int], tenants: Collection[TenantId]
) -> Revocations:
    """Look at these keys, and at the devices of these tenants.

    A device has to go when it was disabled, and when it is to come for events that it has had.
    """
    devices: dict[tuple[TenantId, str | None], CloseReason] = {}
    if tenants:
        for device in await replay.requested_replays(executor, tenants):
            devices[device] = DISCONNECTED
        for device in await credentials.disabled_devices(executor, tenants):
            devices[device] = DISABLED
    return Revocations(await credentials.invalid_keys(executor, keys) if keys else (), devices)
