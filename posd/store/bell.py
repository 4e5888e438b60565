"""The two advisory locks that tell publishers whether to notify the doorman (`sql/main/006_doorman.sql`).

The locks are session-level. All functions must be called on the connection on which the sequencer numbers
events. It holds no other session-level advisory locks.
"""

from __future__ import annotations

from typing import Final

from posd.database.reconnecting import Executor

_SLEEP: Final = "SELECT pg_try_advisory_lock(7097, 10)"
_DOZE: Final = "SELECT pg_try_advisory_lock(7097, 11)"
_END_DOZE: Final = "SELECT pg_advisory_unlock(7097, 11)"
_WAKE: Final = "SELECT pg_advisory_unlock_all()"


async def try_sleep(executor: Executor) -> bool:
    """Take the first lock: all transactions that write to the outbox from now on send `NOTIFY`.

    Return False, without waiting, while a transaction is open that will not send it.
    """
    return bool((await executor.query(_SLEEP))[0][0])


async def try_doze(executor: Executor) -> bool:
    """Take the second lock: transactions that hold the first lock in share mode send `NOTIFY`.

    Return False if another session holds the second lock.
    """
    return bool((await executor.query(_DOZE))[0][0])


async def end_doze(executor: Executor) -> None:
    """Release the second lock only. Transactions send `NOTIFY` because of the first lock."""
    await executor.query(_END_DOZE)


async def wake(executor: Executor) -> None:
    """Release both locks: transactions no longer send `NOTIFY`."""
    await executor.query(_WAKE)
