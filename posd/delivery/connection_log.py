"""Logs the end of each terminal's connection."""

from __future__ import annotations

from attrs import define, field
from twisted.logger import Logger

from posd.delivery.session import Session
from posd.monitoring.counters import Counters
from posd.security.log_sampler import LogSampler
from posd.security.rate_limits import Clock

_log = Logger()


@define(eq=False)
class ConnectionLog:
    """Logs and counts the ends of connections.

    All of them are counted. For a terminal that reconnects again and again, five lines are logged at once
    and then one a minute, each with the number of ends that were not logged. The terminals of a tenant that
    have no device name count as one.
    """

    clock: Clock
    counters: Counters
    _sampler: LogSampler = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._sampler = LogSampler(self.clock)

    def ended(
        self, session: Session, *, by: str, code: int | None, why: str, seconds: float
    ) -> None:
        """A connection has ended. `why` is posd's reason. The till's own reason is not logged."""
        self.counters.ended(by, code, why)
        terminal = session.terminal
        unsaid = self._sampler.take((terminal.tenant.id, terminal.device_id))
        if unsaid is None:
            return
        _log.info(
            "till gone: tenant={tenant} device={device} connection={connection} by={by} code={code}"
            " reason={reason!r} seconds={seconds} sent={sent} position={position} acked={acked}"
            " behind={behind} unsaid={unsaid}",
            tenant=terminal.tenant.slug,
            device=terminal.device_id,
            connection=str(terminal.connection_id),
            by=by,
            code=code,
            reason=why,
            seconds=round(seconds, 3),
            sent=session.sent,
            position=session.position,
            acked=session.acked,
            behind=session.backlog,
            unsaid=unsaid,
        )
