"""Whether a node is ready to serve, and whether a part of it has stopped trying."""

from __future__ import annotations

from typing import Final, Protocol

from posd.database.pool import Pool
from posd.database.reconnecting import ReconnectingConnection
from posd.database.shop_readers import ShopReaders
from posd.delivery.feed import Feed
from posd.delivery.hub import Hub
from posd.delivery.presence import Presence
from posd.monitoring.health import Health
from posd.publishing.sequencer import Sequencer

# Rows are numbered within milliseconds. After a bulk of a hundred thousand it is some seconds.
_OUTBOX_SECONDS: Final = 60.0


class ReadinessSources(Protocol):
    """What is asked: the parts of a running posd (`posd.daemon.wiring`)."""

    database: Pool
    feed: Feed
    numbering: ReconnectingConnection
    sequencer: Sequencer
    presence: Presence
    hub: Hub
    readers: ShopReaders
    listening: bool
    schema_fits: bool


def health(sources: ReadinessSources) -> Health:
    """What `/health/ready` asks each time: what a node needs to serve, and what it serves better with."""
    return Health(
        {
            "database": lambda: sources.database.up and not sources.database.stalled,
            "feed": lambda: sources.feed.up and not sources.feed.stalled,
            "sequencer": lambda: sources.numbering.up and not sources.sequencer.stalled,
            "listeners": lambda: sources.listening,
            "schema": lambda: sources.schema_fits,
            "books": lambda: not sources.presence.is_overdue,
            "not draining": lambda: not sources.hub.draining,
        },
        {
            # Everything is found by polling then, up to a second later.
            "notifications": lambda: not sources.feed.canary_is_missing,
            "outbox": lambda: sources.feed.outbox_seconds < _OUTBOX_SECONDS,
            # Orders in shops' own tables wait then. What is published by REST or SQL does not.
            "readers": lambda: sources.readers.up,
            "tenants": lambda: sources.sequencer.serves_all,
        },
    )


def stalled(sources: ReadinessSources) -> list[str]:
    """The names of the parts that have made no attempt for a minute and will make none."""
    by_name = {
        "database": sources.database.stalled,
        "feed": sources.feed.stalled,
        "sequencer": sources.sequencer.stalled,
    }
    return [name for name, is_stalled in by_name.items() if is_stalled]
