"""What a node notes in memory between two flushes: merged where it can be, bounded where it cannot.

Of a position only the furthest counts, so a note of it takes the place of the one before. What tills say
is kept word for word, up to so many bytes of a tenant and of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeVar
from uuid import UUID

from attrs import define, field, frozen

from posd.values import Seq, Tenant, TenantId, Terminal

_MOST_SAID: Final = 2 * 1024 * 1024
_MOST_SAID_BY_ALL: Final = 64 * 1024 * 1024
"""Bytes of what the tills of a tenant, and of all, say while the database is away."""
_OVERHEAD: Final = 256
"""What even an empty word takes."""

Subscription = tuple[TenantId, str, UUID]
"""Whose cursor it is: tenant, device, and the history in which its positions are counted."""


def subscription(terminal: Terminal) -> Subscription:
    """Whose cursor a terminal moves."""
    return terminal.tenant.id, terminal.device_id or "", terminal.stream_id


@frozen
class Word:
    """A message of a till that is only logged."""

    kind: str
    body: str
    device_id: str | None

    @property
    def size(self) -> int:
        return _OVERHEAD + len(self.body)


@frozen
class Nack:
    """An event that a till could not process."""

    seq: Seq
    device_id: str
    reason: str
    stream_id: UUID

    @property
    def size(self) -> int:
        return _OVERHEAD + len(self.reason)


T = TypeVar("T", Word, Nack)


@define
class Notes:
    """What is to be written at the next flush."""

    connected: dict[UUID, Terminal] = field(factory=dict)
    gone: set[UUID] = field(factory=set)
    acks: dict[Subscription, Seq] = field(factory=dict)
    follows: dict[Subscription, Seq] = field(factory=dict)
    sent: dict[TenantId, Seq] = field(factory=dict)
    reported: set[TenantId] = field(factory=set)
    """Tenants whose tills have said something about orders."""
    words: dict[Tenant, list[Word]] = field(factory=dict)
    nacks: dict[Tenant, list[Nack]] = field(factory=dict)
    sizes: Counter[Tenant] = field(factory=Counter)
    """How many bytes the words and nacks of each tenant take."""

    def __bool__(self) -> bool:
        return any(
            (
                *(self.connected, self.gone, self.acks, self.follows, self.sent),
                *(self.reported, self.words, self.nacks),
            )
        )

    def say(self, tenant: Tenant, word: Word) -> bool:
        """Note what a till said; False if it cannot be kept, since there is too much already."""
        return self._keep(self.words, tenant, word)

    def refuse(self, tenant: Tenant, nack: Nack) -> bool:
        """Note what a till could not process; False if it cannot be kept either."""
        return self._keep(self.nacks, tenant, nack)

    def written(self, tenant: Tenant, said: Sequence[Word | Nack]) -> None:
        """These words or nacks of a tenant take no room any more."""
        self.sizes[tenant] -= sum(each.size for each in said)

    def received(self) -> dict[TenantId, Seq]:
        """The furthest acknowledgement of each tenant."""
        furthest: dict[TenantId, Seq] = {}
        for (tenant_id, _, _), seq in self.acks.items():
            furthest[tenant_id] = max(seq, furthest.get(tenant_id, 0))
        return furthest

    def merged(self, later: Notes) -> Notes:
        """These notes and later ones together."""
        connected = {k: t for k, t in self.connected.items() if k not in later.gone}
        return Notes(
            connected | later.connected,
            self.gone | later.gone,
            self.acks | later.acks,
            self.follows | later.follows,
            self.sent | later.sent,
            self.reported | later.reported,
            _joined(self.words, later.words),
            _joined(self.nacks, later.nacks),
            self.sizes + later.sizes,
        )

    def _keep(self, kept: dict[Tenant, list[T]], tenant: Tenant, said: T) -> bool:
        sizes = self.sizes
        if sizes[tenant] + said.size > _MOST_SAID or sizes.total() + said.size > _MOST_SAID_BY_ALL:
            return False
        sizes[tenant] += said.size
        kept.setdefault(tenant, []).append(said)
        return True


def _joined(said: dict[Tenant, list[T]], later: dict[Tenant, list[T]]) -> dict[Tenant, list[T]]:
    return {t: said.get(t, []) + later.get(t, []) for t in said | later}
