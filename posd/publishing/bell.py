"""The times at which the doorman looks at the outbox: at intervals under load, and otherwise on `NOTIFY`.

The doorman has three states, which `posd.store.bell` shows to the hooks as advisory locks:

- *Awake*: it looks every millisecond for 20 ms after it has seen rows, and then every 4 ms. Hooks send no
  notification. After 200 ms without rows the doorman rests.
- *Asleep*: it waits for `NOTIFY posd_outbox`. It takes this state if no open transaction has written to the
  outbox without a notification.
- *Dozing*: it waits for `NOTIFY posd_outbox`, but such a transaction is open and may commit without one.
  Twice a second the doorman tries to fall asleep.

Twice a second, the poll of `posd.delivery.feed` finds the rows that were committed without a notification.

Any session of the database can send notifications. If a look after a notification finds no rows, the look
after the next one is delayed, so a flood of notifications costs 20 looks a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from posd.database.reconnecting import Executor
from posd.errors import StatementFailed, Unavailable
from posd.monitoring.counters import ASLEEP, AWAKE, DOZING, Counters
from posd.store import bell

_BUSY_SECONDS: Final = 0.02
_BUSY_PAUSE: Final = 0.001
_PAUSE: Final = 0.004
_AWAKE_SECONDS: Final = 0.2
# Most transactions end within this time after they have tested the lock.
_OVERLAP_SECONDS: Final = 0.05
_DOZE_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 1.0
_FIRST_BACKOFF_SECONDS: Final = 0.002
_LAST_BACKOFF_SECONDS: Final = 0.05


class Bell:
    """Requests looks at the outbox, and holds the locks that show the state of the doorman to the hooks.

    `look` returns after the look, and `wake` returns at once. The sequencer calls `rows_seen` after each
    look, including looks that it makes on its own. The locks are taken on `connection`.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connection: Executor,
        *,
        look: Callable[[], Awaitable[int]],
        wake: Callable[[], None],
        counters: Counters | None = None,
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._look_at_outbox = look
        self._wake = wake
        self._counters = counters or Counters()
        self.state: str | None = None
        """One of `counters.STATES`; None while this node is not the doorman."""
        # A new object each time this node becomes the doorman. The loop of an earlier term ends.
        self._term: object | None = None
        self._pausing: Deferred[None] | None = None
        self._rows_seen_at = 0.0
        self._look_seconds = 0.0
        self._by_poll = False
        self._answer_timer: IDelayedCall | None = None
        self._last_answer_at = 0.0
        self._backoff_seconds = 0.0

    def start(self) -> None:
        """Begin to look at the outbox. Call this when this node has become the doorman."""
        self._term, self.state = object(), AWAKE
        self._rows_seen_at = self._clock.seconds()
        Deferred.fromCoroutine(self._serve(self._term))

    def stop(self) -> None:
        """End the looks. Call this when this node is not the doorman any more."""
        self._term = self.state = None
        if self._answer_timer is not None and self._answer_timer.active():
            self._answer_timer.cancel()
        self._end_pause()

    def ring(self) -> None:
        """Look at the outbox after a notification. Does nothing while the doorman is awake."""
        self._counters.rung()
        if self._is_resting and (self._answer_timer is None or not self._answer_timer.active()):
            wait = max(0.0, self._last_answer_at + self._backoff_seconds - self._clock.seconds())
            self._answer_timer = self._clock.callLater(wait, self._look_for_ring)

    def rows_found_by_poll(self) -> None:
        """Look at the outbox, because the poll has found rows there. Some may be of tenants in quarantine."""
        if self.state is not None:
            self._by_poll = self._is_resting
            self._look()

    def rows_seen(self, rows: int) -> None:
        """Note that a look has seen this number of rows that can be numbered. Wake up if there are any."""
        by_poll, self._by_poll = self._by_poll, False
        if rows:
            self._rows_seen_at, self._backoff_seconds = self._clock.seconds(), 0.0
            if self._is_resting:
                if by_poll:
                    self._counters.found_by_poll(rows)
                self._end_pause()

    @property
    def _is_resting(self) -> bool:
        return self.state in (ASLEEP, DOZING)

    def _look_for_ring(self) -> None:
        self._last_answer_at = self._clock.seconds()
        # `rows_seen` resets the delay if the look finds rows.
        self._backoff_seconds = min(
            max(2 * self._backoff_seconds, _FIRST_BACKOFF_SECONDS), _LAST_BACKOFF_SECONDS
        )
        self._by_poll = False
        self._look()

    def _look(self) -> None:
        if self.state is not None:
            self._counters.looked(self.state)
            self._wake()

    async def _serve(self, term: object) -> None:
        while self._term is term:
            try:
                await self._stay_awake(term)
                if self._term is term:
                    await self._rest_until_rows(term)
            except (Unavailable, StatementFailed):
                # A lost connection also ends the locks and the lease. The sequencer has logged other errors
                # of the outbox.
                await self._pause(term, _RETRY_SECONDS)
            except Exception:
                self._log.failure(
                    "the doorman could not look at the outbox or take its locks. It tries again in"
                    " {seconds:.0f} s; meanwhile the poll finds new orders twice a second. This is a fault of"
                    " posd; report it with this traceback",
                    seconds=_RETRY_SECONDS,
                )
                await self._pause(term, _RETRY_SECONDS)

    async def _stay_awake(self, term: object) -> None:
        """Look at intervals, until no look has found rows for 200 ms."""
        self.state = AWAKE
        while self._term is term:
            idle = self._clock.seconds() - self._rows_seen_at
            if idle >= _AWAKE_SECONDS:
                return
            # If looks take long, because of a transaction or dead rows, they use half of the time at most.
            seconds = _BUSY_PAUSE if idle < _BUSY_SECONDS else _PAUSE
            await self._pause(term, max(seconds, self._look_seconds))
            if self._term is term:
                await self._look_now()

    async def _look_now(self) -> None:
        began = self._clock.seconds()
        self._counters.looked(self.state or AWAKE)
        await self._look_at_outbox()
        self._look_seconds = self._clock.seconds() - began

    async def _rest_until_rows(self, term: object) -> None:
        """Take one of the locks, and wait until a look finds rows."""
        since = self._rows_seen_at
        if await bell.try_sleep(self._connection):
            state = ASLEEP
        elif await bell.try_doze(self._connection):
            state = DOZING
        else:
            # A session other than posd's holds the locks. Stay awake and try again.
            self._rows_seen_at = self._clock.seconds() - _BUSY_SECONDS
            return
        try:
            if self._term is term:
                self.state = state
                # Transactions that were committed before the lock was taken have sent no notification.
                self._look()
            if state == DOZING:
                await self._keep_looking(term, since)
            while self._term is term and self._rows_seen_at == since:
                await self._pause(term, None if state == ASLEEP else _DOZE_SECONDS)
                if (
                    state == DOZING
                    and self._term is term
                    and await bell.try_sleep(self._connection)
                ):
                    await bell.end_doze(self._connection)
                    if self._term is term:
                        self.state = state = ASLEEP
                        self._look()
        finally:
            await bell.wake(self._connection)

    async def _keep_looking(self, term: object, since: float) -> None:
        """Look for another 50 ms: open transactions may have tested the lock before it was taken."""
        ends = self._clock.seconds() + _OVERLAP_SECONDS
        while self._term is term and self._rows_seen_at == since and self._clock.seconds() < ends:
            await self._pause(term, max(_PAUSE, self._look_seconds))
            if self._term is term:
                await self._look_now()

    async def _pause(self, term: object, seconds: float | None) -> None:
        """Wait for `seconds`, or without a limit, until `_end_pause` is called."""
        if self._term is not term:
            return
        pausing: Deferred[None] = Deferred()
        self._pausing = pausing
        timer = None if seconds is None else self._clock.callLater(seconds, self._end_pause)
        await pausing
        if timer is not None and timer.active():
            timer.cancel()

    def _end_pause(self) -> None:
        pausing, self._pausing = self._pausing, None
        if pausing is not None:
            pausing.callback(None)
