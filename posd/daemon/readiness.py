"""Whether a node is ready to serve, and whether a part of it has stopped trying."""

from __future__ import annotations

from typing import Final, Protocol

from posd.database.link import Link
from posd.database.pool import Database
from posd.database.readers import Readers
from posd.delivery.feed import Feed
from posd.delivery.hub import Exchange
from posd.delivery.presence import Presence
from posd.monitoring.health import Health
from posd.publishing.sequencer import Sequencer

# Rows are numbered within milliseconds. After a bulk of a hundred thousand it is some seconds.
_OUTBOX_SECONDS: Final = 60.0


class Parts(Protocol):
    """What is asked: the parts of a running posd (`posd.daemon.wiring`)."""

    database: Database
    feed: Feed
    numbering: Link
    sequencer: Sequencer
    presence: Presence
    exchange: Exchange
    readers: Readers
    listening: bool
    fitting: bool


def health(parts: Parts) -> Health:
    """What `/health/ready` asks each time: what a node needs to serve, and what it serves better with."""
    return Health(
        {
            "database": lambda: parts.database.up and not parts.database.stalled,
            "feed": lambda: parts.feed.up and not parts.feed.stalled,
            "sequencer": lambda: parts.numbering.up and not parts.sequencer.stalled,
            "listeners": lambda: parts.listening,
            "schema": lambda: parts.fitting,
            "books": lambda: not parts.presence.overdue,
            "not draining": lambda: not parts.exchange.draining,
        },
        {
            # Everything is found by polling then, up to a second later.
            "notifications": lambda: not parts.feed.deaf,
            "outbox": lambda: parts.feed.outbox_seconds < _OUTBOX_SECONDS,
            # Orders in shops' own tables wait then. What is published by REST or SQL does not.
            "readers": lambda: parts.readers.up,
            "tenants": lambda: parts.sequencer.serves_all,
        },
    )


def stalled(parts: Parts) -> list[str]:
    """The names of the parts that have made no attempt for a minute and will make none."""
    named = {
        "database": parts.database.stalled,
        "feed": parts.feed.stalled,
        "sequencer": parts.sequencer.stalled,
    }
    return [name for name, is_so in named.items() if is_so]
