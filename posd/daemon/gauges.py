"""The gauges of a node, which are read at each scrape.

`posd.monitoring.exposition` describes them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from attrs import frozen

from posd.database.pool import Pool
from posd.delivery.feed import Feed
from posd.delivery.hub import Hub
from posd.monitoring.database_clock import DatabaseClock
from posd.monitoring.health import Health
from posd.publishing.doorman import Doorman
from posd.publishing.sequencer import Sequencer
from posd.security.connection_limits import ConnectionLimits
from posd.security.validity import Validity

_UP_GAUGES: Final = ("database", "feed", "sequencer")


@frozen(kw_only=True, eq=False)
class Gauges:
    """The sources of the gauges.

    `send_queue_limit` returns the limit in force. `certificate` returns None without TLS. `reload_failed`
    returns whether the last new configuration or certificate was unusable.
    """

    health: Health
    hub: Hub
    connections: ConnectionLimits
    sequencer: Sequencer
    database: Pool
    doorman: Doorman
    feed: Feed
    clock: DatabaseClock
    send_queue_limit: Callable[[], int]
    certificate: Callable[[], Validity | None]
    reload_failed: Callable[[], bool]

    def readings(self) -> dict[str, Callable[[], float | None]]:
        """Return a function for each gauge. It returns None if the gauge has no value now."""
        return {
            **{f"{name}_up": self.health.required[name] for name in _UP_GAUGES},
            "doorman": lambda: self.doorman.fence is not None,
            "readers_up": self.health.optional["readers"],
            "ready": lambda: not self.health.missing(),
            "draining": lambda: self.hub.draining,
            "connections_open": lambda: self.connections.open,
            "connections_limit": lambda: self.connections.total,
            "send_queue_bytes": lambda: self.hub.held,
            "send_queue_limit_bytes": self.send_queue_limit,
            "publications_waiting": lambda: self.sequencer.waiting,
            "tenants_left_out": lambda: self.sequencer.left_out,
            "database_pool_idle": lambda: self.database.usage.idle,
            "database_pool_busy": lambda: self.database.usage.lent,
            "database_pool_down": lambda: self.database.usage.down,
            "database_pool_waiting": lambda: self.database.usage.waiting,
            "database_pool_held_back": lambda: self.database.usage.held_back,
            "database_clock_offset_seconds": lambda: self.clock.offset,
            "feed_canary_seconds": lambda: self.feed.canary_seconds,
            "feed_missed": lambda: self.feed.canaries_missed,
            "tls_certificate_expiry_seconds": lambda: self._certificate_seconds(_seconds_left),
            "tls_certificate_lifetime_seconds": lambda: self._certificate_seconds(_lifetime),
            "reload_failed": self.reload_failed,
        }

    def _certificate_seconds(self, measure: Callable[[Validity, datetime], float]) -> float | None:
        validity = self.certificate()
        return None if validity is None else measure(validity, datetime.now(UTC))


def _seconds_left(validity: Validity, now: datetime) -> float:
    return (validity.ends - now).total_seconds()


def _lifetime(validity: Validity, _: datetime) -> float:
    return (validity.ends - validity.begins).total_seconds()
