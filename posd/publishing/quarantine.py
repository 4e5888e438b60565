"""Tenants that are left out for a while, so that one shop's trouble does not become everybody's."""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

from posd.values import TenantId

_FIRST_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 60.0


class Aside:
    """Who is left out, and until when: a second, twice as long each time, up to `longest` seconds."""

    def __init__(self, clock: IReactorTime, longest: float = _LAST_SECONDS) -> None:
        self._clock = clock
        self._longest = longest
        self._until: dict[TenantId, tuple[float, float]] = {}

    def add(self, tenant_id: TenantId) -> float:
        """Leave a tenant out; for how many seconds."""
        _, before = self._until.get(tenant_id, (0.0, _FIRST_SECONDS / 2))
        seconds = min(before * 2, self._longest)
        self._until[tenant_id] = (self._clock.seconds() + seconds, seconds)
        return seconds

    def __contains__(self, tenant_id: TenantId) -> bool:
        until, _ = self._until.get(tenant_id, (0.0, 0.0))
        return until > self._clock.seconds()

    def now(self) -> list[TenantId]:
        """Who is left out now. Forgets those whose last trouble ended two minutes ago."""
        time = self._clock.seconds()
        for tenant_id, (until, _) in list(self._until.items()):
            if until + 2 * _LAST_SECONDS < time:
                del self._until[tenant_id]
        return [tenant_id for tenant_id, (until, _) in self._until.items() if until > time]
