"""Looks up where terminals start when they connect, with one statement for all that connect together.

After a power failure or a restart of posd, all terminals connect within a second. If each had its own
statement, they would wait for the pool's few connections longer than a terminal waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Final
from uuid import UUID

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from posd.database.coalescing import Coalescer
from posd.database.pool import Pool
from posd.protocol.cursor import skip_refused
from posd.store import epochs
from posd.store import presence as presence_store
from posd.values import Seq, SessionStart, StreamName, Tenant, TenantId

_MOST_TERMINALS: Final = 500
"""Terminals in one statement. The limit keeps the result small and the wait of the first terminals short."""
_RESUMED_PER_TURN: Final = 2
"""Terminals that continue in one turn of the reactor. In that turn they are upgraded and greeted."""
_TIMEOUT_SECONDS: Final = 5.0
_SETTLING_SECONDS: Final = 1.0
"""The time after a failover in which nodes connect and store how far each device was sent its stream."""

_Cursor = tuple[str, Seq]


class SessionOpenings:
    """Looks up where terminals start. `most_devices` is the number of devices that a tenant may have."""

    def __init__(self, clock: IReactorTime, database: Pool, most_devices: int) -> None:
        self._clock = clock
        self._database = database
        self._most_devices = most_devices
        self._session_starts: Coalescer[presence_store.Place, SessionStart | None] = Coalescer(
            clock,
            self._find_starts,
            most=_MOST_TERMINALS,
            seconds=_TIMEOUT_SECONDS,
            turn=_RESUMED_PER_TURN,
        )
        # After a failover, all terminals of a tenant name the same earlier stream.
        self._shared: Coalescer[StreamName, Seq | None] = Coalescer(
            clock, self._find_ends, most=_MOST_TERMINALS, seconds=_TIMEOUT_SECONDS
        )
        # Refusals are stored in the tenant's schema. A tenant with slow tables delays only its own
        # terminals.
        self._refused: dict[TenantId, Coalescer[_Cursor, frozenset[Seq]]] = {}

    async def find(
        self, tenant: Tenant, device_id: str | None, *, names_stream: bool = False
    ) -> SessionStart | None:
        """Return where a terminal starts. Registers a device that is new.

        Events that the device refused directly after its cursor are skipped. After a failover, a device
        that does not name its stream waits until other nodes have stored how far they sent it the stream.
        Returns None if the tenant was deleted, or has too many devices to add this one. Raises
        `Unavailable`.
        """
        session_start = await self._session_starts.ask((tenant.id, device_id))
        if session_start is not None and not names_stream:
            seconds = _settling_seconds(session_start)
            if seconds > 0:
                await deferLater(self._clock, seconds)
                session_start = await self._session_starts.ask((tenant.id, device_id))
        if session_start is None or device_id is None or session_start.acked is None:
            return session_start
        if session_start.acked >= session_start.head.last_seq:
            # No event after the cursor can have been refused.
            return session_start
        refused = await self._refused_after(tenant, (device_id, session_start.acked))
        acked = session_start.acked
        if not session_start.legacy:
            acked, refused = skip_refused(acked, refused)
        return evolve(session_start, acked=acked, refused=refused)

    async def shared(self, tenant_id: TenantId, stream_id: UUID) -> Seq | None:
        """Return the position up to which an earlier stream of a tenant has the events of the present one.

        None if the tenant has no such earlier stream. Raises `Unavailable`.
        """
        return await self._shared.ask((tenant_id, stream_id))

    async def _find_ends(self, names: Sequence[StreamName]) -> Mapping[StreamName, Seq | None]:
        found = await epochs.stream_ends(self._database.for_all, names)
        return {name: found[name].shared if name in found else None for name in names}

    async def _find_starts(
        self, terminals: Sequence[presence_store.Place]
    ) -> Mapping[presence_store.Place, SessionStart | None]:
        found = await presence_store.load_session_starts(
            self._database.for_all, terminals, self._most_devices
        )
        return {place: found.get(place) for place in terminals}

    def _refused_after(self, tenant: Tenant, cursor: _Cursor) -> Awaitable[frozenset[Seq]]:
        async def look_up(cursors: Sequence[_Cursor]) -> Mapping[_Cursor, frozenset[Seq]]:
            # A device may be looked up twice while its cursor moves. Keep the lower cursor: it finds all
            # refusals.
            first = dict(sorted(cursors, reverse=True))
            executor = self._database.of(tenant.id)
            found = await presence_store.load_refused_events(executor, tenant, list(first.items()))
            return {each: frozenset(s for s in found[each[0]] if s > each[1]) for each in cursors}

        if tenant.id not in self._refused:
            self._refused[tenant.id] = Coalescer(
                self._clock, look_up, most=_MOST_TERMINALS, seconds=_TIMEOUT_SECONDS
            )
        return self._refused[tenant.id].ask(cursor)


def _settling_seconds(session_start: SessionStart) -> float:
    """Return the seconds in which another node may still report that a device has to reload.

    A device that never named or acknowledged a position starts at the head in any case.
    """
    if session_start.renamed_ago is None or session_start.legacy or session_start.astray:
        return 0.0
    return max(0.0, _SETTLING_SECONDS - session_start.renamed_ago)
