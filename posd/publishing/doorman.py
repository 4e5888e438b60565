"""The lease of the doorman: which of several nodes looks at the outbox.

A node that has the lease renews it every second, on the connection on which it numbers: a node that cannot
number cannot renew either. All times are those of the database. What a node knows of its lease may be out of
date, so the transaction that numbers compares the fence (`posd.store.sequencing.take_rows`).
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

    `changed` is called with the fence when this node has got the lease, and with None when it has lost it.
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
        """The fence of this node's lease; None while it has none, as far as it knows."""

    def startService(self) -> None:
        Service.startService(self)
        self._renewing.start(_RENEW_SECONDS)

    def stopService(self) -> Deferred[None]:
        """Give the lease up. Call this when nothing is numbered any more."""
        Service.stopService(self)
        if self._renewing.running:
            self._renewing.stop()
        return Deferred.fromCoroutine(self._give_up_lease())

    def connection_changed(self, connection: ReconnectingConnection) -> None:
        """The connection has come up, or was lost. Another one claims the lease anew."""
        if not connection.up:
            self._set_fence(None)
        elif self.running:
            self._renew()

    def lease_lost(self) -> None:
        """The database says that this node does not have the lease it believes to have."""
        self._set_fence(None)

    def _renew(self) -> None:
        """Claim or renew the lease, one statement at a time: a slow database is not asked again meanwhile."""
        if self._claim is None:
            self._claim = Deferred.fromCoroutine(self._claim_lease())
            self._claim.addBoth(lambda _: self._claim_ended())

    def _claim_ended(self) -> None:
        self._claim = None

    async def _claim_lease(self) -> None:
        try:
            fence = await leases.claim(self._connection, self._node_id, self._host)
        except Unavailable:
            # The lease stays what it is in the database. When the connection is lost `connection_changed`
            # says so.
            return
        except StatementFailed as error:
            if self._last_error != str(error):
                self._last_error = str(error)
                self._log.error(
                    "the lease of the doorman cannot be renewed: {error}. Orders wait in the outbox if no"
                    " other node has it. `posctl doctor` names what is wrong with the database",
                    error=error,
                )
            return
        except Exception:
            self._log.failure("posd failed at renewing the lease of the doorman")
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
                "this node is not the doorman any more: it drops what it has read of the outbox, and leaves"
                " the outbox alone until it has the lease again"
            )
        else:
            self._counters.became_doorman()
            self._log.info(
                "this node is the doorman: it takes orders out of the outbox (fence {fence})",
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
            # The lease lapses with the connection.
            return
