"""The writes that a node keeps in memory until the next flush, and their limits.

Only the furthest position of a device counts, so a position replaces an earlier one. Messages of tills are
all kept, up to a number of bytes for each tenant and for all tenants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar
from uuid import UUID

from attrs import define, field, frozen

from posd.delivery.registry import Heartbeat
from posd.values import Seq, StreamName, Tenant, TenantId, Terminal

_MOST_TENANT_BYTES: Final = 2 * 1024 * 1024
_MOST_TOTAL_BYTES: Final = 64 * 1024 * 1024
"""Bytes of messages that are kept for one tenant, and for all tenants, while the database cannot be
reached.
"""
_MESSAGE_OVERHEAD: Final = 256
"""Bytes that an empty message takes."""

Subscription = tuple[TenantId, str, UUID]
"""The key of a cursor: tenant, device, and the stream id in which its positions are counted."""

H = TypeVar("H", Subscription, StreamName)
Device = tuple[TenantId, str]


def subscription(terminal: Terminal) -> Subscription:
    """Return the key of a terminal's cursor."""
    return terminal.tenant.id, terminal.device_id or "", terminal.stream_id


@define(eq=False)
class DeviceClaim:
    """A connection that claims its device. `won` is whether it got the device, None until that is decided."""

    terminal: Terminal
    won: bool | None = None


@define
class PendingWrites:
    """The rows that the next flush writes into tables of the main schema."""

    connected: dict[UUID, Terminal] = field(factory=dict)
    """Connections that were opened, by connection id."""
    disconnected: set[UUID] = field(factory=set)
    """Connections that have ended."""
    claims: dict[UUID, DeviceClaim] = field(factory=dict)
    heartbeats: dict[UUID, Heartbeat] = field(factory=dict)
    """When data was last received on each connection, and the position that was sent."""
    sent_positions: dict[Subscription, Seq] = field(factory=dict)
    """The positions up to which devices were sent a stream that may have another id now."""
    using_positions: set[Subscription] = field(factory=set)
    """Those keys of `sent_positions` whose devices have acknowledged or named a position."""
    acks: dict[Subscription, Seq] = field(factory=dict)
    """The positions that devices have acknowledged."""
    legacy_positions: dict[Subscription, Seq] = field(factory=dict)
    """The positions up to which legacy devices were sent their stream."""
    sent: dict[StreamName, Seq] = field(factory=dict)
    """The position up to which each stream was written to at least one till."""
    received: dict[StreamName, Seq] = field(factory=dict)
    """The position up to which at least one till has each stream.

    It follows from cursors that are written, and from reports about orders.
    """
    acknowledging: set[Device] = field(factory=set)
    """The devices of `acks` and `sent_positions`."""

    def __bool__(self) -> bool:
        return any(
            (
                *(
                    self.connected,
                    self.disconnected,
                    self.claims,
                    self.heartbeats,
                    self.acks,
                    self.legacy_positions,
                ),
                *(self.sent, self.received, self.sent_positions),
            )
        )

    def left(self, connection_id: UUID) -> None:
        """A connection has ended. If it was not written yet, nothing is written about it."""
        self.claims.pop(connection_id, None)
        self.heartbeats.pop(connection_id, None)
        if self.connected.pop(connection_id, None) is None:
            self.disconnected.add(connection_id)

    def note_sent_position(self, key: Subscription, seq: Seq, uses_positions: bool) -> None:
        """A device was sent all events up to `seq` of a stream that may have another id now."""
        self.sent_positions[key] = max(seq, self.sent_positions.get(key, 0))
        if uses_positions:
            self.using_positions.add(key)
        self.acknowledging.add(key[:2])

    def acknowledged(self, key: Subscription, seq: Seq) -> None:
        """A device has acknowledged all events up to `seq`."""
        self.acks[key] = max(seq, self.acks.get(key, 0))
        self.acknowledging.add(key[:2])

    def sent_to_legacy(self, key: Subscription, seq: Seq) -> None:
        """A legacy device was sent all events up to `seq` on one of its connections."""
        self.legacy_positions[key] = max(seq, self.legacy_positions.get(key, 0))

    def delivered(self, stream: StreamName, seq: Seq) -> None:
        """Events up to `seq` were written to at least one till of the tenant."""
        self.sent[stream] = max(seq, self.sent.get(stream, 0))

    def confirmed(self, stream: StreamName, seq: Seq) -> None:
        """At least one till of the tenant has all events up to `seq`."""
        self.received[stream] = max(seq, self.received.get(stream, 0))

    def acks_written(self, accepted: Sequence[tuple[StreamName, Seq]]) -> None:
        """The cursors of `acks` are written. The heads of their streams are written after that.

        `accepted` has the positions that are valid in the present stream.
        """
        for stream, seq in accepted:
            self.confirmed(stream, seq)
        self.acks = {}
        self.acknowledging = {key[:2] for key in self.sent_positions}

    def merged(self, later: PendingWrites) -> PendingWrites:
        """Return these writes merged with later ones.

        The furthest position counts, since a replay or a poll may add an earlier position later. For
        everything else the later value counts.
        """
        connected = {k: t for k, t in self.connected.items() if k not in later.disconnected}
        heartbeats = {k: s for k, s in self.heartbeats.items() if k not in later.disconnected}
        return PendingWrites(
            connected=connected | later.connected,
            disconnected=self.disconnected | later.disconnected,
            # The caller of a claim that was not written gets an error, and claims again.
            claims=later.claims,
            heartbeats=heartbeats | later.heartbeats,
            sent_positions=_merge_furthest(self.sent_positions, later.sent_positions),
            using_positions=self.using_positions | later.using_positions,
            acks=_merge_furthest(self.acks, later.acks),
            legacy_positions=_merge_furthest(self.legacy_positions, later.legacy_positions),
            sent=_merge_furthest(self.sent, later.sent),
            received=_merge_furthest(self.received, later.received),
            acknowledging=self.acknowledging | later.acknowledging,
        )


