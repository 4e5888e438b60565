"""What a node has noted in memory and not written to the database yet, and the bounds of that.

Of the positions of a device only the furthest counts, so a note replaces the one before. Messages of tills
are all kept, up to so many bytes of a tenant and of all tenants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar
from uuid import UUID

from attrs import define, field, frozen

from posd.delivery.registry import Sighting
from posd.values import Seq, StreamName, Tenant, TenantId, Terminal

_MOST_SAID: Final = 2 * 1024 * 1024
_MOST_SAID_BY_ALL: Final = 64 * 1024 * 1024
"""Bytes of what the tills of a tenant, and of all, say while the database is away."""
_OVERHEAD: Final = 256
"""What even an empty message takes."""

Subscription = tuple[TenantId, str, UUID]
"""Whose cursor it is: tenant, device, and the id of the stream in which its positions are counted."""

H = TypeVar("H", Subscription, StreamName)
Device = tuple[TenantId, str]


def subscription(terminal: Terminal) -> Subscription:
    """Whose cursor a terminal moves."""
    return terminal.tenant.id, terminal.device_id or "", terminal.stream_id


@define(eq=False)
class Claim:
    """A connection that claims its device. `won` says whether it got it; None until that is decided."""

    terminal: Terminal
    won: bool | None = None


@define
class Notes:
    """What the next flush writes into tables of posd's own schema."""

    connected: dict[UUID, Terminal] = field(factory=dict)
    """Connections that were opened, by their ids."""
    gone: set[UUID] = field(factory=set)
    """Connections that have ended."""
    claims: dict[UUID, Claim] = field(factory=dict)
    seen: dict[UUID, Sighting] = field(factory=dict)
    """When something was last heard on connections, and how far they were sent their stream."""
    reached: dict[Subscription, Seq] = field(factory=dict)
    """How far devices were sent a stream that may have another name by now."""
    spoken: set[Subscription] = field(factory=set)
    """Those of `reached` whose devices have acknowledged something, or named a position."""
    acks: dict[Subscription, Seq] = field(factory=dict)
    """How far devices have acknowledged."""
    follows: dict[Subscription, Seq] = field(factory=dict)
    """How far legacy devices were sent their stream."""
    sent: dict[StreamName, Seq] = field(factory=dict)
    """How far each stream was written to at least one till."""
    received: dict[StreamName, Seq] = field(factory=dict)
    """How far at least one till has each stream: by cursors that are written, and by reports about orders."""
    acknowledging: set[Device] = field(factory=set)
    """The devices of `acks` and `reached`."""

    def __bool__(self) -> bool:
        return any(
            (
                *(self.connected, self.gone, self.claims, self.seen, self.acks, self.follows),
                *(self.sent, self.received, self.reached),
            )
        )

    def left(self, connection_id: UUID) -> None:
        """A connection has ended. If it was not written yet, nothing is written of it."""
        self.claims.pop(connection_id, None)
        self.seen.pop(connection_id, None)
        if self.connected.pop(connection_id, None) is None:
            self.gone.add(connection_id)

    def sent_to(self, key: Subscription, seq: Seq, spoke: bool) -> None:
        """A device was sent everything up to `seq` of a stream that may have ended."""
        self.reached[key] = max(seq, self.reached.get(key, 0))
        if spoke:
            self.spoken.add(key)
        self.acknowledging.add(key[:2])

    def acknowledged(self, key: Subscription, seq: Seq) -> None:
        """A device has everything up to `seq`."""
        self.acks[key] = max(seq, self.acks.get(key, 0))
        self.acknowledging.add(key[:2])

    def followed(self, key: Subscription, seq: Seq) -> None:
        """A legacy device was sent everything up to `seq`, on one of its connections."""
        self.follows[key] = max(seq, self.follows.get(key, 0))

    def delivered(self, stream: StreamName, seq: Seq) -> None:
        """Events up to `seq` were written to at least one till of the tenant."""
        self.sent[stream] = max(seq, self.sent.get(stream, 0))

    def confirmed(self, stream: StreamName, seq: Seq) -> None:
        """At least one till of the tenant has everything up to `seq`."""
        self.received[stream] = max(seq, self.received.get(stream, 0))

    def acks_are_written(self, accepted: Sequence[tuple[StreamName, Seq]]) -> None:
        """The cursors of `acks` are written. What the streams' heads say of them is written after that.

        `accepted` has the cursors that belong to the stream's present name.
        """
        for stream, seq in accepted:
            self.confirmed(stream, seq)
        self.acks = {}
        self.acknowledging = {key[:2] for key in self.reached}

    def merged(self, later: Notes) -> Notes:
        """These notes and later ones together.

        Of positions the furthest counts, since a replay or a poll may note an earlier position later. Of
        everything else the later note counts.
        """
        connected = {k: t for k, t in self.connected.items() if k not in later.gone}
        seen = {k: s for k, s in self.seen.items() if k not in later.gone}
        return Notes(
            connected=connected | later.connected,
            gone=self.gone | later.gone,
            # A connection whose claim was not written is told so, and claims again.
            claims=later.claims,
            seen=seen | later.seen,
            reached=_furthest(self.reached, later.reached),
            spoken=self.spoken | later.spoken,
            acks=_furthest(self.acks, later.acks),
            follows=_furthest(self.follows, later.follows),
            sent=_furthest(self.sent, later.sent),
            received=_furthest(self.received, later.received),
            acknowledging=self.acknowledging | later.acknowledging,
        )


