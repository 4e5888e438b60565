"""Where terminals stand when they connect: one statement for all that come at the same time.

After a power cut or a restart of posd a town's terminals connect within a second. One statement for
each would queue for the pool's few connections for longer than a terminal waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Final
from uuid import UUID

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from posd.database.coalescing import Coalescer
from posd.database.pool import Database
from posd.protocol.cursor import passed
from posd.store import epochs
from posd.store import presence as books
from posd.values import Opening, Seq, StreamName, Tenant, TenantId

_AT_ONCE: Final = 500
"""Terminals in one statement, so that its answer is small and the first ones need not wait for the last."""
_IN_A_TURN: Final = 2
"""Terminals that go on in one turn of the reactor: each is upgraded and greeted then."""
_SECONDS: Final = 5.0
_SETTLING_SECONDS: Final = 1.0
"""After a failover: in this time nodes connect, and write down how far devices were sent their streams."""

_Cursor = tuple[str, Seq]


class Openings:
    """Looks up where terminals stand. `most_devices` is how many of them a tenant may have."""

    def __init__(self, clock: IReactorTime, database: Database, most_devices: int) -> None:
        self._clock = clock
        self._database = database
        self._most_devices = most_devices
        self._places: Coalescer[books.Place, Opening | None] = Coalescer(
            clock, self._look_up, most=_AT_ONCE, seconds=_SECONDS, turn=_IN_A_TURN
        )
        # After a failover all terminals of a tenant name the same earlier stream.
        self._shared: Coalescer[StreamName, Seq | None] = Coalescer(
            clock, self._look_up_names, most=_AT_ONCE, seconds=_SECONDS
        )
        # What a terminal refused is in its tenant's schema: a tenant whose tables are slow delays its own.
        self._refused: dict[TenantId, Coalescer[_Cursor, frozenset[Seq]]] = {}

    async def find(
        self, tenant: Tenant, device_id: str | None, *, names_stream: bool = False
    ) -> Opening | None:
        """Where a terminal stands; registers a device that was never seen.

        What the device refused right after its cursor is passed. After a failover a device that does not name
        its stream waits until other nodes have written down how far they sent it the stream. None if the
        tenant is gone, or has too many devices to take another one. Raises `Unavailable`.
        """
        opening = await self._places.ask((tenant.id, device_id))
        if opening is not None and not names_stream:
            seconds = _unsettled(opening)
            if seconds > 0:
                await deferLater(self._clock, seconds)
                opening = await self._places.ask((tenant.id, device_id))
        if opening is None or device_id is None or opening.acked is None:
            return opening
        if opening.acked >= opening.head.last_seq:
            # Nothing comes after the cursor that could have been refused.
            return opening
        refused = await self._refused_after(tenant, (device_id, opening.acked))
        acked = opening.acked
        if not opening.legacy:
            acked, refused = passed(acked, refused)
        return evolve(opening, acked=acked, refused=refused)

    async def shared(self, tenant_id: TenantId, stream_id: UUID) -> Seq | None:
        """Up to where an earlier stream of a tenant has the events of the present one.

        None if it is no earlier one. Raises `Unavailable`.
        """
        return await self._shared.ask((tenant_id, stream_id))

    async def _look_up_names(self, names: Sequence[StreamName]) -> Mapping[StreamName, Seq | None]:
        found = await epochs.ends(self._database.for_all, names)
        return {name: found[name].shared if name in found else None for name in names}

    async def _look_up(self, wanted: Sequence[books.Place]) -> Mapping[books.Place, Opening | None]:
        found = await books.openings(self._database.for_all, wanted, self._most_devices)
        return {place: found.get(place) for place in wanted}

    def _refused_after(self, tenant: Tenant, cursor: _Cursor) -> Awaitable[frozenset[Seq]]:
        async def look_up(cursors: Sequence[_Cursor]) -> Mapping[_Cursor, frozenset[Seq]]:
            # A device may ask twice while its cursor moves: what is after the one further back is all.
            first = dict(sorted(cursors, reverse=True))
            session = self._database.of(tenant.id)
            found = await books.refused(session, tenant, list(first.items()))
            return {each: frozenset(s for s in found[each[0]] if s > each[1]) for each in cursors}

        if tenant.id not in self._refused:
            self._refused[tenant.id] = Coalescer(
                self._clock, look_up, most=_AT_ONCE, seconds=_SECONDS
            )
        return self._refused[tenant.id].ask(cursor)


def _unsettled(opening: Opening) -> float:
    """For how many seconds another node may yet tell that a device has to reload.

    A device that never said how far it is begins at the head, whatever is told.
    """
    if opening.renamed_ago is None or opening.legacy or opening.astray:
        return 0.0
    return max(0.0, _SETTLING_SECONDS - opening.renamed_ago)
