"""The queue of requests for the sequencer: first in, first out within a tenant, and fair between tenants."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final

from attrs import define, field

from posd.errors import Unavailable
from posd.publishing.publication import PublicationRequest
from posd.values import TenantId

# The limits of a batch, since all other tenants wait while it runs. A single request may have more events.
_MOST_EVENTS: Final = 300
_MOST_REQUESTS: Final = 100
_MOST_BYTES: Final = 1024 * 1024
# A request above either limit is large, and is alone in its batch.
_LARGE_EVENTS: Final = 50
_LARGE_BYTES: Final = 256 * 1024
# The limits of the queue: requests of all tenants, and of one tenant.
_MOST_WAITING: Final = 10_000
_MOST_PER_TENANT: Final = 2_000


@define(eq=False)
class RequestQueue:
    """A queue for each tenant. Batches take one request of each tenant in turn."""

    _tenants: OrderedDict[TenantId, deque[PublicationRequest]] = field(
        init=False, factory=OrderedDict
    )
    _length: int = field(init=False, default=0)
    _large_is_next: bool = field(init=False, default=True)

    def __len__(self) -> int:
        return self._length

    def append(self, request: PublicationRequest) -> None:
        """Append a request. Raises `Unavailable` if too many requests wait, of its tenant or in total."""
        waiting = self._tenants.get(request.tenant_id, ())
        if self._length >= _MOST_WAITING or len(waiting) >= _MOST_PER_TENANT:
            raise Unavailable("Too many requests wait to be published.", retry_after=2)
        self._tenants.setdefault(request.tenant_id, deque()).append(request)
        request.queued = True
        self._length += 1

    def put_back(self, requests: Iterable[PublicationRequest]) -> None:
        """Put requests back at the head of their tenants' queues."""
        for request in reversed([*requests]):
            self._tenants.setdefault(request.tenant_id, deque()).appendleft(request)
            request.queued = True
            self._length += 1

    def next_batch(
        self, must_wait: Callable[[PublicationRequest], bool] = lambda request: False
    ) -> list[PublicationRequest]:
        """Remove and return the next requests: up to 300 events, 100 requests and about 1 MiB.

        A tenant is skipped if `must_wait` returns True for its first request. If a tenant is ready, the batch
        has at least one request.

        The batch takes one request of each tenant in turn. The next batch begins with the tenant after the
        last one of this batch. So a tenant's first request waits for one request of each other tenant at
        most.

        A large request, of more than 50 events or 256 KiB, is alone in its batch. Batches with a large
        request alternate with batches of small requests. So a small request waits for one large request at
        most.
        """
        ready = [
            tenant_id for tenant_id, waiting in self._tenants.items() if not must_wait(waiting[0])
        ]
        large = [tenant_id for tenant_id in ready if _is_large(self._tenants[tenant_id][0])]
        is_large = bool(large) and (self._large_is_next or len(large) == len(ready))
        if ready:
            self._large_is_next = not is_large
        batch = [self._take(large[0])] if is_large else self._take_small(ready)
        self._length -= len(batch)
        return batch

    def _take_small(self, ready: Iterable[TenantId]) -> list[PublicationRequest]:
        batch: list[PublicationRequest] = []
        events, size, turn = 0, 0, deque(ready)
        while turn and events < _MOST_EVENTS and size < _MOST_BYTES and len(batch) < _MOST_REQUESTS:
            tenant_id = turn.popleft()
            if _is_large(self._tenants[tenant_id][0]):
                continue
            batch.append(self._take(tenant_id))
            events += len(batch[-1].publication.drafts)
            size += batch[-1].publication.size
            if tenant_id in self._tenants:
                turn.append(tenant_id)
        return batch

    def _take(self, tenant_id: TenantId) -> PublicationRequest:
        """Remove and return a tenant's next request. Move the tenant to the end of the order of turns."""
        waiting = self._tenants[tenant_id]
        taken = waiting.popleft()
        taken.queued = False
        if waiting:
            self._tenants.move_to_end(tenant_id)
        else:
            del self._tenants[tenant_id]
        return taken


def _is_large(request: PublicationRequest) -> bool:
    publication = request.publication
    return len(publication.drafts) > _LARGE_EVENTS or publication.size > _LARGE_BYTES