def _furthest(positions: dict[H, Seq], later: dict[H, Seq]) -> dict[H, Seq]:
    return positions | {k: max(seq, positions.get(k, 0)) for k, seq in later.items()}


@frozen
class Word:
    """A message of a till that is only logged."""

    tenant: Tenant
    kind: str
    body: str
    device_id: str | None

    @property
    def size(self) -> int:
        return _OVERHEAD + len(self.body)


@frozen
class Nack:
    """An event that a till could not process."""

    tenant: Tenant
    seq: Seq
    device_id: str
    reason: str
    stream_id: UUID

    @property
    def size(self) -> int:
        return _OVERHEAD + len(self.reason)


T = TypeVar("T", Word, Nack)
Kept = dict[TenantId, list[T]]
"""Messages of one kind by tenant, in their order."""


@define
class Messages:
    """Messages of tills that are not written yet: `words` are only logged, `nacks` refuse events."""

    words: Kept[Word] = field(factory=dict)
    nacks: Kept[Nack] = field(factory=dict)
    sizes: Counter[TenantId] = field(factory=Counter)
    """How many bytes the words and nacks of each tenant take, until they are written."""
    total: int = 0
    """How many those of all tenants take."""

    def __bool__(self) -> bool:
        return bool(self.words or self.nacks)

    def say(self, word: Word) -> bool:
        """Keep a message. Returns False, and drops it, if its tenant or all have too many bytes."""
        return self._keep(self.words, word)

    def refuse(self, nack: Nack) -> bool:
        """Keep what a till could not process, as `say` does."""
        return self._keep(self.nacks, nack)

    def written(self, messages: Iterable[Word | Nack]) -> None:
        """Do not count the bytes of these any more."""
        for each in messages:
            tenant_id = each.tenant.id
            self.sizes[tenant_id] -= each.size
            self.total -= each.size
            if not self.sizes[tenant_id]:
                del self.sizes[tenant_id]

    def _keep(self, kept: Kept[T], said: T) -> bool:
        sizes, tenant_id = self.sizes, said.tenant.id
        if sizes[tenant_id] + said.size > _MOST_SAID or self.total + said.size > _MOST_SAID_BY_ALL:
            return False
        sizes[tenant_id] += said.size
        self.total += said.size
        kept.setdefault(tenant_id, []).append(said)
        return True


def take_piece(kept: Kept[T], most: int) -> list[T]:
    """Take about `most` bytes of messages out of `kept`: of each tenant in turn, up to an equal share.

    One message of a tenant is taken whatever its size. A tenant with more than its share becomes the last one
    of `kept`, and so of the next piece.
    """
    share, room, piece = most // max(1, len(kept)), most, []
    for tenant_id in list(kept):
        messages, count, size = kept[tenant_id], 0, 0
        for each in messages:
            size += each.size
            if count and size > share:
                break
            count += 1
        piece += messages[:count]
        # Deleted also where some are left, to become the last one.
        del kept[tenant_id]
        if count < len(messages):
            kept[tenant_id] = messages[count:]
        room -= size
        if room <= 0:
            break
    return piece


def put_back(kept: Kept[T], messages: Iterable[T]) -> None:
    """Put messages before those that came later."""
    earlier: Kept[T] = {}
    for each in messages:
        earlier.setdefault(each.tenant.id, []).append(each)
    for tenant_id, some in earlier.items():
        kept[tenant_id] = some + kept.get(tenant_id, [])
