"""The two advisory locks by which the doorman says whether it has to be rung (`sql/main/006_doorman.sql`).

They belong to the session. All calls go to the connection on which the doorman numbers, which holds no other
advisory locks of a session.
"""

from __future__ import annotations

from typing import Final

from posd.database.reconnecting import Executor

_SLEEP: Final = "SELECT pg_try_advisory_lock(7097, 10)"
_DOZE: Final = "SELECT pg_try_advisory_lock(7097, 11)"
_END_DOZE: Final = "SELECT pg_advisory_unlock(7097, 11)"
_WAKE: Final = "SELECT pg_advisory_unlock_all()"


async def try_sleep(executor: Executor) -> bool:
    """Have all who write into the outbox from now on ring; False while one is at it that will not."""
    return bool((await executor.query(_SLEEP))[0][0])


async def try_doze(executor: Executor) -> bool:
    """Have those ring that have a share of the first lock; False if another session is in the way."""
    return bool((await executor.query(_DOZE))[0][0])


async def end_doze(executor: Executor) -> None:
    """Give back the second lock only: all ring because of the first one."""
    await executor.query(_END_DOZE)


async def wake(executor: Executor) -> None:
    """Have nobody ring."""
    await executor.query(_WAKE)
