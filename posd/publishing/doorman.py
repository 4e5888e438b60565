"""The lease of the doorman, the one node that looks at the outbox.

The node with the lease renews it every second, on the connection of its sequencer: a node that cannot number
events cannot renew the lease. All times are those of the database. A node may not know yet that it has lost
the lease, so the sequencer's transaction compares the fence (`posd.store.sequencing.take_rows`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from posd.database.reconnecting import ReconnectingConnection
from posd.errors import StatementFailed, Unavailable
from posd.monitoring.counters import Counters
from posd.store import doorman as leases

_RENEW_SECONDS: Final = 1.0


class Doorman(Service):
    """Claims the lease on `connection` and renews it.

    `changed` is called with the fence when this node gets the lease, and with None when it loses the lease.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connection: ReconnectingConnection,
        node_id: UUID,
        host: str,
        *,
        changed: Callable[[int | None], None],
        counters: Counters | None = None,
    ) -> None:
        self._connection = connection
        self._node_id = node_id
        self._host = host
        self._changed = changed
        self._counters = counters or Counters()
        self._renewing = LoopingCall(self._renew)
        self._renewing.clock = clock
        self._claim: Deferred[None] | None = None
        self._last_error: str | None = None
        self.fence: int | None = None
        """The fence of this node's lease; None if this node does not know of a lease of its own."""

    def startService(self) -> None:
        Service.startService(self)
        self._renewing.start(_RENEW_SECONDS)

    def stopService(self) -> Deferred[None]:
        """Release the lease. Call this after the sequencer has stopped."""
        Service.stopService(self)
        if self._renewing.running:
            self._renewing.stop()
        return Deferred.fromCoroutine(self._give_up_lease())

    def connection_changed(self, connection: ReconnectingConnection) -> None:
        """Claim the lease on a new connection, and forget the lease when the connection is lost."""
        if not connection.up:
            self._set_fence(None)
        elif self.running:
            self._renew()

    def lease_lost(self) -> None:
        """Forget the lease, because the database has reported that another node has it."""
        self._set_fence(None)

    def _renew(self) -> None:
        """Claim or renew the lease, unless an earlier statement for that is still running."""
        if self._claim is None:
            self._claim = Deferred.fromCoroutine(self._claim_lease())
            self._claim.addBoth(lambda _: self._claim_ended())

    def _claim_ended(self) -> None:
        self._claim = None

    async def _claim_lease(self) -> None:
        try:
            fence = await leases.claim(self._connection, self._node_id, self._host)
        except Unavailable:
            # The lease is unchanged in the database. `connection_changed` handles a lost connection.
            return
        except StatementFailed as error:
            if self._last_error != str(error):
                self._last_error = str(error)
                self._log.error(
                    "the lease of the doorman cannot be renewed: {error}. posd tries again every second;"
                    " meanwhile orders wait in the outbox if no other node has the lease. `posctl doctor`"
                    " names what is wrong with the database",
                    error=error,
                )
            return
        except Exception:
            self._log.failure(
                "posd failed to renew the lease of the doorman, and tries again every second. This is a fault"
                " of posd; report it with this traceback"
            )
            return
        self._last_error = None
        if self._connection.up:
            self._set_fence(fence)

    def _set_fence(self, fence: int | None) -> None:
        before, self.fence = self.fence, fence
        if fence == before:
            return
        if fence is None:
            self._log.warn(
                "this node is not the doorman any more: it drops the orders that it has read, and does not"
                " look at the outbox until it has the lease again"
            )
        else:
            self._counters.became_doorman()
            self._log.info(
                "this node is the doorman: it publishes the orders of the outbox (fence {fence})",
                fence=fence,
            )
        self._changed(fence)

    async def _give_up_lease(self) -> None:
        if self._claim is not None:
            await self._claim
        if self.fence is None:
            return
        self.fence = None
        self._changed(None)
        try:
            await leases.release(self._connection, self._node_id)
        except (Unavailable, StatementFailed):
            # The lease ends with the connection.
            return
