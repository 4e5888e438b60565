"""The values that all packages share: tenants, keys, positions, events, close reasons.

They have no behaviour, and this module imports neither Twisted nor Autobahn. Times are timezone-aware UTC.
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
"""The name of a tenant in URLs."""
RESERVED: Final = frozenset(
    ("main", "pos", "admin", "tenant", "super-admin", "customer", "auth", "health")
)
"""Slugs that a tenant cannot have, because other URLs and schemas have these names."""

TENANT_RULES: Final = {
    "tenants_slug_form": "a slug is 1 to 48 small letters, digits and hyphens, without a hyphen at"
    " either end",
    "tenants_slug_reserved": "this slug is reserved for paths of posd itself",
    "tenants_name_given": "a tenant needs a name",
    "tenants_timezone_known": "a time zone is a name of the IANA database, such as Europe/London",
    "tenants_currency_form": "a currency is three capital letters, as in ISO 4217",
}
"""The rules for a tenant, by the name of the constraint of the table `tenants` that checks the rule."""

Seq = int
"""The number of an event in its tenant's stream: 1, 2, 3, … without a gap. 0 is before the first event."""

StreamName = tuple[TenantId, UUID]
"""A tenant, and the `stream_id` of its stream."""


class KeyKind(enum.Enum):
    """The kind of a key, which decides what its holder may do."""

    TENANT = "tenant"
    DEVICE = "device"
    PLATFORM = "platform"
    ADMIN = "admin"

    # `Enum.__hash__` is written in Python and slow, and each request looks its key's kind up in sets.
    __hash__ = object.__hash__


class PrintStatus(enum.Enum):
    """How far the printing of an order has come. The status never moves backwards."""

    PENDING = "pending"
    SENT = "sent_to_pos"
    PRINTED = "printed"
    FAILED = "failed"


class Resync(enum.Enum):
    """Why posd cannot replay events to a till, so that the till must reload its open orders.

    `RETENTION`: the next events have been deleted. `RESET`: the till's position is of another stream.
    `AHEAD`: the till's position is after the last event of the stream.
    """

    RETENTION = "retention"
    RESET = "reset"
    AHEAD = "ahead"


@frozen
class Tenant:
    """A shop: its slug in URLs, its schema in the database, its currency (ISO 4217) and time zone (IANA).

    Telephone numbers without a country code are of `default_region` (ISO 3166-1).
    """

    id: TenantId
    slug: str
    name: str
    schema: str
    currency: str = "GBP"
    timezone: str = "Europe/London"
    default_region: str = "GB"


@frozen
class Principal:
    """The caller that a valid key stands for. `tenant` is None for a key of all tenants."""

    key_id: int
    kind: KeyKind
    tenant: Tenant | None
    device_id: str | None = None


@frozen
class Position:
    """The place of an event in a stream. `stream_id` is None if a client has sent only the number."""

    seq: Seq
    stream_id: UUID | None = None


@frozen
class StreamHead:
    """The end of a tenant's stream. Events up to `pruned_seq` have been deleted."""

    tenant_id: TenantId
    stream_id: UUID
    last_seq: Seq
    pruned_seq: Seq = 0


@frozen
class SessionStart:
    """The state that a session starts from, as read from the database.

    `acked`: the device's cursor; None for a terminal without a device id.
    `legacy`: the terminal has never acknowledged an event and never named a position.
    `at`: the time of the read, by the database's clock. All nodes share that clock, so `at` tells which
    connection of a device is the newest.
    `refused`: events after the cursor that the device has reported as impossible to process.
    `recalled`: an operator has asked posd to send acknowledged events again.
    `astray`: the device has events that the present stream does not have.
    `renamed_ago`: the age of the stream's present name in seconds, if the device's cursor is of an earlier
    name.
    `shared`: the last position that the present stream has in common with the stream that the terminal
    names; None if the terminal names the present stream or an unknown one.
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


# posd creates an object for each event, and a frozen class takes three to five times as long to create.
@define
class Event:
    """A committed event of a stream.

    `data` and `extra_members` are JSON objects as compact UTF-8 text. The sequencer writes the text, and no
    code parses the text again on its way to a till. `extra_members` has the members beside `data` at the top
    level of the message; it is `b"{}"` if there are none.
    """

    seq: Seq
    type: str
    data: bytes
    created_at: datetime
    extra_members: bytes = b"{}"


@frozen
class AppendedEvents:
    """The events that a transaction has appended to a tenant's stream, in order."""

    tenant_id: TenantId
    stream_id: UUID
    events: Sequence[Event]


WARNING_CODES: Final = (
    *("unreadable", "schedule_as_text", "quantity_replaced", "name_missing", "character_replaced"),
)
"""The codes of `PublishWarning`."""
LEFT_OUT: Final = ("not_online", "over", "old", "unchanged", "gone", "condition")
"""The reasons for which an order that was published, or changed in a shop's tables, becomes no event."""


@frozen
class PublishWarning:
    """A note that posd has repaired a value of an event, or could not read the value.

    `member` is the path of the value (`items[0].price`), `code` one of `WARNING_CODES`, and `message` a
    sentence for a person. None of them contains the value.
    """

    member: str
    code: str
    message: str


# posd creates an object for each event, and a frozen class takes three to five times as long to create.
@define
class EventDraft:
    """An event without a number. Its data has the form that docs/protocol.md specifies.

    `warnings` list the repairs of its data. They are not part of the event.
    """

    type: str
    data: Mapping[str, object]
    extra_members: Mapping[str, object] = field(factory=dict)
    warnings: tuple[PublishWarning, ...] = field(default=(), eq=False)


@frozen
class StoredOrder:
    """posd's record of an order: the last published snapshot, its version and its status."""

    order_id: str
    snapshot: Mapping[str, object]
    status: str
    version: int


@frozen
class Terminal:
    """An admitted connection of a till.

    `device_id` is None for a terminal without one. `position` is the position from which the till asked to
    resume. `stream_id` is the stream at the time of admission; the till's acknowledgements are about that
    stream.
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
PRUNED = CloseReason(1013, "the next events have been deleted")
REVOKED = CloseReason(4001, "the credential is no longer valid")
DISABLED = CloseReason(4001, "the device is disabled")
DISCONNECTED = CloseReason(1001, "disconnected by the operator")
SUPERSEDED = CloseReason(4009, "superseded")
