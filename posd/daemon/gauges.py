"""What a node is asked when it is scraped, and which of its parts knows the answer.

What each of these means is said in `posd.monitoring.exposition`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from attrs import frozen

from posd.database.pool import Database
from posd.delivery.feed import Feed
from posd.delivery.hub import Exchange
from posd.monitoring.database_clock import DatabaseClock
from posd.monitoring.health import Health
from posd.publishing.doorman import Doorman
from posd.publishing.sequencer import Sequencer
from posd.security.connection_limits import Connections
from posd.security.validity import Validity

_WATCHED: Final = ("database", "feed", "sequencer")


@frozen(kw_only=True, eq=False)
class Gauges:
    """The parts that are asked.

    `send_queue_limit` is what is in force now; `certificate` gives None without TLS; `reload_failed` says
    whether configuration or certificates were found that cannot be used.
    """

    health: Health
    exchange: Exchange
    connections: Connections
    sequencer: Sequencer
    database: Database
    doorman: Doorman
    feed: Feed
    clock: DatabaseClock
    send_queue_limit: Callable[[], int]
    certificate: Callable[[], Validity | None]
    reload_failed: Callable[[], bool]

    def readings(self) -> dict[str, Callable[[], float | None]]:
        """A question for each name; None is the answer where there is nothing to be said."""
        return {
            **{f"{name}_up": self.health.parts[name] for name in _WATCHED},
            "doorman": lambda: self.doorman.fence is not None,
            "readers_up": self.health.spares["readers"],
            "ready": lambda: not self.health.missing(),
            "draining": lambda: self.exchange.draining,
            "connections_open": lambda: self.connections.open,
            "connections_limit": lambda: self.connections.total,
            "send_queue_bytes": lambda: self.exchange.held,
            "send_queue_limit_bytes": self.send_queue_limit,
            "publications_waiting": lambda: self.sequencer.waiting,
            "tenants_left_out": lambda: self.sequencer.left_out,
            "database_pool_idle": lambda: self.database.use.idle,
            "database_pool_busy": lambda: self.database.use.lent,
            "database_pool_down": lambda: self.database.use.down,
            "database_pool_waiting": lambda: self.database.use.waiting,
            "database_pool_held_back": lambda: self.database.use.held_back,
            "database_clock_offset_seconds": lambda: self.clock.offset,
            "feed_canary_seconds": lambda: self.feed.canary_seconds,
            "feed_missed": lambda: self.feed.canaries_missed,
            "tls_certificate_expiry_seconds": lambda: self._of_certificate(_left),
            "tls_certificate_lifetime_seconds": lambda: self._of_certificate(_lifetime),
            "reload_failed": self.reload_failed,
        }

    def _of_certificate(self, ask: Callable[[Validity, datetime], float]) -> float | None:
        validity = self.certificate()
        return None if validity is None else ask(validity, datetime.now(UTC))


def _left(validity: Validity, now: datetime) -> float:
    return (validity.ends - now).total_seconds()


def _lifetime(validity: Validity, _: datetime) -> float:
    return (validity.ends - validity.begins).total_seconds()
