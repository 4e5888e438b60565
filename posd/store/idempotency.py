"""The first answers to calls that named an `Idempotency-Key`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from posd.link import Session
from posd.values import TenantId

_FIND: Final = """
    SELECT i.tenant_id, i.principal, i.operation, i.key, i.fingerprint, i.status, i.answer::text
      FROM dinedesk_main.idempotency_keys AS i
      JOIN unnest(%s::integer[], %s::text[], %s::text[], %s::text[])
           AS w(tenant_id, principal, operation, key) USING (tenant_id, principal, operation, key)
"""
_STORE: Final = """
    INSERT INTO dinedesk_main.idempotency_keys
        (tenant_id, principal, operation, key, fingerprint, status, answer)
    SELECT * FROM unnest(%s::integer[], %s::text[], %s::text[], %s::text[], %s::bytea[],
                         %s::smallint[], %s::json[])
"""


@frozen
class Idempotency:
    """What names one call: the same again is a retry.

    `fingerprint` is the SHA-256 of what the call moves: with another one it is another call, made
    with a key that was used before.
    """

    tenant_id: TenantId
    principal: str
    operation: str
    key: str
    fingerprint: bytes

    @property
    def scope(self) -> tuple[TenantId, str, str, str]:
        return self.tenant_id, self.principal, self.operation, self.key


@frozen
class Answer:
    """A stored answer: the HTTP status and the body as JSON text."""

    fingerprint: bytes
    status: int
    body: str


async def find(
    session: Session, calls: Sequence[Idempotency]
) -> dict[tuple[TenantId, str, str, str], Answer]:
    """The stored answers to these calls, by their scope."""
    rows = await session.query(_FIND, _columns([call.scope for call in calls]))
    return {row[:4]: Answer(bytes(row[4]), row[5], row[6]) for row in rows}


async def store(session: Session, answers: Sequence[tuple[Idempotency, int, str]]) -> None:
    """Keep the answers to these calls: status and JSON text."""
    rows = [(*call.scope, call.fingerprint, status, body) for call, status, body in answers]
    await session.execute(_STORE, _columns(rows))


def _columns(rows: Sequence[tuple[object, ...]]) -> tuple[list[object], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))
