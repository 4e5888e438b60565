"""When the doorman looks at the outbox, and when it waits until it is rung.

Awake it looks by itself: every millisecond for 20 ms after it has seen rows, then every 4 ms. After 200 ms
without rows it rests, and is rung by `NOTIFY posd_outbox`. It is *asleep* where no transaction is open that
has put rows into the outbox and rung nobody. Otherwise it *dozes*, and then such a transaction may commit
without having rung. Its rows are found by the poll, twice a second, and so is whatever else was not rung
about.

Notifications may come from anybody. One for which nothing is found makes the next one wait, so a flood costs
20 looks a second.
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
# Longer than a shop's transaction takes that has tested the lock already, as a rule.
_OVERLAP_SECONDS: Final = 0.05
_DOZE_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 1.0
_FIRST_BACKOFF_SECONDS: Final = 0.002
_LAST_BACKOFF_SECONDS: Final = 0.05


class Bell:
    """Has the outbox looked at by `look`, or by `wake` where nothing depends on the end of the look.

    The sequencer answers both with `rows_seen`, and looks by itself too. The locks are taken on `connection`.
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
        # Stands for the time during which the node is the doorman: a loop ends when it is another one.
        self._term: object | None = None
        self._pausing: Deferred[None] | None = None
        self._rows_seen_at = 0.0
        self._look_seconds = 0.0
        self._by_poll = False
        self._answer_timer: IDelayedCall | None = None
        self._last_answer_at = 0.0
        self._backoff_seconds = 0.0

    def start(self) -> None:
        """This node is the doorman from now on."""
        self._term, self.state = object(), AWAKE
        self._rows_seen_at = self._clock.seconds()
        Deferred.fromCoroutine(self._serve(self._term))

    def stop(self) -> None:
        """This node is the doorman no more."""
        self._term = self.state = None
        if self._answer_timer is not None and self._answer_timer.active():
            self._answer_timer.cancel()
        self._end_pause()

    def ring(self) -> None:
        """A notification has come. While the doorman is awake it looks anyway."""
        self._counters.rung()
        if self._is_resting and (self._answer_timer is None or not self._answer_timer.active()):
            wait = max(0.0, self._last_answer_at + self._backoff_seconds - self._clock.seconds())
            self._answer_timer = self._clock.callLater(wait, self._look_for_ring)

    def rows_found_by_poll(self) -> None:
        """The poll has found rows in the outbox. They may be such as cannot be numbered at the moment."""
        if self.state is not None:
            self._by_poll = self._is_resting
            self._look()

    def rows_seen(self, rows: int) -> None:
        """The sequencer has looked, and seen so many rows that are to be numbered."""
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
        # In vain, unless rows are seen.
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
                # When the connection is lost, so are the locks and the lease. What else is wrong with the
                # outbox, the sequencer has logged.
                await self._pause(term, _RETRY_SECONDS)
            except Exception:
                self._log.failure(
                    "the doorman could not look at the outbox or take its locks; it goes on in"
                    " {seconds:.0f} s, and the poll looks meanwhile",
                    seconds=_RETRY_SECONDS,
                )
                await self._pause(term, _RETRY_SECONDS)

    async def _stay_awake(self, term: object) -> None:
        """Look again and again, until nothing was seen for 200 ms."""
        self.state = AWAKE
        while self._term is term:
            idle = self._clock.seconds() - self._rows_seen_at
            if idle >= _AWAKE_SECONDS:
                return
            # A look that takes long, behind a transaction or among dead rows, takes half the time at most.
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
        """Take one of the locks, and wait until rows are seen."""
        since = self._rows_seen_at
        if await bell.try_sleep(self._connection):
            state = ASLEEP
        elif await bell.try_doze(self._connection):
            state = DOZING
        else:
            # Another session holds it, which no session should.
            self._rows_seen_at = self._clock.seconds() - _BUSY_SECONDS
            return
        try:
            if self._term is term:
                self.state = state
                # What was committed before the lock was taken rang nobody.
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
        """Look for a while longer: transactions may commit that have tested the lock before it was taken."""
        ends = self._clock.seconds() + _OVERLAP_SECONDS
        while self._term is term and self._rows_seen_at == since and self._clock.seconds() < ends:
            await self._pause(term, max(_PAUSE, self._look_seconds))
            if self._term is term:
                await self._look_now()

    async def _pause(self, term: object, seconds: float | None) -> None:
        """Wait for so long, or until the doorman is stirred."""
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
