"""`/api/admin/tenants/{slug}/keys`: a tenant's credentials. A key is shown once, when it is made."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from attrs import define
from msgspec import Meta
from twisted.logger import Logger

from posd.config.units import parse_duration
from posd.database.pool import Database
from posd.errors import BadRequest, NotFound
from posd.protocol.literals import timestamp
from posd.security import api_keys as keys
from posd.store import credentials, tenants
from posd.store.credentials import Created, Listed
from posd.store.idempotency import once_shown
from posd.values import KeyKind
from posd.web.api.status import moment
from posd.web.api.tenants import MOST_LISTED, UNKNOWN_TENANT, Limit
from posd.web.http import idempotency
from posd.web.http.models import UNSET, Given, Moment, Success, Taken, Unset, plain
from posd.web.http.operations import ADMINS, Ask, Operation, Refused, given
from posd.web.http.requests import Answer

_LONGEST_LIFETIME: Final = timedelta(days=36_500)
KeyId = Annotated[int, Meta(ge=1, lt=2**31)]
_log = Logger()


class KeyTaken(Taken, frozen=True):
    """A key that is wanted. Keys of all tenants, and of operators, are for `posctl key create`."""

    kind: Literal["device", "tenant", "platform"]
    device_id: (
        Annotated[str, Meta(min_length=1, max_length=128, description="For a device key.")]
        | Unset
        | None
    ) = UNSET
    expires: (
        Annotated[
            str,
            Meta(
                pattern="^[0-9]{1,15} ?(ms|s|m|h|d)$",
                description="How long it is valid, such as `90d`; without it, until it is revoked.",
            ),
        ]
        | Unset
        | None
    ) = UNSET


class RevocationTaken(Taken, frozen=True):
    """Which key is to be revoked."""

    id: KeyId


class KeyGiven(Given, frozen=True):
    """A key as it is listed: never itself. A `weak` one was not made by posd, and may be guessable."""

    id: KeyId
    kind: str
    device_id: str | None
    preview: str
    weak: bool
    state: str
    not_before: Moment
    expires_at: Moment | None
    revoked_at: Moment | None
    last_used_at: Moment | None


class KeysTaken(Taken, frozen=True):
    """Which page of the list."""

    limit: Limit = MOST_LISTED
    after: (
        Annotated[int, Meta(ge=0, le=2**63 - 1, description="The `next` of the page before.")]
        | Unset
    ) = UNSET


class KeysGiven(Success, frozen=True):
    """A tenant's keys, those that are valid no more too.

    While `hasMore` is true, `next` is the `after` of the next call.
    """

    tenant: str
    keys: list[KeyGiven]
    has_more: bool
    next: KeyId | None


class NewKeyGiven(Success, frozen=True):
    """A key that was made. `key` is the key itself; it is not there when the answer is repeated."""

    id: KeyId
    kind: str
    device_id: str | None
    preview: str
    expires_at: Moment | None
    key: str | Unset = UNSET


class RevokedGiven(Success, frozen=True):
    """A key that is valid no more, and since when."""

    id: KeyId
    revoked_at: Moment


@define(eq=False)
class OperatorKeys:
    """The endpoints."""

    database: Database

    @property
    def operations(self) -> tuple[Operation, ...]:
        path = "/api/admin/tenants/{slug}/keys"
        return (
            Operation(
                "GET",
                path,
                self.everyone,
                "List a tenant's keys",
                ADMINS,
                {200: KeysGiven},
                KeysTaken,
                refusals=(UNKNOWN_TENANT,),
                tag="Operators",
            ),
            Operation(
                "POST",
                path,
                self.make,
                "Make a key, and show it this once",
                ADMINS,
                {201: NewKeyGiven},
                KeyTaken,
                refusals=(UNKNOWN_TENANT,),
                idempotent=True,
                description="With an `Idempotency-Key` a retry makes no second key. Its answer is the"
                " first one without `key`, of which posd has only the hash.",
                tag="Operators",
                example={"kind": "device", "deviceId": "POS_7", "expires": "365d"},
            ),
            Operation(
                "DELETE",
                path,
                self.revoke,
                "Revoke a key",
                ADMINS,
                {200: RevokedGiven},
                RevocationTaken,
                refusals=(
                    UNKNOWN_TENANT,
                    Refused(404, "unknown_key", "The tenant has no such key."),
                ),
                description="At once and for good. Connections that were opened with it are closed"
                " within a second. A key that is revoked already stays so, since when it was: it is safe"
                " to repeat, and an `Idempotency-Key` is not looked at.",
                tag="Operators",
            ),
        )

    async def everyone(self, ask: Ask[KeysTaken]) -> Answer:
        """Revoked and expired ones too."""
        slug = (await tenants.one(self.database, ask.path["slug"])).tenant.slug
        after, most = 0 if ask.taken.after is UNSET else ask.taken.after, ask.taken.limit
        listed = await credentials.everyone(self.database, slug, after=after, most=most + 1)
        shown, has_more = listed[:most], len(listed) > most
        return given(
            KeysGiven(
                tenant=slug,
                keys=[_shown(each) for each in shown],
                has_more=has_more,
                next=shown[-1].id if has_more else None,
            )
        )

    async def make(self, ask: Ask[KeyTaken]) -> Answer:
        """What is kept of the answer, for a retry, is all but the key."""
        kind, device, lifetime = _wanted(ask.taken)
        tenant = (await tenants.one(self.database, ask.path["slug"])).tenant
        call = idempotency.named(
            ask.call,
            tenant.id,
            KeyKind.ADMIN.value,
            f"POST /api/admin/tenants/{tenant.slug}/keys",
            [kind.value, device, ask.taken.expires or None],
        )
        made = keys.make()
        answered = await self.database.transaction(
            lambda session: once_shown(
                session,
                call,
                lambda: credentials.create(
                    session, tenant, kind, device, made.sha256, made.preview, lifetime
                ),
                lambda created: (201, plain(_created(created, kind, device, made.preview))),
            )
        )
        if answered.replayed:
            return Answer(answered.body, answered.status, {"Idempotent-Replayed": "true"})
        self._tell(ask, "made", answered.body["id"])
        return Answer({**answered.body, "key": made.secret}, answered.status)

    async def revoke(self, ask: Ask[RevocationTaken]) -> Answer:
        """A key of another tenant is none."""
        tenant, key_id = (await tenants.one(self.database, ask.path["slug"])).tenant, ask.taken.id
        since = await credentials.revoke_of(self.database, tenant.id, key_id)
        if since is None:
            raise NotFound("There is no such key.", code="unknown_key")
        self._tell(ask, "revoked", key_id)
        return given(RevokedGiven(id=key_id, revoked_at=timestamp(since)))

    def _tell(self, ask: Ask[Any], what: str, key_id: object) -> None:
        """Log who did what: keys are told by their numbers."""
        _log.info(
            "key {by} {what} key {key} of {slug}",
            by=ask.key_id,
            what=what,
            key=key_id,
            slug=ask.path["slug"],
        )


def _wanted(taken: KeyTaken) -> tuple[KeyKind, str | None, timedelta | None]:
    """What kind of key, for which device, valid for how long. Raises `BadRequest`."""
    kind, device, lifetime = KeyKind(taken.kind), taken.device_id or None, None
    if (kind is KeyKind.DEVICE) != (device is not None):
        raise _wrong("deviceId", "A device key needs deviceId, and no other key takes it.")
    if device is not None and (not device.isprintable() or device != device.strip()):
        raise _wrong("deviceId", "deviceId has characters that a header cannot have.")
    if taken.expires:
        seconds = parse_duration(taken.expires)
        if not 0 < seconds <= _LONGEST_LIFETIME.total_seconds():
            raise _wrong("expires", "expires must be more than nothing, and at most 36500d.")
        lifetime = timedelta(seconds=seconds)
    return kind, device, lifetime


def _wrong(field: str, sentence: str) -> BadRequest:
    return BadRequest(sentence, code="invalid_field", details={"field": field})


def _created(created: Created, kind: KeyKind, device: str | None, preview: str) -> NewKeyGiven:
    return NewKeyGiven(
        id=created.id,
        kind=kind.value,
        device_id=device,
        preview=preview,
        expires_at=moment(created.expires_at),
    )


def _shown(each: Listed) -> KeyGiven:
    return KeyGiven(
        id=each.id,
        kind=each.kind.value,
        device_id=each.device_id,
        preview=each.preview,
        weak=each.weak,
        state=each.state,
        not_before=timestamp(each.not_before),
        expires_at=moment(each.expires_at),
        revoked_at=moment(each.revoked_at),
        last_used_at=moment(each.last_used_at),
    )