def _merge_furthest(positions: dict[H, Seq], later: dict[H, Seq]) -> dict[H, Seq]:
    return positions | {k: max(seq, positions.get(k, 0)) for k, seq in later.items()}


@frozen
class TillMessage:
    """A message of a till that is only logged."""

    tenant: Tenant
    kind: str
    body: str
    device_id: str | None

    @property
    def size(self) -> int:
        return _MESSAGE_OVERHEAD + len(self.body)


@frozen
class RejectedEvent:
    """An event that a till cannot process."""

    tenant: Tenant
    seq: Seq
    device_id: str
    reason: str
    stream_id: UUID

    @property
    def size(self) -> int:
        return _MESSAGE_OVERHEAD + len(self.reason)


T = TypeVar("T", TillMessage, RejectedEvent)
ByTenant = dict[TenantId, list[T]]
"""Messages of one kind by tenant, in the order of their arrival."""


@define
class PendingMessages:
    """Messages of tills that are not written yet: `messages` are only logged, `nacks` refuse events."""

    messages: ByTenant[TillMessage] = field(factory=dict)
    nacks: ByTenant[RejectedEvent] = field(factory=dict)
    sizes: Counter[TenantId] = field(factory=Counter)
    """The bytes of each tenant's unwritten messages and nacks."""
    total: int = 0
    """The bytes of all tenants together."""

    def __bool__(self) -> bool:
        return bool(self.messages or self.nacks)

    def add_message(self, message: TillMessage) -> bool:
        """Keep a message. Returns False and drops it if the limit of its tenant or of all tenants is
        reached.
        """
        return self._add(self.messages, message)

    def add_rejected(self, nack: RejectedEvent) -> bool:
        """Keep a refusal, with the limits of `add_message`."""
        return self._add(self.nacks, nack)

    def written(self, messages: Iterable[TillMessage | RejectedEvent]) -> None:
        """Stop counting the bytes of these messages."""
        for each in messages:
            tenant_id = each.tenant.id
            self.sizes[tenant_id] -= each.size
            self.total -= each.size
            if not self.sizes[tenant_id]:
                del self.sizes[tenant_id]

    def _add(self, by_tenant: ByTenant[T], message: T) -> bool:
        sizes, tenant_id = self.sizes, message.tenant.id
        if (
            sizes[tenant_id] + message.size > _MOST_TENANT_BYTES
            or self.total + message.size > _MOST_TOTAL_BYTES
        ):
            return False
        sizes[tenant_id] += message.size
        self.total += message.size
        by_tenant.setdefault(tenant_id, []).append(message)
        return True


def take_part(by_tenant: ByTenant[T], most: int) -> list[T]:
    """Remove and return about `most` bytes of messages: from each tenant in turn, up to an equal share.

    At least one message of a tenant is taken, whatever its size. A tenant with more than its share moves to
    the end of `by_tenant`, and so to the end of the next part.
    """
    share, room, part = most // max(1, len(by_tenant)), most, []
    for tenant_id in list(by_tenant):
        messages, count, size = by_tenant[tenant_id], 0, 0
        for each in messages:
            size += each.size
            if count and size > share:
                break
            count += 1
        part += messages[:count]
        # The tenant is deleted even if messages are left, to move it to the end.
        del by_tenant[tenant_id]
        if count < len(messages):
            by_tenant[tenant_id] = messages[count:]
        room -= size
        if room <= 0:
            break
    return part


def put_back(by_tenant: ByTenant[T], messages: Iterable[T]) -> None:
    """Put messages back before those that arrived later."""
    earlier: ByTenant[T] = {}
    for each in messages:
        earlier.setdefault(each.tenant.id, []).append(each)
    for tenant_id, some in earlier.items():
        by_tenant[tenant_id] = some + by_tenant.get(tenant_id, [])
