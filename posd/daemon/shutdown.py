"""Stops the parts of posd one after the other, within a limited time."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.waiting import with_timeout

_MINIMUM_SECONDS: Final = 0.5
"""Seconds that a part has even if the earlier parts have used up the common time."""

StopFunction = Callable[[], Deferred[Any] | Coroutine[Any, Any, Any] | None]


class Shutdown:
    """A shutdown with `seconds` for all parts together.

    If a part does not end in its time, the log names it, its name is added to `unfinished`, and the next
    part is stopped.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime, seconds: float) -> None:
        self._reactor = reactor
        self._deadline = reactor.seconds() + seconds
        self._stopping = "the reactor"
        self.unfinished: list[str] = []

    async def stop_part(self, name: str, seconds: float, stop: StopFunction) -> None:
        """Stop one part within so many seconds. A failure is logged and does not stop the shutdown."""
        self._stopping = name
        seconds_left = max(_MINIMUM_SECONDS, min(seconds, self._deadline - self._reactor.seconds()))
        try:
            result = stop()
            if result is not None:
                await with_timeout(self._reactor, seconds_left, result)
        except TimeoutError:
            self.unfinished.append(name)
            self._log.error(
                "{name} did not end within {seconds:.1f} s; posd ends without waiting for it",
                name=name,
                seconds=seconds_left,
            )
        except Exception:
            self._log.failure("{name} failed to stop; posd goes on stopping", name=name)
        self._stopping = "the reactor"

    def exit_forcibly_after(
        self, seconds: float, status: int, exit_now: Callable[[int], object] = os._exit
    ) -> threading.Timer:
        """End the process with this status if it still runs after so many seconds.

        The timer is a thread, because the reactor may hang in a blocking call, or a thread of its pool may
        hang that the end of the process waits for.
        """

        def give_up() -> None:
            self._log.critical(
                "posd did not end within {seconds:.0f} s, {name} did not end; the process ends now",
                seconds=seconds,
                name=self._stopping,
            )
            # Shows where each thread hangs: files and functions, no values.
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
            exit_now(status)

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        return timer
