"""The place of a publisher's request behind what its tenant has committed before.

A shop that commits, and then calls, has its events in that order. A request for which older rows are found in
the outbox, under the lock, is put back and tried again when they were numbered. It waits for two seconds at
most, and not for a tenant whose rows cannot be read or numbered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from posd.publishing.publication import Request
from posd.publishing.quarantine import Aside
from posd.values import TenantId

SOON_SECONDS: Final = 0.02
"""After which a request is tried again that was too early twice."""
_LONGEST_SECONDS: Final = 2.0


class Following:
    """Which requests wait. `is_reading` says whether orders of a tenant are being read, and `is_left_out`
    whether nobody waits for a tenant."""

    def __init__(
        self,
        clock: IReactorTime,
        is_reading: Callable[[TenantId], bool],
        is_left_out: Callable[[TenantId], bool],
    ) -> None:
        self._clock = clock
        self._is_reading = is_reading
        self._is_left_out = is_left_out
        # Until when requests are not tried that are still too early.
        self._early: dict[TenantId, float] = {}
        # Tenants whose requests have waited in vain, and do not wait for a while.
        self._hasty: Aside[TenantId] = Aside(clock)

    def waits(self, request: Request) -> bool:
        """Whether a request is not to be tried yet."""
        tenant_id, now = request.tenant_id, self._clock.seconds()
        if not self._is_reading(tenant_id) and self._early.get(tenant_id, now) <= now:
            return False
        if request.waits_since is None:
            request.waits_since = now
        return self._is_orderly(request)

    def try_now(self, requests: Sequence[Request]) -> None:
        """Find out which of these requests may still turn out to be too early."""
        for each in requests:
            each.orderly = self._is_orderly(each)
            self._early.pop(each.tenant_id, None)

    def too_early(self, requests: Sequence[Request], numbered: Collection[TenantId]) -> None:
        """Older rows come before these requests; of the tenants `numbered`, some were numbered now."""
        now = self._clock.seconds()
        for each in requests:
            if each.waits_since is None:
                each.waits_since = now
            elif each.tenant_id not in numbered:
                self._early[each.tenant_id] = now + SOON_SECONDS

    def _is_orderly(self, request: Request) -> bool:
        since, tenant_id = request.waits_since, request.tenant_id
        if tenant_id in self._hasty or self._is_left_out(tenant_id):
            return False
        if since is not None and self._clock.seconds() - since >= _LONGEST_SECONDS:
            self._hasty.add(tenant_id)
            return False
        return True
