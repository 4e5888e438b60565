"""The names of streams: which database this is, and where each name has ended.

A position is counted in a name (`stream_id`). A name ends when the database may lack events that terminals
have seen; up to where it ended its positions are those of the present name too.
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
    """The end of a name: its events up to `shared` are those of the present stream.

    After `resumed_after` come all events that were stored under later names.
    """

    shared: Seq
    resumed_after: Seq


async def is_same_history(executor: Executor) -> bool:
    """Whether this is the database that it was; if not, all streams get new names, once.

    A backup that was restored, or a standby that was promoted, may lack events that terminals have.
    """
    ((same,),) = await executor.query(_RECOGNISE)
    return bool(same)


async def begin_new_history(executor: Executor, found: Iterable[StreamHead]) -> None:
    """End the names of streams that were found behind what was sent of them, at the heads found.

    A stream that has another name by now keeps it.
    """
    heads = sorted(found, key=lambda head: head.tenant_id)
    last = [head.last_seq for head in heads]
    names = [str(head.stream_id) for head in heads]
    await executor.execute(_BEGIN, ([head.tenant_id for head in heads], names, last, last))


async def reset_streams(executor: Executor, ids: Iterable[TenantId], common: Seq = 0) -> None:
    """End the names of streams by hand: only events up to `common` are as terminals have them."""
    tenants = list(ids)
    await executor.execute(_BEGIN, (tenants, None, [common] * len(tenants), None))


async def stream_ends(
    executor: Executor, names: Iterable[StreamName]
) -> dict[StreamName, StreamEnd]:
    """The ends of these names. One that has not ended, or that the database does not know, is missing."""
    wanted = list(names)
    columns = [tenant_id for tenant_id, _ in wanted], [str(name) for _, name in wanted]
    rows = await executor.query(_ENDS, columns)
    return {
        (tenant_id, UUID(stream_id)): StreamEnd(shared, resumed_after)
        for tenant_id, stream_id, shared, resumed_after in rows
    }
