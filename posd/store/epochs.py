"""The names (`stream_id`) of streams, and the positions at which earlier names ended.

A position belongs to a `stream_id`. A name ends when the database may lack events that terminals have
received, for example after a failover. Up to the position at which it ended, its positions are valid in the
present stream too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.values import Seq, StreamHead, StreamName, TenantId

_RECOGNISE: Final = "SELECT dinedesk_main.pos_recognise()"
_BEGIN: Final = """
    SELECT dinedesk_main.pos_begin_epochs(%s::integer[], %s::uuid[], %s::bigint[], %s::bigint[])
"""
_ENDS: Final = """
    SELECT e.tenant_id, e.stream_id, e.ended_seq, f.began_seq
      FROM unnest(%s::integer[], %s::uuid[]) AS w(tenant_id, stream_id)
      JOIN dinedesk_main.pos_stream_epochs AS e USING (tenant_id, stream_id)
     CROSS JOIN LATERAL (SELECT min(n.began_seq) AS began_seq FROM dinedesk_main.pos_stream_epochs AS n
                          WHERE n.tenant_id = e.tenant_id AND n.began_at > e.began_at) AS f
     WHERE e.ended_seq IS NOT NULL
"""


@frozen
class StreamEnd:
    """The end of a name. Its events up to `shared` are also events of the present stream.

    The events stored under later names have positions above `resumed_after`.
    """

    shared: Seq
    resumed_after: Seq


async def is_same_history(executor: Executor) -> bool:
    """Return True if the database is the same as at the last call; else give all streams new names, once.

    A restored backup or a promoted standby may lack events that terminals have received.
    """
    ((same,),) = await executor.query(_RECOGNISE)
    return bool(same)


async def begin_new_history(executor: Executor, found: Iterable[StreamHead]) -> None:
    """Rename streams whose heads were found below positions that had been sent. The names end at these heads.

    A stream that has been renamed since then keeps its new name.
    """
    heads = sorted(found, key=lambda head: head.tenant_id)
    last = [head.last_seq for head in heads]
    names = [str(head.stream_id) for head in heads]
    await executor.execute(_BEGIN, ([head.tenant_id for head in heads], names, last, last))


async def reset_streams(executor: Executor, ids: Iterable[TenantId], common: Seq = 0) -> None:
    """Rename streams on an operator's request. The earlier names end at the position `common`."""
    tenants = list(ids)
    await executor.execute(_BEGIN, (tenants, None, [common] * len(tenants), None))


async def stream_ends(
    executor: Executor, names: Iterable[StreamName]
) -> dict[StreamName, StreamEnd]:
    """Return the ends of these names, without names that have not ended or are unknown."""
    wanted = list(names)
    columns = [tenant_id for tenant_id, _ in wanted], [str(name) for _, name in wanted]
    rows = await executor.query(_ENDS, columns)
    return {
        (tenant_id, UUID(stream_id)): StreamEnd(shared, resumed_after)
        for tenant_id, stream_id, shared, resumed_after in rows
    }
