"""Stored answers to calls with an `Idempotency-Key`, for retries of these calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar, cast

from attrs import frozen

from posd.database.reconnecting import Executor
from posd.errors import Conflict, Unprocessable
from posd.protocol import jsontext
from posd.values import TenantId

T = TypeVar("T")
Scope = tuple[TenantId | None, str, str, str]

_FIND: Final = """
    SELECT i.tenant_id, i.principal, i.operation, i.key, i.fingerprint, i.status, i.answer::text
      FROM dinedesk_main.idempotency_keys AS i
      JOIN unnest(%s::integer[], %s::text[], %s::text[], %s::text[])
           AS w(tenant_id, principal, operation, key)
        ON coalesce(i.tenant_id, 0) = coalesce(w.tenant_id, 0)
       AND i.principal = w.principal AND i.operation = w.operation AND i.key = w.key
"""
_STORE: Final = """
    INSERT INTO dinedesk_main.idempotency_keys
        (tenant_id, principal, operation, key, fingerprint, status, answer)
    SELECT * FROM unnest(%s::integer[], %s::text[], %s::text[], %s::text[], %s::bytea[],
                         %s::smallint[], %s::json[])
"""
# A conflicting INSERT would wait for the end of the first call. This lock shows at once that it still runs.
# The salt keeps other database users from guessing the lock's number and blocking calls.
_TRY: Final = """
    SELECT pg_try_advisory_xact_lock(hashtextextended(concat(i.salt, %s::text), 7097))
      FROM dinedesk_main.pos_incarnation AS i
"""


@frozen
class IdempotencyKey:
    """The identity of a call: a call with an equal one is a retry.

    `tenant_id` is None for a call that belongs to no tenant yet. `fingerprint` is the SHA-256 of the content
    of the call. If it differs from the stored one, the client has used the key for two different calls.
    """

    tenant_id: TenantId | None
    principal: str
    operation: str
    key: str
    fingerprint: bytes

    @property
    def scope(self) -> Scope:
        return self.tenant_id, self.principal, self.operation, self.key


@frozen
class StoredResponse:
    """A stored answer: the HTTP status and the body as JSON text."""

    fingerprint: bytes
    status: int
    body: str


@frozen
class IdempotentResponse:
    """The answer to a call; `replayed` is true for the stored answer to an earlier, equal call."""

    status: int
    body: Mapping[str, object]
    replayed: bool = False


async def run_once(
    executor: Executor,
    call: IdempotencyKey | None,
    work: Callable[[], Awaitable[tuple[int, Mapping[str, object]]]],
) -> IdempotentResponse:
    """Call `work` unless an earlier call has done so, and store its answer (status and JSON).

    `executor` is a transaction, and `work` does all its work in it, so the answer commits with its effects.
    Raises `Conflict` (`still_running`) while the first call runs, `Unprocessable` (`idempotency_mismatch`)
    if the first call had another fingerprint, and the errors of `work`, which are not stored.
    """
    if call is None:
        return IdempotentResponse(*await work())
    scope = " ".join(map(str, call.scope))
    if not (await executor.query(_TRY, (scope,)))[0][0]:
        raise Conflict("The first call with this key is still running.", code="still_running")
    earlier = (await find_responses(executor, [call])).get(call.scope)
    if earlier is None:
        status, body = await work()
        await store_responses(executor, [(call, status, jsontext.encode(body).decode())])
        return IdempotentResponse(status, body)
    if earlier.fingerprint != call.fingerprint:
        raise key_mismatch()
    return IdempotentResponse(
        earlier.status, cast("dict[str, object]", jsontext.decode_own(earlier.body)), True
    )


async def run_once_and_render(
    executor: Executor,
    call: IdempotencyKey | None,
    work: Callable[[], Awaitable[T]],
    show: Callable[[T], tuple[int, Mapping[str, object]]],
) -> IdempotentResponse:
    """Like `run_once`; `show` converts the result of `work` to the answer."""

    async def shown() -> tuple[int, Mapping[str, object]]:
        return show(await work())

    return await run_once(executor, call, shown)


def key_mismatch() -> Unprocessable:
    """Return the error for a key that was used for two different calls."""
    return Unprocessable(
        "This Idempotency-Key was used for another call.", code="idempotency_mismatch"
    )


async def find_responses(
    executor: Executor, calls: Sequence[IdempotencyKey]
) -> dict[Scope, StoredResponse]:
    """Return the stored answers to these calls, by scope."""
    rows = await executor.query(_FIND, _columns([call.scope for call in calls]))
    return {row[:4]: StoredResponse(bytes(row[4]), row[5], row[6]) for row in rows}


async def store_responses(
    executor: Executor, answers: Sequence[tuple[IdempotencyKey, int, str]]
) -> None:
    """Store the answers to calls: status and JSON text."""
    rows = [(*call.scope, call.fingerprint, status, body) for call, status, body in answers]
    await executor.execute(_STORE, _columns(rows))


def _columns(rows: Sequence[tuple[object, ...]]) -> tuple[list[object], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))
