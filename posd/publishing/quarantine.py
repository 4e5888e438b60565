"""Tenants that are left out for a while, so that one shop's trouble does not become everybody's."""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

from posd.values import TenantId

_FIRST_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 60.0


class Aside:
    """Who is left out, and until when: a second at first, twice as long each time, up to a minute."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._until: dict[TenantId, tuple[float, float]] = {}

    def add(self, tenant_id: TenantId) -> float:
        """Leave a tenant out; for how many seconds."""
        _, before = self._until.get(tenant_id, (0.0, _FIRST_SECONDS / 2))
        seconds = min(before * 2, _LAST_SECONDS)
        self._until[tenant_id] = (self._clock.seconds() + seconds, seconds)
        return seconds

    def rest(self, tenant_id: TenantId, seconds: float) -> None:
        """Leave a tenant out for so long, without holding it against it."""
        until, before = self._until.get(tenant_id, (0.0, _FIRST_SECONDS / 2))
        self._until[tenant_id] = (max(until, self._clock.seconds() + seconds), before)

    def __contains__(self, tenant_id: TenantId) -> bool:
        until, _ = self._until.get(tenant_id, (0.0, 0.0))
        return until > self._clock.seconds()

    def troubled(self) -> list[TenantId]:
        """Tenants that are left out now because of trouble, and not for a rest."""
        time = self._clock.seconds()
        return [
            tenant_id
            for tenant_id, (until, seconds) in self._until.items()
            if until > time and seconds >= _FIRST_SECONDS
        ]

    def now(self) -> list[TenantId]:
        """Who is left out now. Forgets those whose last trouble is two minutes ago."""
        time = self._clock.seconds()
        for tenant_id, (until, _) in list(self._until.items()):
            if until + 2 * _LAST_SECONDS < time:
                del self._until[tenant_id]
        return [tenant_id for tenant_id, (until, _) in self._until.items() if until > time]
