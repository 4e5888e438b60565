"""The nouns that every other module speaks in: frozen, typed, without behaviour.

Nothing here knows Twisted, Autobahn or SQL. Times are timezone-aware UTC.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import define, field, frozen

TenantId = int
SLUG: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
"""What a tenant is called in addresses."""
RESERVED: Final = frozenset(
    ("main", "pos", "admin", "tenant", "super-admin", "customer", "auth", "health")
)
"""What would fit, and no tenant is called: other addresses and schemas are."""

TENANT_RULES: Final = {
    "tenants_slug_form": "a slug is 1 to 48 small letters, digits and hyphens, with none of the"
    " hyphens at either end",
    "tenants_slug_reserved": "this slug is reserved for paths of posd itself",
    "tenants_name_given": "a tenant needs a name",
    "tenants_timezone_known": "a time zone is a name of the IANA database, such as Europe/London",
    "tenants_currency_form": "a currency is three capital letters, as in ISO 4217",
}
"""What is asked of a tenant, by the constraint of the table `tenants` that asks it."""

Seq = int
"""A stream position: 1, 2, 3, … without a gap within one tenant's stream; 0 is before the first."""

StreamName = tuple[TenantId, UUID]
"""A tenant, and the name of its stream in which positions are counted."""


class KeyKind(enum.Enum):
    """Who holds a credential, and so what it may do."""

    TENANT = "tenant"
    DEVICE = "device"
    PLATFORM = "platform"
    ADMIN = "admin"

    # That of Enum is a function in Python, and each request looks its kind up in sets.
    __hash__ = object.__hash__


class PrintStatus(enum.Enum):
    """How far an order has come on paper; it never moves backwards."""

    PENDING = "pending"
    SENT = "sent_to_pos"
    PRINTED = "printed"
    FAILED = "failed"


class Resync(enum.Enum):
    """Why a till cannot be replayed to and must reload its pending orders."""

    RETENTION = "retention"
    RESET = "reset"
    AHEAD = "ahead"


@frozen
class Tenant:
    """One shop: its slug in URLs, its schema in the database, its money and its clock."""

    id: TenantId
    slug: str
    name: str
    schema: str
    currency: str = "GBP"
    timezone: str = "Europe/London"
    default_region: str = "GB"


@frozen
class Principal:
    """Whom a credential speaks for. `tenant` is None for a key of all tenants."""

    key_id: int
    kind: KeyKind
    tenant: Tenant | None
    device_id: str | None = None


@frozen
class Position:
    """A place in a history: `seq` means nothing without the `stream_id` it was counted in."""

    seq: Seq
    stream_id: UUID | None = None


@frozen
class StreamHead:
    """The end of one tenant's stream, and the floor below which events are pruned."""

    tenant_id: TenantId
    stream_id: UUID
    last_seq: Seq
    pruned_seq: Seq = 0


@frozen
class SessionStart:
    """What a session begins with.

    `acked` is the device's cursor, None for a terminal without a name; a `legacy` terminal never
    acknowledged and never named a position. `refused` are events after the cursor that the device will
    never process; `recalled`: an operator wants it to be sent again what it has acknowledged. `at` is
    when that was so, by the database's clock, which is the same for all nodes: it tells which of a
    device's connections is the newest.

    `astray`: the device is known to have events that the present stream does not have. `renamed_ago`: how
    many seconds ago the stream got its name, if the device's cursor is of an earlier name. `shared`: up to
    where the positions of the stream that the terminal names are those of the present one; None if it
    names the present one, or one that is not known.
    """

    head: StreamHead
    acked: Seq | None
    legacy: bool
    at: datetime
    refused: frozenset[Seq] = frozenset()
    recalled: bool = False
    astray: bool = False
    renamed_ago: float | None = None
    shared: Seq | None = None


# One is made of every event. A frozen class takes three to five times as long for that.
@define
class Event:
    """A committed event as the stream holds it.

    `data` and `extra_members` are JSON objects as compact UTF-8 text, written once by the sequencer and
    never parsed again on the way to a till. `extra_members` has the members that stand next to `data` at
    the top level of the message, `b"{}"` where there are none.
    """

    seq: Seq
    type: str
    data: bytes
    created_at: datetime
    extra_members: bytes = b"{}"


@frozen
class AppendedEvents:
    """Events, in order, that a commit has put at the end of a tenant's stream."""

    tenant_id: TenantId
    stream_id: UUID
    events: Sequence[Event]


WARNING_CODES: Final = (
    *("unreadable", "schedule_as_text", "quantity_replaced", "name_missing", "character_replaced"),
)
"""What a `PublishWarning` may be about."""
LEFT_OUT: Final = ("not_online", "over", "old", "unchanged", "gone", "condition")
"""Why an order that was published, or touched in a shop's tables, became no event."""


@frozen
class PublishWarning:
    """A value of an event that was repaired, or that could not be read.

    `member` is its path (`items[0].price`), `code` one of `WARNING_CODES`, `message` a
    sentence for a person, without the value.
    """

    member: str
    code: str
    message: str


# One is made of every event. A frozen class takes three to five times as long for that.
@define
class EventDraft:
    """An event that has not been numbered yet, with its data in the exact form of the contract.

    `warnings` tell how it was read. They are no part of the event.
    """

    type: str
    data: Mapping[str, object]
    extra_members: Mapping[str, object] = field(factory=dict)
    warnings: tuple[PublishWarning, ...] = field(default=(), eq=False)


@frozen
class StoredOrder:
    """What posd knows of an order: the snapshot last published, its version and its status."""

    order_id: str
    snapshot: Mapping[str, object]
    status: str
    version: int


@frozen
class Terminal:
    """An admitted connection of a till: which tenant's, whose, since when, and from where on.

    `device_id` is None for a terminal without a name; `position` is what it asked to resume from.
    `stream_id` is the history that it was let into: what it says of events is about that one.
    """

    connection_id: UUID
    tenant: Tenant
    principal: Principal
    device_id: str | None
    position: Position | None
    connected_at: datetime
    stream_id: UUID


@frozen
class CloseReason:
    """A WebSocket close code and its reason (RFC 6455 §7.4; 4000–4999 are posd's own)."""

    code: int
    reason: str


GOING_AWAY = CloseReason(1001, "posd is restarting")
UNSUPPORTED = CloseReason(1003, "only text messages are understood")
POLICY = CloseReason(1008, "too many invalid messages")
TOO_BIG = CloseReason(1009, "message too big")
FAILED = CloseReason(1011, "internal error")
TOO_SLOW = CloseReason(1013, "too far behind")
STREAM_CHANGED = CloseReason(1013, "the stream has changed")
RENAMED = CloseReason(1001, "the stream has a new name")
PRUNED = CloseReason(1013, "the next events are kept no more")
REVOKED = CloseReason(4001, "the credential is no longer valid")
DISABLED = CloseReason(4001, "the device is disabled")
DISCONNECTED = CloseReason(1001, "disconnected by the operator")
SUPERSEDED = CloseReason(4009, "superseded")
