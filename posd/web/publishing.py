"""Publishing by REST: `POST /api/{tenant}/events` and the deployed `POST /broadcast`."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Final

from attrs import define, field

from posd import drafts, jsontext
from posd.auth import Authenticator, of_kind
from posd.errors import BadRequest, TooManyRequests, Unprocessable
from posd.limits import Clock, TokenBucket
from posd.publication import Publication, Published
from posd.sequencer import Sequencer
from posd.store.idempotency import Idempotency
from posd.values import SLUG, Draft, KeyKind, Tenant, TenantId
from posd.web.render import Answer, Call
from posd.zones import zone

_MOST_EVENTS: Final = 500
_EVENT_KIBIBYTES: Final = 4
"""Of the body for each event that may be published, on average; orders have one or two."""
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_CLOCKS: Final = frozenset(("timestamp", "updatedAt", "updated_at"))
"""Members that say when a call was made, not what it moves: an honest retry changes them."""


@define(eq=False)
class Publisher:
    """The endpoints by which a platform publishes. `per_second` events of one tenant, on average."""

    authenticator: Authenticator
    sequencer: Sequencer
    per_second: int
    clock: Clock
    _events: dict[TenantId, TokenBucket] = field(init=False, factory=dict)
    _kibibytes: dict[int, TokenBucket] = field(init=False, factory=dict)

    async def events(self, call: Call, slug: str) -> Answer:
        """`{"type", "data"}`, or `{"events": [{"type", "data"}, …]}` of up to 500."""
        credential = await self.authenticator.at_tenant(slug, call.key, None, call.address)
        of_kind(credential.principal, KeyKind.PLATFORM)
        call.check_tenant(slug)
        body = self._read(call, credential.principal.key_id)
        several = "events" in body
        tenant = credential.tenant
        clock = zone(tenant.timezone)
        made = _several(body["events"], clock) if several else [_one(body, "", clock)]
        published = await self._publish(call, f"POST /api/{slug}/events", tenant, made)
        ids = list(published.ids)
        answer = {"ids": ids} if several else {"id": ids[0]}
        return Answer(
            {"success": True, **answer, "connections": published.connections},
            201 if any(seq is not None for seq in ids) else 200,
            {"Idempotent-Replayed": "true"} if published.replayed else {},
        )

    async def broadcast(self, call: Call) -> Answer:
        """The deployed broadcaster's call, `{"tenant", "event": {"type", "timestamp", "data", …}}`."""
        if _asks_for_key(call):
            body = self._read(call, await self.authenticator.somewhere(call.key, call.address))
        else:
            body = call.json()
        slug, event = body.get("tenant"), body.get("event")
        if not isinstance(slug, str) or not slug or not isinstance(event, dict):
            raise BadRequest("Missing tenant or event", code="missing_tenant_or_event")
        tenant = await self._addressed(call, slug)
        draft = _one(event, "event.", zone(tenant.timezone))
        published = await self._publish(call, "POST /broadcast", tenant, [draft])
        return Answer(
            {
                "success": True,
                "message": f"Event broadcasted to {slug}",
                "connections": published.connections,
            },
            200,
            {"Idempotent-Replayed": "true"} if published.replayed else {},
        )

    async def _addressed(self, call: Call, slug: str) -> Tenant:
        """The tenant of a broadcast: with a platform key, or without one on a trusted listener."""
        if SLUG.fullmatch(slug) is None:
            raise BadRequest("This is no tenant's name.", code="invalid_tenant")
        call.check_tenant(slug)
        if _asks_for_key(call):
            credential = await self.authenticator.at_tenant(slug, call.key, None, call.address)
            of_kind(credential.principal, KeyKind.PLATFORM)
            return credential.tenant
        return await self.authenticator.unasked(slug)

    def _read(self, call: Call, key_id: int) -> dict[str, object]:
        """The body. A megabyte of JSON takes a tenth of a second, in which no till is served."""
        self._spend(self._kibibytes, key_id, call.size // 1024, self.per_second * _EVENT_KIBIBYTES)
        return call.json()

    def _spend(self, buckets: dict[int, TokenBucket], who: int, count: int, rate: int) -> None:
        # Ten seconds' worth at once: a platform that was away catches up.
        burst = max(10 * rate, _MOST_EVENTS)
        bucket = buckets.get(who)
        if bucket is None:
            bucket = buckets[who] = TokenBucket(rate, burst, self.clock)
        # A reload may have changed them.
        bucket.rate, bucket.burst = rate, burst
        if not bucket.take(count):
            raise TooManyRequests(
                "Too much is published at once.", retry_after=max(1, math.ceil(bucket.wait(count)))
            )

    async def _publish(
        self, call: Call, operation: str, tenant: Tenant, made: Sequence[Draft]
    ) -> Published:
        idempotency = _idempotency(call, operation, tenant, made)
        self._spend(self._events, tenant.id, len(made), self.per_second)
        return await self.sequencer.publish(Publication(tenant.id, made, idempotency))


def _asks_for_key(call: Call) -> bool:
    return not call.door.trusted or call.key is not None


def _several(events: object, clock: tzinfo) -> list[Draft]:
    if not isinstance(events, list) or not 0 < len(events) <= _MOST_EVENTS:
        raise BadRequest(f"events must be a list of 1 to {_MOST_EVENTS}.", code="invalid_events")
    return [_one(event, f"events[{index}].", clock) for index, event in enumerate(events)]


def _one(event: object, where: str, clock: tzinfo) -> Draft:
    """One event in its exact form; a refusal says which one it was."""
    if not isinstance(event, Mapping):
        raise BadRequest(f"{where or 'event'} must be an object.", code="invalid_event")
    beside = {
        name: value for name, value in event.items() if name not in ("type", "data", "timestamp")
    }
    try:
        # The body may be deeper, since it wraps them; whoever reads the event again may not.
        if jsontext.deeper([event.get("data"), beside], jsontext.DEPTH + 1):
            what = f"data is nested more than {jsontext.DEPTH} levels deep."
            raise Unprocessable(what, code="invalid_event")
        return drafts.draft(event.get("type"), event.get("data"), beside, zone=clock)
    except Unprocessable as refusal:
        raise Unprocessable(f"{where}{refusal.message}", code=refusal.code) from refusal


def _idempotency(
    call: Call, operation: str, tenant: Tenant, made: Sequence[Draft]
) -> Idempotency | None:
    """What names this call. The fingerprint covers the events, however they were spelled."""
    keys = {*call.headers("idempotency-key"), *call.headers("x-idempotency-key")}
    if not keys:
        return None
    key = keys.pop()
    if keys or _IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise BadRequest(
            "Idempotency-Key must be one of up to 255 visible ASCII characters.",
            code="invalid_idempotency_key",
        )
    moved = jsontext.encode([_moved([each.type, each.data, each.beside]) for each in made])
    return Idempotency(tenant.id, "platform", operation, key, hashlib.sha256(moved).digest())


def _moved(value: object) -> object:
    """A value without clocks, and with its members in one order."""
    if isinstance(value, Mapping):
        return {name: _moved(value[name]) for name in sorted(value) if name not in _CLOCKS}
    return [_moved(each) for each in value] if isinstance(value, list) else value
