"""When connections to a server reconnect: after growing pauses, or soon after one of them has succeeded."""

from __future__ import annotations

import random
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

_FIRST_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 2.0
_MAX_DOUBLINGS: Final = 5


class ReconnectPauses:
    """The pauses of all connections to one server.

    A connection that has failed waits 0.1 s before it tries again. The pause doubles with each failure, up
    to 2 s, and is
    multiplied by a random factor between 0.5 and 1. When one connection succeeds, the server is available,
    and the
    others try again within 0.1 s. So ten connections find a new primary within about 0.2 s, although each
    of them tries only every 1 to 2 s.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._pauses: set[IDelayedCall] = set()

    def pause(self, failures: int) -> Deferred[None]:
        """Return a Deferred that fires when a connection may try again after this many failures in a row.
        It may be
        cancelled."""

        def cancel(_: Deferred[None]) -> None:
            self._pauses.discard(timer)
            timer.cancel()

        def end() -> None:
            self._pauses.discard(timer)
            over.callback(None)

        over: Deferred[None] = Deferred(cancel)
        doubled = _FIRST_SECONDS * 2 ** min(failures - 1, _MAX_DOUBLINGS)
        timer = self._reactor.callLater(_random_part(min(doubled, _LAST_SECONDS)), end)
        self._pauses.add(timer)
        return over

    def succeeded(self) -> None:
        """A connection has succeeded. No pause becomes shorter than the first pause."""
        for timer in self._pauses:
            soon = _random_part(_FIRST_SECONDS)
            if timer.getTime() - self._reactor.seconds() > soon:
                timer.reset(soon)


def _random_part(seconds: float) -> float:
    # Connections that were lost together do not reconnect in the same turn.
    return seconds * random.uniform(0.5, 1.0)
