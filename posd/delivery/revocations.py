"""Finds the connected terminals that must be disconnected, and the close reason for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.store import credentials, replay
from posd.values import DISABLED, DISCONNECTED, REVOKED, CloseReason, TenantId, Terminal


@frozen
class Revocations:
    """Keys that are no longer valid, and devices that must disconnect although their key is valid."""

    _ended_keys: Collection[int]
    _devices: Mapping[tuple[TenantId, str | None], CloseReason]

    def __bool__(self) -> bool:
        """Whether a terminal may have to disconnect."""
        return bool(self._ended_keys or self._devices)

    def of(self, terminal: Terminal) -> CloseReason | None:
        """Return the reason why a terminal must disconnect, None if it may stay."""
        if terminal.principal.key_id in self._ended_keys:
            return REVOKED
        return self._devices.get((terminal.tenant.id, terminal.device_id))


async def find_revocations(
    executor: Executor, keys: Collection[int], tenants: Collection[TenantId]
) -> Revocations:
    """Check these keys, and the devices of these tenants.

    A device must disconnect if it was disabled, or if an operator has requested a replay for it.
    """
    devices: dict[tuple[TenantId, str | None], CloseReason] = {}
    if tenants:
        for device in await replay.requested_replays(executor, tenants):
            devices[device] = DISCONNECTED
        for device in await credentials.disabled_devices(executor, tenants):
            devices[device] = DISABLED
    return Revocations(await credentials.invalid_keys(executor, keys) if keys else (), devices)
