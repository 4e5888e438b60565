"""Which requests wait until rows are numbered that their tenants have committed before.

If a shop commits and then calls, its events are published in that order. The transaction looks, under the
sequencer's lock, whether the outbox has older rows of a request's tenant. Such a request is too early: it is
put back into the queue, and tried again when the rows were numbered. It waits for two seconds at most. If the
rows of its tenant cannot be read or numbered, it does not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from posd.publishing.publication import PublicationRequest
from posd.publishing.quarantine import TenantQuarantine
from posd.values import TenantId

SOON_SECONDS: Final = 0.02
"""A request that was too early twice, with no row of its tenant numbered, is tried again after this time."""
_LONGEST_SECONDS: Final = 2.0
"""After this time a request does not wait any more."""


class RequestOrder:
    """Decides which requests wait.

    `is_reading` says whether orders of a tenant are being read, and `is_left_out` whether its rows cannot be
    read or numbered.
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
        # Until when the requests of a tenant are not tried, since they were too early.
        self._not_before: dict[TenantId, float] = {}
        # Tenants whose requests do not wait for a while, since one has waited for two seconds in vain.
        self._impatient: TenantQuarantine[TenantId] = TenantQuarantine(clock)

    def must_wait(self, request: PublicationRequest) -> bool:
        """Whether a request is not to be tried yet."""
        tenant_id, now = request.tenant_id, self._clock.seconds()
        if not self._is_reading(tenant_id) and self._not_before.get(tenant_id, now) <= now:
            return False
        if request.waiting_since is None:
            request.waiting_since = now
        return self._is_ordered(request)

    def begin_attempt(self, requests: Sequence[PublicationRequest]) -> None:
        """Set which of these requests are `is_ordered`, and so put back if they are too early."""
        for each in requests:
            each.is_ordered = self._is_ordered(each)
            self._not_before.pop(each.tenant_id, None)

    def postpone(
        self, requests: Sequence[PublicationRequest], numbered: Collection[TenantId]
    ) -> None:
        """Note that these requests were too early. Rows of the tenants `numbered` were numbered just now."""
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
