"""Requests that wait for a transaction of the sequencer: in order within a tenant, fair among tenants."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from attrs import define, field

from posd.errors import Unavailable
from posd.publishing.publication import Request
from posd.values import TenantId

# What a batch costs is what every other tenant waits for. A single request may have more events.
_MOST_EVENTS: Final = 300
_MOST_TENANTS: Final = 100
_MOST_WAITING: Final = 10_000
_MOST_OF_A_TENANT: Final = 2_000


@define(eq=False)
class RequestQueue:
    """A queue for each tenant; batches take one request of each tenant in turn."""

    _tenants: OrderedDict[TenantId, deque[Request]] = field(init=False, factory=OrderedDict)
    _length: int = field(init=False, default=0)

    def __len__(self) -> int:
        return self._length

    def append(self, request: Request) -> None:
        """Let a request wait. Raises `Unavailable` when too many do, of its tenant or in all."""
        waiting = self._tenants.get(request.tenant_id, ())
        if self._length >= _MOST_WAITING or len(waiting) >= _MOST_OF_A_TENANT:
            raise Unavailable("Too many requests wait to be published.", retry_after=2)
        self._tenants.setdefault(request.tenant_id, deque()).append(request)
        self._length += 1

    def next_batch(self) -> list[Request]:
        """Take the next requests: up to 300 events of up to 100 tenants, one request at least.

        Whose turn it is goes on where the last batch ended, so that no tenant's requests wait for more
        than one request of each other tenant.
        """
        batch: list[Request] = []
        tenants: set[TenantId] = set()
        events = 0
        while self._tenants and events < _MOST_EVENTS:
            tenant_id, waiting = next(iter(self._tenants.items()))
            if len(tenants | {tenant_id}) > _MOST_TENANTS:
                break
            batch.append(waiting.popleft())
            tenants.add(tenant_id)
            events += len(batch[-1].publication.drafts)
            if waiting:
                self._tenants.move_to_end(tenant_id)
            else:
                del self._tenants[tenant_id]
        self._length -= len(batch)
        return batch
