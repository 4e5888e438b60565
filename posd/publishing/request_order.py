"""The order between a tenant's requests and the rows that the tenant has committed before.

If a shop commits a transaction and then sends a request, its events are published in that order. The
sequencer's transaction checks, under its lock, whether the outbox has older rows of a request's tenant. If
so, the request is too early: it goes back into the queue, and is tried again when the rows have been
numbered. A request waits for two seconds at most. It does not wait if its tenant's rows cannot be read or
numbered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from posd.publishing.publication import PublicationRequest
from posd.publishing.quarantine import TenantQuarantine
from posd.values import TenantId

SOON_SECONDS: Final = 0.02
"""The pause before a request that was too early twice, while no row of its tenant was numbered."""
_LONGEST_SECONDS: Final = 2.0
"""The longest time for which a request waits for rows."""


class RequestOrder:
    """Decides which requests wait for rows of their tenants.

    `is_reading` returns whether orders of a tenant are being read. `is_left_out` returns whether the rows of
    a tenant cannot be read or numbered.
    """

    def __init__(
        self,
        clock: IReactorTime,
        is_reading: Callable[[TenantId], bool],
        is_left_out: Callable[[TenantId], bool],
    ) -> None:
        self._clock = clock
        self._is_reading = is_reading
        self._is_left_out = is_left_out
        # The time of the next attempt, for tenants whose requests were too early.
        self._not_before: dict[TenantId, float] = {}
        # Tenants whose requests do not wait, because a request has waited for two seconds in vain.
        self._impatient: TenantQuarantine[TenantId] = TenantQuarantine(clock)

    def must_wait(self, request: PublicationRequest) -> bool:
        """Whether a request has to stay in the queue. Notes when it began to wait."""
        tenant_id, now = request.tenant_id, self._clock.seconds()
        if not self._is_reading(tenant_id) and self._not_before.get(tenant_id, now) <= now:
            return False
        if request.waiting_since is None:
            request.waiting_since = now
        return self._is_ordered(request)

    def begin_attempt(self, requests: Sequence[PublicationRequest]) -> None:
        """Set `is_ordered` of the requests of a batch."""
        for each in requests:
            each.is_ordered = self._is_ordered(each)
            self._not_before.pop(each.tenant_id, None)

    def postpone(
        self, requests: Sequence[PublicationRequest], numbered: Collection[TenantId]
    ) -> None:
        """Note that the requests were too early. The batch has numbered rows of the tenants `numbered`."""
        now = self._clock.seconds()
        for each in requests:
            if each.waiting_since is None:
                each.waiting_since = now
            elif each.tenant_id not in numbered:
                self._not_before[each.tenant_id] = now + SOON_SECONDS

    def _is_ordered(self, request: PublicationRequest) -> bool:
        since, tenant_id = request.waiting_since, request.tenant_id
        if tenant_id in self._impatient or self._is_left_out(tenant_id):
            return False
        if since is not None and self._clock.seconds() - since >= _LONGEST_SECONDS:
            self._impatient.exclude(tenant_id)
            return False
        return True
