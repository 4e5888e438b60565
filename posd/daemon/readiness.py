"""The conditions of readiness and of liveness of a node."""

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

# The sequencer numbers rows within milliseconds, and a bulk of a hundred thousand rows within seconds.
_OUTBOX_SECONDS: Final = 60.0


class ReadinessSources(Protocol):
    """The parts of a running posd (`posd.daemon.wiring`) that the conditions read."""

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
    """Return the conditions of `/health/ready`: those that a node needs, and those that are optional."""
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
            # Without notifications, polls find all changes, up to a second later.
            "notifications": lambda: not sources.feed.canary_is_missing,
            "outbox": lambda: sources.feed.outbox_seconds < _OUTBOX_SECONDS,
            # Without readers, orders in shops' own tables wait. Events published by REST or SQL do not.
            "readers": lambda: sources.readers.up,
            "tenants": lambda: sources.sequencer.serves_all,
        },
    )


def stalled(sources: ReadinessSources) -> list[str]:
    """Return the names of the parts that have made no attempt for a minute."""
    by_name = {
        "database": sources.database.stalled,
        "feed": sources.feed.stalled,
        "sequencer": sources.sequencer.stalled,
    }
    return [name for name, is_stalled in by_name.items() if is_stalled]
