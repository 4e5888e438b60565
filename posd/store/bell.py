"""The two advisory locks by which the doorman says whether it has to be rung (`sql/main/006_doorman.sql`).

They belong to the session. All calls go to the connection on which the doorman numbers, which holds no other
advisory locks of a session.
"""

from __future__ import annotations

from typing import Final

from posd.database.link import Session

_SLEEP: Final = "SELECT pg_try_advisory_lock(7097, 10)"
_DOZE: Final = "SELECT pg_try_advisory_lock(7097, 11)"
_END_DOZE: Final = "SELECT pg_advisory_unlock(7097, 11)"
_WAKE: Final = "SELECT pg_advisory_unlock_all()"


async def try_sleep(session: Session) -> bool:
    """Have all who write into the outbox from now on ring; False while one is at it that will not."""
    return bool((await session.query(_SLEEP))[0][0])


async def try_doze(session: Session) -> bool:
    """Have those ring that have a share of the first lock; False if another session is in the way."""
    return bool((await session.query(_DOZE))[0][0])


async def end_doze(session: Session) -> None:
    """Give back the second lock only: all ring because of the first one."""
    await session.query(_END_DOZE)


async def wake(session: Session) -> None:
    """Have nobody ring."""
    await session.query(_WAKE)
