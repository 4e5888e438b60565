"""What a node has noted in memory and not written yet: merged where it can be, bounded where it cannot.

Of a position only the furthest counts, so a note of it takes the place of the one before. Messages of
tills are kept word for word, up to so many bytes of a tenant and of all.
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
"""Whose cursor it is: tenant, device, and the history in which its positions are counted."""

H = TypeVar("H", Subscription, StreamName)
Device = tuple[TenantId, str]


def subscription(terminal: Terminal) -> Subscription:
    """Whose cursor a terminal moves."""
    return terminal.tenant.id, terminal.device_id or "", terminal.stream_id


@define(eq=False)
class Claim:
    """A connection that wants to be its device's one; `won` is None until that is decided."""

    terminal: Terminal
    won: bool | None = None


@define
class Notes:
    """What is to be written into the books, all in posd's own schema, at the next flush."""

    connected: dict[UUID, Terminal] = field(factory=dict)
    gone: set[UUID] = field(factory=set)
    claims: dict[UUID, Claim] = field(factory=dict)
    seen: dict[UUID, Sighting] = field(factory=dict)
    reached: dict[Subscription, Seq] = field(factory=dict)
    """How far devices were sent a stream that may have another name by now."""
    spoken: set[Subscription] = field(factory=set)
    """Those of `reached` that have said how far they are."""
    acks: dict[Subscription, Seq] = field(factory=dict)
    follows: dict[Subscription, Seq] = field(factory=dict)
    sent: dict[StreamName, Seq] = field(factory=dict)
    received: dict[StreamName, Seq] = field(factory=dict)
    """How far each tenant's best till is: by cursors that are written, and by what tills said of orders."""
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
        """A connection is gone. One that was not written yet leaves no trace."""
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
        """Events up to `seq` were written to one of the tenant's tills at least."""
        self.sent[stream] = max(seq, self.sent.get(stream, 0))

    def confirmed(self, stream: StreamName, seq: Seq) -> None:
        """A tenant's tills have everything up to `seq`."""
        self.received[stream] = max(seq, self.received.get(stream, 0))

    def acks_are_written(self, accepted: Sequence[tuple[StreamName, Seq]]) -> None:
        """The cursors stand where `acks` wants them; their heads are still to be moved.

        `accepted` are those that are true of the present stream.
        """
        for stream, seq in accepted:
            self.confirmed(stream, seq)
        self.acks = {}
        self.acknowledging = {key[:2] for key in self.reached}

    def merged(self, later: Notes) -> Notes:
        """These notes and later ones together.

        Of positions the furthest counts: a replay or a poll may note an earlier one later. Of all else
        the later note counts.
        """
        connected = {k: t for k, t in self.connected.items() if k not in later.gone}
        seen = {k: s for k, s in self.seen.items() if k not in later.gone}
        return Notes(
            connected=connected | later.connected,
            gone=self.gone | later.gone,
            claims=self.claims | later.claims,
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
    """What tills said and refused, and is not written yet."""

    words: Kept[Word] = field(factory=dict)
    nacks: Kept[Nack] = field(factory=dict)
    sizes: Counter[TenantId] = field(factory=Counter)
    """How many bytes the words and nacks of each tenant take, until they are written."""
    total: int = 0
    """How many those of all tenants take."""

    def __bool__(self) -> bool:
        return bool(self.words or self.nacks)

    def say(self, word: Word) -> bool:
        """Note what a till said. False if too much is kept already, and so this is not."""
        return self._keep(self.words, word)

    def refuse(self, nack: Nack) -> bool:
        """Note what a till could not process. False as for `say`."""
        return self._keep(self.nacks, nack)

    def written(self, messages: Iterable[Word | Nack]) -> None:
        """These words or nacks take no room any more."""
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
    """Take some `most` bytes of messages out of `kept`, of each tenant its share, tenant by tenant.

    There is one message at least, whatever its size. Who has more than a share is the last in the next piece.
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
